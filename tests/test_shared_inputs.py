"""Layers that share one input factor: exact, stored and trained once, weighed in one budget."""

import json
from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from plain_models import normal, random_variables

import tdjax
from tdjax import PlannedLayer, Rule

X = normal(0, 48, 5, 16)
QKV = ("query", "key", "value")
RANK = 6


class Block(nn.Module):
    """Attention with fewer heads of keys and values, and a gated MLP."""

    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm()(x)
        heads = {"query": 4, "key": 2, "value": 2}
        q, k, v = (nn.DenseGeneral((n, 4), name=name)(h) for name, n in heads.items())
        k, v = jnp.repeat(k, 2, axis=2), jnp.repeat(v, 2, axis=2)
        h = nn.dot_product_attention(q, k, v)
        x = x + nn.DenseGeneral(16, axis=(-2, -1), name="out")(h)
        h = nn.LayerNorm()(x)
        return x + nn.Dense(16, name="down")(
            nn.silu(nn.Dense(24, name="gate")(h)) * nn.Dense(24, name="up")(h)
        )


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.remat(Block)(name="second")(Block(name="first")(x))


def names(block):
    return tuple(f"{block}/{name}" for name in QKV)


@pytest.fixture(scope="module")
def net():
    """The network, its variables, with alike queries, keys and values in the first block."""
    model = Net()
    variables = random_variables(model, X[:2])
    base = normal(9, 16, 5)
    for seed, name in enumerate(QKV):
        own = variables["params"]["first"][name]
        like = base @ normal(seed, 5, own["kernel"][0].size) / 9
        own["kernel"] = like.reshape(own["kernel"].shape) + own["kernel"] / 30
    return model, variables


@pytest.fixture(scope="module")
def moments(net):
    return tdjax.collect_moments(*net, [X], loss_fn="outputs")


@pytest.fixture(scope="module")
def plan(net):
    rules = [Rule(path=".*/(query|key|value)", method="svd", rank=5)]
    plan = tdjax.make_plan(*net, rules, X)
    return plan.with_shared([names("first"), names("second")], rank=RANK)


@pytest.fixture(scope="module")
def params(net, plan):
    return tdjax.factorize_params(net[1]["params"], plan)


def side_by_side(params, block):
    return np.concatenate(
        [np.asarray(params[block][n]["kernel"], np.float64).reshape(16, -1) for n in QKV], axis=1
    )


def test_groups_are_the_layers_that_read_one_value(net):
    found = tdjax.shared_inputs(*net, X)
    assert found == tuple(
        own
        for block in ("first", "second")
        for own in (names(block), (f"{block}/gate", f"{block}/up"))
    )


def test_the_factors_are_those_of_the_matrices_side_by_side(net, plan, params):
    dense = tdjax.reconstruct_params(params, plan)
    for block in ("first", "second"):
        u, s, vt = np.linalg.svd(side_by_side(net[1]["params"], block), full_matrices=False)
        best = (u[:, :RANK] * s[:RANK]) @ vt[:RANK]
        np.testing.assert_allclose(side_by_side(dense, block), best, atol=2e-5)


def test_factors_in_the_norm_of_each_output(net, plan, moments):
    dense = tdjax.reconstruct_params(
        tdjax.factorize_params(net[1]["params"], plan, moments=moments), plan
    )

    def lost(approximation):
        total = 0.0
        for name, own in zip(
            names("first"), np.split(approximation, (16, 24), axis=1), strict=True
        ):
            s, g = (
                np.asarray(m[0], np.float64) for m in (moments[name].inputs, moments[name].outputs)
            )
            change = np.split(kernel, (16, 24), axis=1)[QKV.index(name[6:])] - own
            total += np.trace(g @ change.T @ s @ change)
        return total

    kernel = side_by_side(net[1]["params"], "first")
    s = np.asarray(moments["first/key"].inputs[0], np.float64)
    left = np.linalg.cholesky(s + 1e-6 * np.trace(s) / 16 * np.eye(16)).T
    roots = [np.linalg.cholesky(g + 1e-6 * np.trace(g) / len(g) * np.eye(len(g))) for g in
             (np.asarray(moments[n].outputs[0], np.float64) for n in names("first"))]  # fmt: skip
    right = np.zeros((32, 32))
    for root, start in zip(roots, (0, 16, 24), strict=True):
        right[start : start + len(root), start : start + len(root)] = root
    values = np.linalg.svd(left @ kernel @ right, compute_uv=False)
    assert lost(side_by_side(dense, "first")) == pytest.approx(sum(values[RANK:] ** 2), rel=0.01)


