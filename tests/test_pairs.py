"""Pairs of layers between which fewer numbers pass: found, exact, weighed in one budget."""

import json
from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_models import normal, random_variables

import tdjax
from tdjax import Pair, Rule
from tdjax.params.matrices import ridged
from tdjax.params.pairs import Seen, losses, passage
from tdjax.params.units import units_in_order

X = normal(0, 64, 5, 12)
HEADS = Pair(("attention/value",), "attention/out", 3)
UNITS = Pair(("gate", "up"), "down")
SCORES = Pair(("attention/query",), "attention/key", 3, scores=True)
KEPT = 9


class Net(nn.Module):
    """Attention, and a gated MLP whose function is not 0 at 0."""

    @nn.compact
    def __call__(self, x):
        x = nn.MultiHeadDotProductAttention(3, name="attention")(x, x)
        hidden = nn.softplus(nn.Dense(20, name="gate")(x)) * nn.Dense(20, name="up")(x)
        return nn.Dense(12, name="down")(hidden)


@pytest.fixture(scope="module")
def net():
    model = Net()
    return model, random_variables(model, X[:2])


@pytest.fixture(scope="module")
def moments(net):
    return tdjax.collect_moments(*net, [X], loss_fn="outputs")


@pytest.fixture(scope="module")
def dense(net):
    return tdjax.make_plan(*net, [], X)


@pytest.fixture(scope="module")
def plan(dense):
    return dense.with_pairs([HEADS], rank=2).with_pairs([UNITS], rank=KEPT)


@pytest.fixture(scope="module")
def params(net, plan, moments):
    return tdjax.factorize_params(net[1]["params"], plan, moments=moments)


def test_pairs_are_layers_whose_outputs_one_other_reads(net):
    assert tdjax.paired_layers(*net, X) == (SCORES, HEADS, UNITS)


class Else(nn.Module):
    """Between two layers something that keeps them from being a pair."""

    kind: str

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(12, name="first")(x)
        if self.kind == "scale":
            y = nn.LayerNorm(use_bias=False)(y)
        if self.kind == "skip":
            y = x + y
        if self.kind == "neighbours":
            y = y + jnp.roll(y, 1, axis=-1)
        z = nn.Dense(4, name="second")(nn.relu(y) if self.kind != "linear" else y)
        return (z, y) if self.kind == "returned" else z


@pytest.mark.parametrize("kind", ["scale", "skip", "neighbours", "returned", "plain", "linear"])
def test_layers_with_something_else_between_are_none(kind):
    model = Else(kind)
    variables = jax.eval_shape(model.init, jax.random.key(0), X)
    wanted = {"plain": (Pair(("first",), "second"),), "linear": (Pair(("first",), "second", 1),)}
    assert tdjax.paired_layers(model, variables, X) == wanted.get(kind, ())


def of(params, path, name="kernel"):
    for key in path.split("/"):
        params = params[key]
    return np.asarray(params[name], np.float64)


def test_a_consumer_makes_most_of_the_units_that_are_kept(net, plan, params, moments):
    before, after = net[1]["params"], tdjax.reconstruct_params(params, plan)
    kept = []
    for column in of(after, "up")[:, :KEPT].T:
        kept.append(int(np.argmin(np.abs(of(before, "up") - column[:, None]).sum(axis=0))))
    for path in UNITS.producers:
        np.testing.assert_array_equal(of(after, path)[:, :KEPT], of(before, path)[:, kept])
        np.testing.assert_array_equal(of(after, path)[:, KEPT:], 0)
        bias = of(before, path, "bias")[kept]
        np.testing.assert_allclose(of(after, path, "bias")[:KEPT], bias, atol=1e-6)
    moment = np.asarray(moments["down"].inputs[0], np.float64)
    gradient = np.asarray(moments["down"].outputs[0], np.float64)
    root = np.linalg.cholesky(moment + 1e-6 * np.mean(np.diag(moment)) * np.eye(20)).T
    weigh = np.linalg.cholesky(gradient)
    target = root @ of(before, "down")

    def lost(units):
        fitted = np.linalg.lstsq(root[:, units], target, rcond=None)[0]
        return fitted, np.sum(((target - root[:, units] @ fitted) @ weigh) ** 2)

    fitted, least = lost(kept)
    np.testing.assert_allclose(of(after, "down")[:KEPT], fitted, atol=2e-4)
    chosen = []
    for _ in range(KEPT):
        rest = [unit for unit in range(20) if unit not in chosen]
        chosen.append(min(rest, key=lambda unit: lost([*chosen, unit])[1]))
    assert sorted(chosen) == kept
    worse = [lost(np.random.default_rng(seed).permutation(20)[:KEPT])[1] for seed in range(20)]
    assert least < min(worse)


