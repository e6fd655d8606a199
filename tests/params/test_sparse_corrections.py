"""Layers as a decomposition plus a sparse correction: plans, parameters, models, checkpoints."""

import dataclasses
import json
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from plain_models import MLP, normal, random_variables

import tdjax
from tdjax import Layer, Plan, PlannedLayer, Rule
from tdjax.nnx import reconstruct
from tdjax.params.arrays import decompose_array, reconstruct_array
from tdjax.params.check import check_params
from tdjax.params.kernels import Weights
from tdjax.params.options import Options
from tdjax.plan.decide import plan_layer
from tdjax.plan.form import Form

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 24, (2, 5)))
SEQUENCE, IMAGE = normal(1, 2, 5, 12), normal(1, 2, 6, 5, 4)
SPARSE = 0.3


class Tied(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(24, 12, name="embed")
        return embed.attend(jnp.tanh(embed(tokens)))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(2, qkv_features=8, name="attention")(x, x)


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(8, name="dense")(x), None


class Scanned(nn.Module):
    """Three dense layers as one stack, with the collections that the scan carries."""

    carried: tuple[str, ...] = ("params",)

    @nn.compact
    def __call__(self, x):
        axes = dict.fromkeys(self.carried, 0)
        stack = nn.scan(Step, variable_axes=axes, split_rngs={"params": True}, length=3)
        return stack(name="stack")(x, None)[0]


class NnxTied(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(24, 12, rngs=rngs)

    def __call__(self, tokens):
        return self.embed.attend(jnp.tanh(self.embed(tokens)))


class NnxAttention(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 12, qkv_features=8, decode=False, rngs=rngs)

    def __call__(self, x):
        return self.attention(x)


class NnxStack(nnx.Module):
    def __init__(self, rngs):
        make = nnx.vmap(lambda key: nnx.Linear(8, 8, rngs=nnx.Rngs(key)))
        self.blocks = make(jax.random.split(rngs.params(), 3))

    def __call__(self, x):
        scan = nnx.scan(lambda x, block: x + block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return scan(x, self.blocks)


STRIDED = {"strides": (2, 1), "feature_group_count": 2, "padding": ((1, 0), (2, 1))}
FLIPPED = {"strides": (2, 2), "padding": "VALID", "transpose_kernel": True}
# Name, method, model, input.
LINEN = {
    "dense_train": ("tt", nn.Dense(8), SEQUENCE),
    "dense_split": ("svd_split", nn.Dense(8), SEQUENCE),
    "einsum": ("svd", nn.Einsum((4, 12, 2), "bsd,hdk->hbks"), SEQUENCE),
    "tied": ("svd", Tied(), TOKENS),
    "tied_train": ("tt", Tied(), TOKENS),
    "attention": ("svd", Attention(), SEQUENCE),
    "conv": ("tucker", nn.Conv(6, (3, 2), kernel_dilation=(1, 2), **STRIDED), IMAGE),
    "conv_circular": ("cp", nn.Conv(6, (3,), strides=2, padding="CIRCULAR"), SEQUENCE),
    "conv_transpose": ("tt", nn.ConvTranspose(6, (3, 2), **FLIPPED), IMAGE),
    "scanned": ("svd", Scanned(("params", "sparsity")), normal(2, 4, 8)),
}
NNX = {
    "linear_train": ("tt", lambda r: nnx.Linear(12, 8, rngs=r), SEQUENCE),
    "einsum": ("svd", lambda r: nnx.Einsum("bsd,hdk->hbks", (4, 12, 2), (4, 2), rngs=r), SEQUENCE),
    "tied": ("svd", NnxTied, TOKENS),
    "attention": ("svd", NnxAttention, SEQUENCE),
    "conv": ("tucker", lambda r: nnx.Conv(4, 6, (3, 2), **STRIDED, rngs=r), IMAGE),
    "conv_transpose": ("tt", lambda r: nnx.ConvTranspose(4, 6, (3, 2), **FLIPPED, rngs=r), IMAGE),
    "stack": ("svd", NnxStack, normal(2, 4, 8)),
}


def with_nonzeros(entry, nonzeros):
    return PlannedLayer(entry.layer, dataclasses.replace(entry.form, nonzeros=nonzeros))


def exact_plan(table, method):
    """Rank 1 and nonzeros for every layer, even where they save nothing."""
    splits = 2 if method.endswith("_split") else 1
    rule = Rule(path=".*", method=method[:-6] if splits > 1 else method, rank=1, splits=splits,
                sparse=SPARSE)  # fmt: skip
    return Plan(tuple(plan_layer(layer, rule) for layer in table))


def places(random, shape, size):
    """Rising indices below a size, along the last axis."""
    if len(shape) > 1:
        return np.stack([places(random, shape[1:], size) for _ in range(shape[0])])
    return np.sort(random.choice(size, shape[0], replace=False)).astype(np.int32)


def random_factors(small, plan, sample):
    """Variables of a factorised Linen model: any factors, values and places."""
    variables = random_variables(small, sample)
    sizes = {entry.layer.path: math.prod(entry.layer.kernel_shape) for entry in plan.layers}
    random = np.random.default_rng(3)

    def draw(path, leaf):
        names = [key.key for key in path]
        return jnp.asarray(places(random, leaf.shape, sizes["/".join(names[:-2])]))

    indices = jax.tree_util.tree_map_with_path(draw, variables["sparsity"])
    return {**variables, "sparsity": indices}


def close(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def mlp(widths=(16, 8), **rule):
    model, x = MLP(widths), normal(0, 4, 12)
    variables = random_variables(model, x)
    rules = [Rule(path="dense0", method="svd", compression=0.5, sparse=SPARSE, **rule)]
    return model, variables, tdjax.make_plan(model, variables, rules, x), x


# ---------------------------------------------------------------- rules and plans


@pytest.mark.parametrize("sparse", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_shares_out_of_range_are_refused(sparse):
    with pytest.raises(ValueError, match=r"Rule 'a' \(svd\): sparse must lie between 0 and 1"):
        Rule(path="a", method="svd", rank=1, sparse=sparse)


def test_the_budget_is_shared():
    layer = Layer("a", "conv", (3, 3, 64, 128), 1, (8, 8), (4, 4), positions=2)
    whole = plan_layer(layer, Rule(path="a", method="svd", compression=0.9))
    entry = plan_layer(layer, Rule(path="a", method="svd", compression=0.9, sparse=0.2))
    assert entry.nonzeros == round(0.02 * layer.size)
    assert entry.ranks[0] == round(0.08 * layer.size / (9 * 64 + 128))
    assert abs(entry.size - 0.1 * layer.size) <= (9 * 64 + 128) / 2 + 1
    assert entry.size == entry.ranks[0] * (9 * 64 + 128) + entry.nonzeros
    # One multiply-accumulate for each nonzero at each of 4 x 4 places of 2 windows.
    assert entry.macs == 2 * 16 * entry.size
    assert entry.index_bits == 32 * entry.nonzeros
    assert whole.nonzeros == whole.index_bits == 0
    given = plan_layer(layer, Rule(path="a", method="svd", rank=5, sparse=0.2))
    assert given.ranks == (5,)
    assert given.nonzeros == round(given.size * 0.2) == round(5 * (9 * 64 + 128) / 4)
    up = Layer("a", "conv_transpose", (3, 3, 64, 128), 1, (4, 4), (8, 8))
    chain = plan_layer(up, Rule(path="a", method="svd", rank=5))
    # A transposed convolution spreads its 4 x 4 inputs.
    corrected = plan_layer(up, Rule(path="a", method="svd", rank=5, sparse=0.2))
    assert corrected.macs == chain.macs + 16 * given.nonzeros


def test_a_plan_says_what_it_stores_and_reads_itself():
    _, _, plan, _ = mlp()
    entry = plan["dense0"]
    text = str(plan)
    assert "svd + sparse" in text
    assert f"{entry.ranks[0]} + {entry.nonzeros} nonzeros" in text
    assert f"indices of nonzeros take {32 * entry.nonzeros:,} bits" in text
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.size == plan.size_before - entry.layer.size + entry.size
    raw = json.loads(plan.to_json())
    for wrong in (-1, 1.5, True, entry.layer.size + 1, "3"):
        raw["layers"][0]["nonzeros"] = wrong
        with pytest.raises(ValueError, match=r"not a plan: .*nonzeros"):
            Plan.from_json(json.dumps(raw))
    raw["layers"][0]["nonzeros"], raw["layers"][1]["nonzeros"] = 3, 1
    with pytest.raises(ValueError, match=r"layer 'dense1': nonzeros 1 not in 0\.\.0"):
        Plan.from_json(json.dumps(raw))


def test_plans_from_before_there_were_corrections_are_read():
    entry = plan_layer(Layer("a", "dense", (12, 8)), Rule(path="a", method="svd", rank=2))
    raw = json.loads(Plan((entry,)).to_json())
    del raw["layers"][0]["nonzeros"]
    assert Plan.from_json(json.dumps(raw)) == Plan((entry,))


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("name", LINEN)
def test_a_linen_model_computes_with_the_reconstructed_kernel(name):
    method, model, sample = LINEN[name]
    shapes = jax.eval_shape(model.init, jax.random.key(0), sample)
    plan = exact_plan(tdjax.layer_table(model, shapes, sample), method)
    small = tdjax.factorize(model, plan)
    variables = random_factors(small, plan, sample)
    check_params(variables, plan)
    counted = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    other = sum(entry.layer.other for entry in plan.layers)
    assert counted == plan.size + other
    assert 32 * sum(leaf.size for leaf in jax.tree.leaves(variables["sparsity"])) == plan.index_bits

    @jax.jit
    def both(variables):
        dense = tdjax.reconstruct_params(variables, plan)
        return small.apply(variables, sample), model.apply(dense, sample), dense

    found, expected, dense = both(variables)
    close(found, expected)
    assert jax.tree.map(jnp.shape, dense) == jax.tree.map(jnp.shape, dict(shapes))
    # The correction is more than rounding.
    without = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if path[-1].key == "values" else leaf, variables["params"]
    )
    alone = small.apply({**variables, "params": without}, sample)
    assert np.abs(np.asarray(alone - found)).max() > 1e-3 * np.abs(np.asarray(found)).max()


@pytest.mark.parametrize("name", NNX)
def test_an_nnx_model_computes_with_the_reconstructed_kernel(name):
    method, make, sample = NNX[name]
    model = make(nnx.Rngs(0))
    plan = exact_plan(tdjax.layer_table(model, sample), method)
    small = nnx.eval_shape(lambda: tdjax.factorize(make(nnx.Rngs(0)), plan, key=jax.random.key(0)))
    random = np.random.default_rng(4)
    smallest = min(math.prod(entry.layer.kernel_shape) for entry in plan.layers)

    def draw(leaf):
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jnp.asarray(places(random, leaf.shape, smallest))
        return normal(int(random.integers(1000)), *leaf.shape) / math.sqrt(leaf.shape[0])

    graph, state = nnx.split(small)
    small = nnx.merge(graph, jax.tree.map(draw, state))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(small, nnx.Param))) == (
        plan.size + sum(entry.layer.other for entry in plan.layers)
    )

    @nnx.jit
    def both(small):
        return small(sample), reconstruct(small, plan)(sample)

    close(*both(small))
    other = Plan(tuple(with_nonzeros(entry, 1) for entry in plan.layers))
    with pytest.raises(ValueError, match="was factorised by another plan"):
        reconstruct(small, other)


def test_indices_that_a_model_lacks_are_asked_for():
    model, variables, plan, x = mlp()
    small = tdjax.factorize(model, plan)
    made = tdjax.factorize_params(variables, plan)
    with pytest.raises(ValueError, match="layer 'dense0' has a sparse correction, but the collect"):
        small.apply({"params": made["params"]}, x)
    scanned, x = Scanned(), normal(2, 4, 8)
    shapes = jax.eval_shape(scanned.init, jax.random.key(0), x)
    plan = exact_plan(tdjax.layer_table(scanned, shapes, x), "svd")
    with pytest.raises(
        ValueError, match=r"layer 'stack/dense' .* every nn.scan, nn.vmap or nn.RNN"
    ):
        tdjax.factorize(scanned, plan).init(jax.random.key(0), x)


# ---------------------------------------------------------------- decomposition


def planted(seed=0, rank=1, spikes=12):
    """A matrix of low rank with outliers that stand out."""
    random = np.random.default_rng(seed)
    matrix = random.normal(size=(12, rank)) @ random.normal(size=(rank, 16))
    where = random.choice(matrix.size, spikes, replace=False)
    matrix.flat[where] += 9 * np.abs(matrix).max() * random.choice([-1, 1], spikes)
    return jnp.asarray(matrix, jnp.float32), np.sort(where)


def test_a_planted_kernel_is_recovered():
    model, variables, plan, x = mlp()
    kernel, where = planted()
    variables["params"]["dense0"]["kernel"] = kernel
    before = jax.tree.map(np.asarray, variables)
    own = Rule(path="dense0", method="svd", rank=1, sparse=0.3)
    plan = tdjax.make_plan(model, variables, [own], x)
    assert plan["dense0"].nonzeros == len(where) == 12
    found = tdjax.factorize_params({**variables, "batch_stats": {}}, plan)
    jax.tree.map(np.testing.assert_array_equal, before, variables)
    assert found["params"]["dense0"].keys() == {"bias", "input", "output", "sparse"}
    assert found["sparsity"].keys() == {"dense0"}
    assert found["batch_stats"] == {}
    indices = found["sparsity"]["dense0"]["sparse"]["indices"]
    np.testing.assert_array_equal(indices, where)
    assert indices.dtype == jnp.int32
    dense = tdjax.reconstruct_params(found, plan)
    assert dense.keys() == {"params", "batch_stats"}
    close(dense["params"]["dense0"]["kernel"], kernel)
    errors = tdjax.weight_errors(kernel, dense["params"]["dense0"]["kernel"])
    assert errors["relative"] < 1e-5
    features = tdjax.feature_errors(model, variables, plan, [x])
    assert features["dense0"]["relative"] < 1e-5
    close(tdjax.factorize(model, plan).apply(found, x), model.apply(variables, x))


def test_moments_lower_what_the_outputs_lose():
    model, variables, plan, _ = mlp()
    x = normal(5, 300, 12) @ normal(6, 12, 12)
    moments = tdjax.collect_moments(model, variables, [x])
    plain = tdjax.feature_errors(model, variables, plan, [x])["dense0"]
    found = tdjax.factorize_params(variables, plan, moments=moments, correct_bias=True)
    dense = tdjax.reconstruct_params(found, plan)["params"]
    weighed = tdjax.feature_errors(model, variables, dense, [x])["dense0"]
    assert weighed["relative"] < 0.8 * plain["relative"]


@pytest.mark.parametrize(("method", "weighed"), [("tucker", True), ("cp", False), ("tt", False)])
def test_other_formats_leave_to_it_what_stands_out(method, weighed):
    random = np.random.default_rng(0)
    kernel = random.normal(size=(3, 3, 4, 8)) * 0.1
    where = random.choice(kernel.size, 40, replace=False)
    kernel.flat[where] += 5 * random.choice([-1, 1], 40)
    kernel = jnp.asarray(kernel, jnp.float32)
    layer = Layer("a", "conv", kernel.shape, 2, (4, 4), (4, 4))
    rule = Rule(path="a", method=method, rank=1, sparse=0.6)
    entry = with_nonzeros(plan_layer(layer, rule), 40)
    moment = jnp.asarray(random.uniform(0.5, 2, (2, 36)), jnp.float32)
    weights = Weights(moment, None) if weighed else None
    key = jax.random.key(0)
    factors = decompose_array(kernel, entry, Options(key=key, max_iters=3), weights=weights)
    assert set(np.asarray(factors["indices"])) == set(where)
    left = np.asarray(kernel - reconstruct_array(factors, entry))
    assert np.linalg.norm(left) < 0.1 * np.linalg.norm(kernel)


def test_half_precision_stays_and_a_stack_is_decomposed_side_by_side():
    random = normal(0, 3, 12, 16).astype(jnp.bfloat16)
    model = NnxStack(nnx.Rngs(0))
    x = normal(2, 4, 8)
    plan = tdjax.make_plan(
        model, [Rule(path="blocks", method="svd", compression=0.5, sparse=SPARSE)], x
    )
    small = tdjax.factorize(model, plan)
    dense = reconstruct(small, plan)
    for k in range(3):
        alone = PlannedLayer(Layer("a", "dense", (8, 8)), plan["blocks"].form)
        factors = decompose_array(model.blocks.kernel[k], alone)
        close(dense.blocks.kernel[k], reconstruct_array(factors, alone))
    params = {"dense0": {"kernel": random[0]}}
    plan = Plan((PlannedLayer(Layer("dense0", "dense", (12, 16)), Form("svd", (1,), nonzeros=9)),))
    found = tdjax.factorize_params({"params": params}, plan)
    assert {leaf.dtype for leaf in jax.tree.leaves(found["params"])} == {jnp.dtype(jnp.bfloat16)}


def test_parameters_alone_are_refused():
    _, variables, plan, x = mlp()
    with pytest.raises(ValueError, match=r"'dense0' has a sparse correction, whose indices are no"):
        tdjax.factorize_params(variables["params"], plan)
    found = tdjax.factorize_params(variables, plan)
    with pytest.raises(KeyError, match="values of its sparse correction, but no indices"):
        tdjax.reconstruct_params(found["params"], plan)
    with pytest.raises(ValueError, match="factorize_sequentially: layer 'dense0' has a sparse"):
        tdjax.factorize_sequentially(MLP((16, 8)), variables, plan, [x])


# ---------------------------------------------------------------- training and checkpoints


def test_training_changes_values_and_factors_alone():
    model, variables, plan, x = mlp()
    optimiser = optax.adamw(0.05, weight_decay=0.1)
    state = optimiser.init(variables["params"])
    found = tdjax.factorize_params(variables, plan)
    carried = tdjax.carry_optimizer_state(optimiser, state, variables["params"], found["params"])
    small = tdjax.factorize(model, plan)
    train = TrainState.create(apply_fn=small.apply, params=found["params"], tx=optimiser)
    train = train.replace(opt_state=carried)

    @jax.jit
    def step(train, sparsity):
        def loss(params):
            return jnp.mean(train.apply_fn({"params": params, "sparsity": sparsity}, x) ** 2)

        return train.apply_gradients(grads=jax.grad(loss)(train.params))

    for _ in range(3):
        train = step(train, found["sparsity"])
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), train.params, found["params"])
    assert all(jax.tree.leaves(changed))

    def correction(params):
        own = {"params": params, "sparsity": found["sparsity"]}
        dense = tdjax.reconstruct_params(own, plan)["params"]["dense0"]["kernel"]
        factors = params["dense0"]
        return dense - factors["input"]["kernel"] @ factors["output"]["kernel"]

    zeros = np.ones(12 * 16, bool)
    zeros[np.asarray(found["sparsity"]["dense0"]["sparse"]["indices"])] = False
    assert np.abs(np.asarray(correction(train.params)).ravel()[zeros]).max() < 1e-6
    assert zeros.sum() == 12 * 16 - plan["dense0"].nonzeros