def test_linen_computes_the_dense_kernels_that_the_factors_stand_for(net, plan, params):
    model, _ = net
    small = tdjax.factorize(model, plan)

    @jax.jit
    def run(params):
        return small.apply({"params": params}, X)

    @jax.jit
    def dense(params):
        return model.apply({"params": tdjax.reconstruct_params(params, plan)}, X)

    np.testing.assert_allclose(run(params), dense(params), atol=2e-5)
    made = jax.eval_shape(small.init, jax.random.key(0), X)["params"]
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, params)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == plan.size
    # What the input factor gets is the sum over all that read it.
    found = jax.jit(jax.grad(lambda params: jnp.sum(run(params) * X)))(params)
    wanted = jax.jit(jax.grad(lambda params: jnp.sum(dense(params) * X)))(params)
    for own, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(own, other, atol=2e-4, rtol=1e-3)
    # A block multiplies by its input factor once, by seven other matrices, and by queries and keys.
    program = run.lower(params).compile().as_text()
    assert program.count(" dot(") == 2 * (1 + 3 + 4 + 2)


def test_a_moment_of_one_input_is_kept_once(moments):
    query, key, value, gate, out = (moments[f"first/{n}"] for n in (*QKV, "gate", "out"))
    for own in (key, value):
        assert own.inputs is query.inputs
        assert own.mean is query.mean
        assert own.rows == query.rows
    assert gate.inputs is moments["first/up"].inputs is not out.inputs
    assert gate.inputs is not query.inputs


def test_biases_take_on_what_the_mean_input_loses(net, plan, moments):
    found = tdjax.factorize_params(net[1]["params"], plan, moments=moments, correct_bias=True)
    dense = tdjax.reconstruct_params(found, plan)
    before, after = net[1]["params"]["first"], dense["first"]
    for name in QKV:
        mean = np.asarray(moments[f"first/{name}"].mean[0])
        kernels = (np.asarray(own[name]["kernel"]).reshape(16, -1) for own in (before, after))
        wanted = [mean @ kernel for kernel in kernels]
        shift = np.asarray(after[name]["bias"] - before[name]["bias"]).reshape(-1)
        np.testing.assert_allclose(shift, wanted[0] - wanted[1], atol=1e-5)


def test_plans_and_parameters_come_back_from_disk(plan, params, tmp_path):
    assert tdjax.Plan.from_json(plan.to_json()) == plan
    assert json.loads(plan.with_shared([]).to_json())["version"] == 6
    tdjax.save_factorised(tmp_path, params, plan)
    again, known = tdjax.load_factorised(tmp_path)
    assert known == plan
    jax.tree.map(np.testing.assert_array_equal, again, params)
    raw = json.loads(plan.to_json())
    lender = next(own for own in raw["layers"] if own["layer"]["path"] == "first/query")
    lender["ranks"] = [RANK + 1]
    with pytest.raises(ValueError, match="'first/query' has no such input factor"):
        tdjax.Plan.from_json(json.dumps(raw))