def test_what_passes_of_each_head_changes_the_outputs_as_predicted(net, dense, moments):
    _, variables = net
    plan = dense.with_pairs([HEADS], rank=2)
    params = tdjax.factorize_params(variables["params"], plan, moments=moments, norm="covariance")
    after = tdjax.reconstruct_params(params, plan)["attention"]
    before = variables["params"]["attention"]
    attention = nn.MultiHeadDotProductAttention(3)
    change = attention.apply({"params": after}, X, X) - attention.apply({"params": before}, X, X)
    moment = np.asarray(moments["attention/out"].inputs[0], np.float64)
    kernel = of(before, "out").reshape(12, 12)
    parts = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        root = np.linalg.cholesky(moment[part, part]).T
        u = np.linalg.svd(root @ kernel[part])[0][:, :2]
        block = np.zeros((12, 2))
        block[part] = np.linalg.solve(root, u)
        parts.append(block)
    basis, root = np.concatenate(parts, axis=1), np.linalg.cholesky(moment).T
    fitted = np.linalg.lstsq(root @ basis, root @ kernel, rcond=None)[0]
    wanted = np.sum((root @ (kernel - basis @ fitted)) ** 2)
    assert float(jnp.mean(jnp.sum(change**2, axis=-1))) == pytest.approx(wanted, rel=1e-3)


def test_scores_lose_what_the_query_alone_would_lose(net, dense, moments):
    _, variables = net
    plan = dense.with_pairs([SCORES], rank=2)
    params = tdjax.factorize_params(variables["params"], plan, moments=moments)
    before, after = (
        own["attention"] for own in (variables["params"], tdjax.reconstruct_params(params, plan))
    )
    x = np.asarray(X, np.float64).reshape(-1, 12)

    def put_out(params, name):
        own = of(params, name).reshape(12, 12)
        return (x @ own + of(params, name, "bias").reshape(-1)).reshape(-1, 3, 4)

    predicted = {"query": 0.0, "key": 0.0}
    for head in range(3):
        q, k = (put_out(before, name)[:, head] for name in ("query", "key"))
        small, narrow = (put_out(after, name)[:, head] for name in ("query", "key"))
        np.testing.assert_array_equal(small[:, 2:], 0)
        # Scores are q times a matrix of rank 2 times k.
        between = (
            np.linalg.lstsq(q, small, rcond=None)[0] @ np.linalg.lstsq(k, narrow, rcond=None)[0].T
        )
        np.testing.assert_allclose(small @ narrow.T, q @ between @ k.T, atol=1e-3)
        assert np.linalg.matrix_rank(between, 1e-4) == 2
        part = slice(4 * head, 4 * head + 4)
        for name, own, change in (("query", q, between), ("key", k, between.T)):
            gradient = np.asarray(moments[f"attention/{name}"].outputs[0], np.float64)[part, part]
            left = np.linalg.cholesky(own.T @ own / len(own)).T
            right = np.linalg.cholesky(gradient)
            lost = np.sum((left @ (np.eye(4) - change) @ right) ** 2)
            least = np.sum(np.linalg.svd(left @ right, compute_uv=False)[2:] ** 2)
            predicted[name] += lost / least
            assert lost >= 0.999 * least
    # One of the two is the best low rank in its norm.
    assert min(predicted.values()) == pytest.approx(3, rel=1e-2)


def test_one_head_that_nothing_bends_is_the_best_low_rank():
    model = Else("linear")
    variables = random_variables(model, X[:2])
    seen = tdjax.collect_moments(model, variables, [X])
    plan = tdjax.make_plan(model, variables, [], X).with_pairs(
        [Pair(("first",), "second", 1)], rank=2
    )
    params = tdjax.factorize_params(variables["params"], plan, moments=seen, correct_bias=True)
    change = model.apply({"params": tdjax.reconstruct_params(params, plan)}, X) - model.apply(
        variables, X
    )
    z = np.asarray(X.reshape(-1, 12) @ of(variables["params"], "first"), np.float64)
    values = np.linalg.svd((z - z.mean(0)) @ of(variables["params"], "second"), compute_uv=False)
    np.testing.assert_allclose(np.sum(change**2), np.sum(values[2:] ** 2), rtol=2e-3)