def test_nnx_trains_values_and_factors_alone():
    model = nnx.Sequential(nnx.Linear(12, 16, rngs=nnx.Rngs(0)))
    x = normal(0, 4, 12)
    rules = [Rule(path="layers/0", method="svd", compression=0.5, sparse=SPARSE)]
    plan = tdjax.make_plan(model, rules, x)
    small = tdjax.factorize(model, plan)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(small)))["layers"][0]
    optimiser = nnx.Optimizer(small, optax.adamw(0.05, weight_decay=0.1), wrt=nnx.Param)

    @nnx.jit
    def step(small, optimiser):
        optimiser.update(small, nnx.grad(lambda m: jnp.mean(m(x) ** 2))(small))

    step(small, optimiser)
    after = nnx.to_pure_dict(nnx.state(small))["layers"][0]
    np.testing.assert_array_equal(after["sparse"]["indices"], before["sparse"]["indices"])
    assert (after["sparse"]["values"] != before["sparse"]["values"]).all()
    assert "kernel" not in after["sparse"]
    close(small(x), reconstruct(small, plan)(x))


def test_a_checkpoint_comes_back(tmp_path):
    model, variables, plan, x = mlp()
    found = tdjax.factorize_params(variables, plan)
    tdjax.save_factorised(tmp_path / "net", found, plan)
    back, read = tdjax.load_factorised(tmp_path / "net")
    assert read == plan
    jax.tree.map(np.testing.assert_array_equal, back, found)
    small = tdjax.factorize(model, read)
    np.testing.assert_array_equal(small.apply(back, x), small.apply(found, x))
    with pytest.raises(ValueError, match="indices of its sparse correction are missing: give all"):
        tdjax.save_factorised(tmp_path / "other", found["params"], plan)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda i: i[::-1], "do not rise from 0 to 192 at most"),
        (lambda i: i - i[0] - 1, "do not rise"),
        (lambda i: i.at[-1].set(192), "do not rise"),
        (lambda i: i[1:], r"expected integer indices of shape \(29,\), found int32 of shape \(28,"),
        (lambda i: i * 1.0, r"expected integer indices of shape \(29,\), found float32"),
    ],
)
def test_wrong_indices_are_named(change, problem):
    _, variables, plan, _ = mlp()
    assert plan["dense0"].nonzeros == 29
    own = {"input": {"kernel": normal(0, 12, 2)}, "output": {"kernel": normal(0, 2, 16)}}
    own["sparse"] = {"values": normal(0, 29)}
    indices = change(jnp.arange(0, 6 * 29, 6, dtype=jnp.int32))
    given = {
        "params": {"dense0": own, "dense1": variables["params"]["dense1"]},
        "sparsity": {"dense0": {"sparse": {"indices": indices}}},
    }
    with pytest.raises(ValueError, match="layer 'dense0': .*" + problem):
        check_params(given, plan)
    values = {**own, "sparse": {"values": normal(0, 28)}}
    given["params"]["dense0"] = values
    with pytest.raises(ValueError, match=re.escape("factor sparse of shape (29,), found (28,)")):
        check_params(given, plan)


def test_the_format_that_fits_best_counts_its_correction():
    model, x = nn.Dense(16), normal(0, 4, 12)
    variables = random_variables(model, x)
    rule = Rule(path="", method="auto", compression=0.5, sparse=SPARSE)
    (entry,) = tdjax.make_plan(model, variables, [rule], x).layers
    assert entry.method in ("svd", "tt")
    assert entry.nonzeros == round(0.5 * 0.3 * 12 * 16)