def test_nnx_holds_one_module_for_all(tmp_path):
    model = nnx.MultiHeadAttention(2, 16, rngs=nnx.Rngs(0), decode=False)
    (group,) = tdjax.shared_inputs(model, X[:2])
    plan = tdjax.make_plan(model, [Rule(path="|".join(QKV), method="svd", rank=4)], X[:2])
    plan = plan.with_shared([group])
    small = tdjax.factorize(model, plan)
    assert small.key.input is small.query.input
    assert plan["key"].ranks == (6,)
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(small, nnx.Param))) == plan.size
    dense = tdjax.nnx.reconstruct(small, plan)
    np.testing.assert_allclose(small(X), dense(X), atol=1e-5)
    matrices = [
        np.concatenate([np.asarray(getattr(own, n).kernel[...]).reshape(16, -1) for n in QKV], 1)
        for own in (model, dense)
    ]
    values = np.linalg.svd(matrices[0], compute_uv=False)
    lost = np.linalg.norm(matrices[0] - matrices[1])
    assert lost == pytest.approx(np.linalg.norm(values[6:]), rel=1e-4)
    tdjax.save_factorised(tmp_path, small, plan)
    for like in (model, small):
        again, _ = tdjax.load_factorised(tmp_path, like=like)
        assert again.key.input is again.query.input
        np.testing.assert_array_equal(again(X[:2]), small(X[:2]))


def test_a_budget_shares_where_that_loses_less(net, moments):
    model, variables = net
    options = {"budget": {"params": 0.5}, "strategy": "loss", "methods": ("svd",)}
    options["moments"] = moments
    own = tdjax.allocate(model, variables, X, **options)
    both = tdjax.allocate(model, variables, X, shared="inputs", **options)
    assert {e.layer.path for e in both.layers if e.shares} >= {"first/key", "first/value"}
    assert both.size <= 0.5 * both.size_before

    def changed(plan):
        factors = tdjax.factorize_params(variables["params"], plan, moments=moments)
        found = model.apply({"params": tdjax.reconstruct_params(factors, plan)}, X)
        return float(jnp.sum((found - model.apply(variables, X)) ** 2))

    assert changed(both) < 0.95 * changed(own)
    target = tdjax.LossRise(1.0)
    sizes = [
        tdjax.allocate(
            model, variables, X, target=target, methods=("svd",), moments=moments, **own
        ).size
        for own in ({}, {"shared": [names("first")]})
    ]
    assert sizes[1] < sizes[0]


class Placed(nn.Module):
    """Two matrices of one input, to which a third adds what a batch has in common."""

    @nn.compact
    def __call__(self, x):
        x = x + nn.Dense(16, name="places")(jnp.eye(5, 8))
        return nn.Dense(16, name="gate")(x) * nn.Dense(16, name="up")(x)


def test_a_budget_counts_all_layers_for_as_many_examples():
    model = Placed()
    params = random_variables(model, X)["params"]
    base = normal(1, 16, 3)
    for seed, name in enumerate(("gate", "up")):
        params[name]["kernel"] = base @ normal(seed, 3, 16) + params[name]["kernel"] / 30
    variables = {"params": params}
    seen = tdjax.collect_moments(model, variables, [X], loss_fn="outputs", paths="gate|up")
    plan = tdjax.allocate(
        model, variables, X, budget={"macs": 0.3}, strategy="loss", methods=("svd",), moments=seen,
        shared="inputs", rules=[tdjax.BudgetRule(path="places", dense=True)],
    )  # fmt: skip
    assert plan["up"].shares == "gate"
    assert plan["places"].layer.positions < 1
    assert plan.macs <= 0.3 * plan.macs_before