def test_linen_computes_the_dense_kernels_that_are_left(net, plan, params):
    model, _ = net
    small = tdjax.factorize(model, plan)
    found = jax.jit(lambda params: small.apply({"params": params}, X))(params)
    wanted = model.apply({"params": tdjax.reconstruct_params(params, plan)}, X)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    made = jax.eval_shape(small.init, jax.random.key(0), X)["params"]
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, params)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == plan.size
    assert plan["up"].size == 12 * KEPT
    assert plan["attention/out"].macs == 5 * 3 * 2 * 12


def test_all_that_passes_is_the_network_as_it_was(net, dense, moments):
    plan = dense.with_pairs([SCORES, HEADS], rank=4).with_pairs([UNITS], rank=20)
    params = tdjax.factorize_params(net[1]["params"], plan, moments=moments, correct_bias=True)
    found = net[0].apply({"params": tdjax.reconstruct_params(params, plan)}, X)
    np.testing.assert_allclose(found, net[0].apply(net[1], X), atol=2e-4)
    assert dense.with_pairs([HEADS, UNITS])["up"].ranks == (20,)


def test_plans_and_parameters_come_back_from_disk(plan, params, tmp_path):
    assert tdjax.Plan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["version"] == 7
    tdjax.save_factorised(tmp_path, params, plan)
    again, known = tdjax.load_factorised(tmp_path)
    assert known == plan
    jax.tree.map(np.testing.assert_array_equal, again, params)
    raw = json.loads(plan.to_json())
    down = next(own for own in raw["layers"] if own["layer"]["path"] == "down")
    down["ranks"] = [KEPT + 1]
    with pytest.raises(ValueError, match="feeds 'down', which is units in of rank 10, not units"):
        tdjax.Plan.from_json(json.dumps(raw))


class Gated(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(3, 12, rngs=rngs, decode=False)
        self.gate, self.up = (nnx.Linear(12, 20, rngs=rngs) for _ in range(2))
        self.down = nnx.Linear(20, 12, rngs=rngs)

    def __call__(self, x):
        x = self.attention(x)
        return self.down(nnx.softplus(self.gate(x)) * self.up(x))


def test_nnx_reads_and_puts_out_what_passes_alone(dense, plan, moments, tmp_path):
    model = Gated(nnx.Rngs(0))
    for seed, layer in enumerate((model.attention.query, model.attention.value, model.up)):
        layer.bias[...] = normal(seed, *layer.bias.shape)
    every = dense.with_pairs([SCORES, HEADS], rank=4)
    found = tdjax.factorize(model, every, moments=moments, norm="covariance")(X)
    np.testing.assert_allclose(found, model(X), atol=2e-4)
    assert tdjax.paired_layers(model, X[:2]) == (SCORES, HEADS, UNITS)
    # Of another network of the same shapes, which is as good here.
    small = tdjax.factorize(model, plan, moments=moments, correct_bias=True)
    held = jax.tree.leaves(nnx.state(small, nnx.Param))
    assert sum(leaf.size for leaf in held) == plan.size
    np.testing.assert_allclose(tdjax.nnx.reconstruct(small, plan)(X), small(X), atol=1e-5)
    np.testing.assert_allclose(tdjax.balance_factors(small, plan)(X), small(X), atol=1e-5)
    tdjax.save_factorised(tmp_path, small, plan)
    again, _ = tdjax.load_factorised(tmp_path, like=model)
    np.testing.assert_array_equal(again(X[:2]), small(X[:2]))


def test_compressed_and_refined_in_one_call():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(12, 20, rngs=rngs), nnx.relu, nnx.Linear(20, 12, rngs=rngs))
    small = tdjax.compress(
        model, [X.reshape(-1, 12)], budget={"params": 0.5}, methods=("svd",), pairs="found",
        refine={"epochs": 1, "batch_size": 64}, progress=False,
    )  # fmt: skip
    assert [own.format for own in small.plan.layers] == ["units out", "units in"]
    assert small.plan.size <= 0.5 * small.plan.size_before
    losses = [epoch.held_out for epoch in small.refined.curve]
    assert losses[1] < losses[0]


def test_a_budget_takes_pairs_where_that_loses_less(net, moments):
    model, variables = net
    options = {"strategy": "loss", "methods": ("svd",), "moments": moments}

    def asked(budget, **own):
        return tdjax.allocate(model, variables, X, budget={"params": budget}, **options, **own)

    def changed(plan):
        factors = tdjax.factorize_params(variables["params"], plan, moments=moments)
        found = model.apply({"params": tdjax.reconstruct_params(factors, plan)}, X)
        return float(jnp.sum((found - model.apply(variables, X)) ** 2))

    alone, pairs = asked(0.7), asked(0.7, pairs="found")
    assert pairs["down"].method == "units_in"
    assert pairs.size <= 0.7 * pairs.size_before
    assert changed(pairs) < 0.8 * changed(alone)
    # One layer is in a pair, shares, or is by itself.
    every = asked(0.7, pairs="found", shared="inputs")
    assert not any(own.feeds and own.shares for own in every.layers)
    assert changed(every) < 0.8 * changed(alone)
    target = tdjax.LossRise(2.0)
    sizes = [
        tdjax.allocate(model, variables, X, target=target, **options, **own).size
        for own in ({}, {"pairs": [UNITS]})
    ]
    assert sizes[1] < sizes[0]
    # A rule, or what divides ranks, holds for pairs too.
    ruled = asked(0.9, pairs="found", rules=[tdjax.BudgetRule(path="up", dense=True)])
    assert ruled["down"].method != "units_in"
    assert asked(0.6, pairs=[UNITS], multiple_of=4)["up"].ranks[0] % 4 == 0


def test_moments_that_one_direction_outweighs_are_still_moments():
    x = np.random.default_rng(0).standard_normal((4000, 40))
    x[:, 3] *= 1e-3
    x += 1e4 * np.random.default_rng(1).standard_normal((4000, 1)) * np.ones(40)
    moment = np.asarray((x.T @ x / 4000).astype(np.float32), np.float64)
    assert np.linalg.eigvalsh(moment)[0] < 0
    found = ridged(moment)
    ridge = found[0, 0] - moment[0, 0]
    assert np.linalg.eigvalsh(found)[0] > 0.2 * ridge
    assert ridge < 1e-4 * moment[0, 0]
    kernel = np.random.default_rng(2).standard_normal((40, 5))
    own = Seen(found, kernel, kernel)
    lost = losses(own, passage(own, UNITS))
    assert np.all(np.diff(lost) <= 1e-6 * lost[0])