def test_what_cannot_share_is_refused(net, plan, moments):
    model, variables = net
    rules = [Rule(path="first/.*", method="svd", rank=4)]
    own = tdjax.make_plan(model, variables, rules, X)
    for group, said in (
        (("first/query", "first/nothing"), "no layer 'first/nothing'"),
        (("first/query",), "two layers or more"),
        (("first/query", "second/key"), "only the factors of a plain svd are shared"),
        (("first/query", "first/down"), "do not read the same input"),
        (("first/query", "first/out"), "more than one axis"),
    ):
        with pytest.raises((ValueError, KeyError), match=said):
            own.with_shared([group])
    with pytest.raises(ValueError, match="in two groups"):
        own.with_shared([names("first"), ("first/value", "first/gate")])
    with pytest.raises(ValueError, match=r"'first/key' as int8: layers .* the same numbers"):
        plan.with_dtypes({"first/key": "int8"})
    crossed = own.with_shared([("first/query", "first/gate")])
    with pytest.raises(ValueError, match="their moments say"):
        tdjax.factorize_params(variables["params"], crossed, moments=moments)
    with pytest.raises(ValueError, match="in two groups"):
        plan.with_shared([("first/query", "first/gate")])
    with pytest.raises(ValueError, match="does not call them on the same value"):
        tdjax.factorize_sequentially(model, variables, crossed, [X])
    with pytest.raises(ValueError, match="pass strategy='loss'"):
        tdjax.allocate(model, variables, X, budget=0.5, shared="inputs")
    for asked, said in (
        ({"shared": "input"}, "shared 'input': pass groups"),
        ({"shared": "inputs", "cost": "time"}, "the time of layers that share"),
        ({"shared": "inputs", "methods": ("tucker",)}, "add it to methods"),
    ):
        for call in (
            partial(tdjax.allocate, sample=X, strategy="loss", moments=moments),
            partial(tdjax.compress, batches=[X]),
        ):
            with pytest.raises(ValueError, match=said):
                call(model, variables, budget=0.3, **asked)


def test_a_plan_names_lenders_that_it_has(plan):
    layers, at = list(plan.layers), [e.layer.path for e in plan.layers].index("first/query")
    lender, smaller = layers[at], tdjax.Form("svd", (RANK - 1,))
    for own, said in (
        ([], "which is no layer in front of it"),
        ([PlannedLayer(lender.layer)], "which is kept dense"),
        ([replace(lender, form=smaller)], "it is svd of rank 5, not svd of rank 6"),
        ([replace(lender, layer=replace(lender.layer, positions=7))], "not read the same input"),
    ):
        with pytest.raises(ValueError, match=f"layer 'first/(key|value)': .*{said}"):
            replace(plan, layers=(*layers[:at], *own, *layers[at + 1 :]))
    value = replace(plan["first/value"], shares="first/key")
    with pytest.raises(ValueError, match="'first/key' has no input factor of its own"):
        tdjax.Plan((*layers[: at + 2], value))


class InTurn(nn.Module):
    """Two matrices of what a third makes."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16, use_bias=False, name="first")(x)
        return sum(nn.Dense(16, name=name)(x) for name in ("gate", "up"))


@pytest.fixture(scope="module")
def in_turn():
    """A network, its parameters, and a plan in which the two matrices share."""
    model = InTurn()
    params = random_variables(model, X)["params"]
    rules = [Rule(path=p, method="svd", rank=r) for p, r in (("first", 7), ("gate|up", 4))]
    plan = tdjax.make_plan(model, {"params": params}, rules, X)
    return model, params, plan.with_shared([("gate", "up")])


def test_a_step_of_refinement_is_one_of_the_dense_kernels_factors(in_turn):
    model, dense, plan = in_turn
    params = tdjax.factorize_params(dense, plan)
    wanted = model.apply({"params": dense}, X)

    def loss(params):
        found = model.apply({"params": tdjax.reconstruct_params(params, plan)}, X)
        return jnp.sum((found - wanted) ** 2) / jnp.sum(wanted**2)

    options = {"optimizer": optax.sgd(0.1), "epochs": 1, "batch_size": len(X), "held_out": 0.0}
    options |= {"trained": ("factors",), "balance": False, "progress": False}
    found = tdjax.refine(model, {"params": dense}, params, plan, [X], **options)
    assert found.best == 1
    gradient = jax.jit(jax.grad(loss))(params)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        before, after = params, found.factors
        for key in path:
            before, after = before[key.key], after[key.key]
        is_factor = {"input", "output"} & {key.key for key in path}
        moved = -0.1 * leaf if is_factor else jnp.zeros_like(leaf)
        np.testing.assert_allclose(after - before, moved, atol=2e-6)


def test_a_factor_that_blocks_share_waits_for_all(in_turn):
    model, dense, plan = in_turn
    params = tdjax.factorize_params(dense, plan)
    options = {"optimizer": optax.sgd(0.1), "epochs": 0, "block_epochs": 1, "batch_size": len(X)}
    options |= {"held_out": 0.0, "balance": False, "progress": False, "blocks": ["gate", "up"]}
    found = tdjax.refine(model, {"params": dense}, params, plan, [X], **options).factors
    for name, stage, moved in (("gate", "input", 0), ("gate", "output", 1), ("up", "output", 1)):
        before, after = (own[name][stage]["kernel"] for own in (params, found))
        assert bool(jnp.any(before != after)) == moved


def test_factors_of_equal_norms_stand_for_the_same_kernels(plan, params):
    made = tdjax.balance_factors(params, plan)
    same = [tdjax.reconstruct_params(own, plan) for own in (made, params)]
    jax.tree.map(lambda *own: np.testing.assert_allclose(*own, atol=2e-6), *same)
    own = {name: np.asarray(made["first"][name]["output"]["kernel"]) for name in QKV}
    behind = np.concatenate([x.reshape(RANK, -1) for x in own.values()], axis=1)
    before = np.asarray(made["first"]["query"]["input"]["kernel"])
    np.testing.assert_allclose(
        np.linalg.norm(before, axis=0), np.linalg.norm(behind, axis=1), rtol=1e-5
    )


def test_in_turn_the_input_factor_is_that_of_the_inputs_by_now(in_turn):
    model, params, plan = in_turn
    found = tdjax.factorize_sequentially(model, {"params": params}, plan, [X])
    assert sorted(found["up"]) == ["bias", "output"]
    dense = tdjax.reconstruct_params(found, plan)
    rows = np.asarray(X, np.float64).reshape(-1, 16)
    was, now = (rows @ np.asarray(own["first"]["kernel"], np.float64) for own in (params, dense))
    before, after = (
        np.concatenate([np.asarray(own[n]["kernel"], np.float64) for n in ("gate", "up")], axis=1)
        for own in (params, dense)
    )
    # What the rows by now can say of the outputs, of which the best of a rank is kept.
    wanted = now @ np.linalg.lstsq(now, was @ before, rcond=1e-6)[0]
    values = np.linalg.svd(wanted, compute_uv=False)
    lost = np.linalg.norm(wanted - now @ after)
    assert lost == pytest.approx(np.linalg.norm(values[plan["up"].ranks[0] :]), rel=1e-2)


def test_one_call_shares_and_refines():
    model = nnx.MultiHeadAttention(2, 16, rngs=nnx.Rngs(0), decode=False)
    base = normal(1, 16, 6)
    for seed, name in enumerate(("query", "key")):
        kernel = getattr(model, name).kernel
        kernel[...] = kernel / 30 + (base @ normal(seed, 6, 16)).reshape(kernel.shape) / 8
    small = tdjax.compress(
        model, [X], budget=0.8, methods=("svd",), shared="inputs", refine={"epochs": 2},
        progress=False,
    )  # fmt: skip
    # Of a group those share alone for which that loses less.
    assert [small.plan[name].shares for name in QKV] == [None, "query", None]
    assert small.plan.size <= 0.8 * small.plan.size_before
    assert small.model.key.input is small.model.query.input
    assert sum(x.size for x in jax.tree.leaves(nnx.state(small.model))) == small.plan.size
    start, *others = small.refined.curve
    assert min(own.held_out for own in others) < start.held_out
    small.model.key.input = nnx.clone(small.model.key.input)
    with pytest.raises(ValueError, match="'key' has another input factor than 'query'"):
        tdjax.balance_factors(small.model, small.plan)


class Gated(nn.Module):
    """Two matrices of one input, whose axes have names."""

    @nn.compact
    def __call__(self, x, _):
        init = nn.with_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        own = (nn.Dense(16, kernel_init=init, name=name)(x) for name in ("gate", "up"))
        return jnp.prod(jnp.stack(list(own)), axis=0), None


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        names = {nn.PARTITION_NAME: "layers"}
        return nn.scan(Gated, length=2, metadata_params=names, **axes)(name="blocks")(x, None)[0]


class Apart(nn.Module):
    """Two layers of one input, each inside a transformation of its own."""

    def setup(self):
        self.gate, self.up = nn.remat(nn.Dense)(16), nn.remat(nn.Dense)(16)

    def __call__(self, x):
        return self.gate(x) + self.up(x)


def test_layers_of_a_stack_share_each_for_itself():
    model = Stack()
    variables = model.init(jax.random.key(0), X)
    groups = tdjax.shared_inputs(model, variables, X)
    assert groups == (("blocks/gate", "blocks/up"),)
    rules = [Rule(path="blocks/.*", method="svd", rank=4)]
    plan = tdjax.make_plan(model, variables, rules, X).with_shared(groups)
    params = tdjax.factorize_params(variables["params"], plan)
    specs = nn.get_partition_spec(params)["blocks"]
    assert specs["gate"]["input"]["kernel"] == jax.sharding.PartitionSpec("layers", "embed", None)
    assert specs["up"]["output"]["kernel"] == jax.sharding.PartitionSpec("layers", None, "mlp")
    dense = tdjax.reconstruct_params(params, plan)
    small = tdjax.factorize(model, plan)
    found, wanted = small.apply({"params": params}, X), model.apply({"params": dense}, X)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    kernels, made = (
        [np.asarray(own["blocks"][n]["kernel"].value) for n in ("gate", "up")]
        for own in (variables["params"], dense)
    )
    for layer in range(2):
        whole, low = (np.concatenate([k[layer] for k in own], axis=1) for own in (kernels, made))
        values = np.linalg.svd(whole, compute_uv=False)
        assert np.linalg.norm(whole - low) == pytest.approx(np.linalg.norm(values[5:]), rel=1e-4)


def test_a_lender_out_of_reach_is_told():
    model, rules = Apart(), [Rule(path=".*", method="svd", rank=4)]
    variables = model.init(jax.random.key(0), X)
    assert tdjax.shared_inputs(model, variables, X) == ()
    plan = tdjax.make_plan(model, variables, rules, X).with_shared([("gate", "up")])
    params = tdjax.factorize_params(variables["params"], plan)
    with pytest.raises(ValueError, match="'up' shares the input factor of 'gate', which is not"):
        tdjax.factorize(model, plan).apply({"params": params}, X)


class Sum(nn.Module):
    """Two layers of one input, which others may take out."""

    def setup(self):
        self.gate, self.up = nn.Dense(16), nn.Dense(8)

    def __call__(self, x):
        return self.gate(x).sum() + self.up(x).sum()


def test_layers_that_are_taken_out_find_the_input_factor():
    model, rules = Sum(), [Rule(path=".*", method="svd", rank=4)]
    variables = model.init(jax.random.key(0), X)
    plan = tdjax.make_plan(model, variables, rules, X).with_shared([("gate", "up")])
    params = tdjax.factorize_params(variables["params"], plan)
    up = tdjax.factorize(model, plan).bind({"params": params}).up
    kernel = tdjax.reconstruct_params(params, plan)["up"]["kernel"]
    np.testing.assert_allclose(up(X), X @ kernel, atol=1e-5)


def test_decoding_with_a_cache_is_that_of_the_dense_layers():
    whole, cached = (
        nnx.MultiHeadAttention(2, 16, rngs=nnx.Rngs(0), decode=decode) for decode in (False, True)
    )
    plan = tdjax.make_plan(whole, [Rule(path="|".join(QKV), method="svd", rank=4)], X[:2])
    small = tdjax.factorize(cached, plan.with_shared([QKV]))
    dense = tdjax.nnx.reconstruct(small, plan.with_shared([QKV]))
    for model in (small, dense):
        model.init_cache(X[:2].shape)
    for place in range(2):
        step = X[:2, place : place + 1]
        np.testing.assert_allclose(small(step), dense(step), atol=1e-5)