def test_units_in_blocks_come_as_one_by_one():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((300, 300)) / np.arange(1, 301)
    moment, target = ridged(rows @ rows.T), rng.standard_normal((300, 4))
    rest, read, wanted, gains = moment.copy(), moment @ target, [], []
    for _ in range(300):
        worth = np.sum(read**2, axis=1) / np.maximum(np.diag(rest), 1e-300)
        worth[wanted] = -1
        best = int(np.argmax(worth))
        wanted.append(best)
        gains.append(worth[best])
        read = read - np.outer(rest[best], read[best]) / rest[best, best]
        rest = rest - np.outer(rest[best], rest[best]) / rest[best, best]
    found = units_in_order(moment, target)
    np.testing.assert_array_equal(found.order, wanted)
    np.testing.assert_allclose(found.gains, gains, rtol=1e-6)
    some = units_in_order(moment, target, 70)
    np.testing.assert_array_equal(some.order, wanted[:70])
    whole = np.sum(target * (moment @ target))
    own = Seen(moment, target, target)
    lost = losses(own, passage(own, UNITS))
    np.testing.assert_allclose(whole - lost, np.cumsum([0, *gains]), rtol=1e-6)


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        scan = nn.scan(Mlp, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return scan(name="layers")(x, None)[0]


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = nn.gelu(nn.Dense(20, name="up")(x))
        return x + nn.Dense(12, name="down")(y), None


def test_each_layer_of_a_stack_keeps_units_of_its_own():
    model = Scanned()
    variables = random_variables(model, X[:2])
    (pair,) = tdjax.paired_layers(model, variables, X)
    assert pair == Pair(("layers/up",), "layers/down")
    seen = tdjax.collect_moments(model, variables, [X], loss_fn="outputs")
    plan = tdjax.allocate(
        model, variables, X, budget={"params": 0.6}, strategy="loss", methods=("svd",),
        moments=seen, pairs=[pair],
    )  # fmt: skip
    assert plan["layers/up"].method == "units_out"
    params = tdjax.factorize_params(variables["params"], plan, moments=seen, correct_bias=True)
    found = tdjax.factorize(model, plan).apply({"params": params}, X)
    dense = tdjax.reconstruct_params(params, plan)
    np.testing.assert_allclose(found, model.apply({"params": dense}, X), atol=1e-5)
    before = np.asarray(variables["params"]["layers"]["up"]["kernel"])
    for layer, kernel in enumerate(np.asarray(params["layers"]["up"]["kept"]["kernel"])):
        columns = before[layer].T.tolist()
        assert all(column in columns for column in kernel.T.tolist())


def read_as(plan, heads, pair=HEADS):
    """A plan whose consumer of heads reads so many."""
    layers = {own.layer.path: own for own in plan.layers}
    read = layers[pair.consumer]
    layers[pair.consumer] = replace(read, form=replace(read.form, splits=heads))
    return tdjax.Plan(tuple(layers.values()))


def doubled(dense):
    """A key with two queries."""
    query, key, *_ = dense.with_pairs([SCORES], rank=2).layers
    return tdjax.Plan((query, replace(query, layer=replace(query.layer, path="another")), key))


def test_what_is_no_pair_is_refused(net, dense, plan, moments):
    model, variables = net
    for pair, said in (
        (Pair(("up",), "nothing"), "no layer 'nothing'"),
        (Pair(("up",), "attention/out"), "puts out 20 features, but 'attention/out' reads 12"),
        (Pair(("attention/value",), "attention/out", 5), "5 heads do not divide 12"),
        (Pair(("attention/query",), "attention/key", scores=True), "one query and one key"),
        (Pair((), "down"), "a layer that puts something out"),
        (Pair(("up", "up"), "down"), "in two pairs"),
        (HEADS._replace(repeats=2), "puts out 12 features 2 times, but 'attention/out' reads 12"),
        (UNITS._replace(repeats=2), "of heads alone several share one"),
        (SCORES._replace(repeats=2), "12 features, but 'attention/key' puts out 12 2 times"),
        (HEADS._replace(repeats=0), "that 0 heads share"),
    ):
        with pytest.raises((ValueError, KeyError), match=said):
            dense.with_pairs([pair])
    for change, said in (
        (lambda: plan.with_pairs([UNITS]), "in two pairs"),
        (lambda: dense.with_pairs([UNITS], rank=21), "21"),
        (lambda: plan.with_dtypes({"up": "int8"}), "'down' as it is: layers .* the same numbers"),
        (lambda: plan.with_shared([("gate", "up")]), "only the factors of a plain svd are shared"),
        (lambda: replace(plan["up"], feeds=None), "is read by one that it names"),
        (lambda: tdjax.Plan((plan["down"],)), "which none feeds"),
        (lambda: tdjax.Plan((plan["up"],)), "which is no layer"),
        (lambda: doubled(dense), "with what two layers put out"),
        (lambda: read_as(plan, 2), "is heads in /2 of rank 2, not heads in /3 of rank 2"),
        (lambda: read_as(plan, 6), "12 features 2 times, but 'attention/out' reads 12"),
        (
            lambda: read_as(dense.with_pairs([SCORES], rank=1), 6, SCORES),
            "is scores in /6 of rank 1, not scores in /3 of rank 1",
        ),
        (lambda: Rule(path="up", method="units_out", rank=2), "units_out"),
        (lambda: tdjax.factorize_params(variables["params"], plan), "give moments="),
        (lambda: tdjax.factorize_sequentially(model, variables, plan, [X]), "leave out its pair"),
        (lambda: tdjax.feature_errors(model, variables, plan, [X]), "compare what the models put"),
    ):
        with pytest.raises((ValueError, TypeError), match=said):
            change()
    bad = {**moments, "down": replace(moments["down"], inputs=np.nan * moments["down"].inputs)}
    with pytest.raises(ValueError, match="layer 'down': its moments hold NaN or Inf"):
        tdjax.factorize_params(variables["params"], plan, moments=bad)
    with pytest.raises(ValueError, match="pass strategy='loss'"):
        tdjax.allocate(model, variables, X, budget=0.5, pairs="found")
    for asked, said in (
        ({"pairs": "all"}, "pairs 'all': pass tdjax.Pair"),
        ({"pairs": "found", "cost": "time"}, "the time of pairs"),
        ({"pairs": [Pair(("up",), "down")]}, "does not say that up -> down is a pair"),
    ):
        for call in (
            partial(tdjax.allocate, sample=X, strategy="loss", moments=moments),
            partial(tdjax.compress, batches=[X]),
        ):
            with pytest.raises(ValueError, match=said):
                call(model, variables, budget=0.3, **asked)
