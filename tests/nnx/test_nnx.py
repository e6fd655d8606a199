"""NNX: the same layers as Linen's, and models that stay what they were."""

import contextlib
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from plain_models import normal, random_variables, scaled_normal

import tdjax
from tdjax import Plan, Rule
from tdjax.nnx import reconstruct
from tdjax.plan.decide import plan_layer
from tdjax.plan.ranks import full_ranks

# Older versions of Flax take the plain containers.
List, Dict = getattr(nnx, "List", list), getattr(nnx, "Dict", dict)
VALUES = (nnx.Param, nnx.BatchStat)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 24, (2, 5)))
SEQUENCE, IMAGE = normal(1, 2, 5, 12), normal(1, 2, 6, 5, 4)


class Tied(nnx.Module):
    """Embedding that is looked up and attended to."""

    def __init__(self, rngs, **settings):
        self.embed = nnx.Embed(24, 12, rngs=rngs, **settings)

    def __call__(self, tokens):
        return self.embed.attend(jnp.tanh(self.embed(tokens)))


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 12, qkv_features=8, decode=False, rngs=rngs)

    def __call__(self, x):
        return self.attention(x)


class Recurrent(nnx.Module):
    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.LSTMCell(12, 8, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        return self.rnn(x)


class Stacked(nnx.Module):
    """Three linear layers whose kernels are one stacked array."""

    def __init__(self, rngs, axis=0, **settings):
        make = nnx.vmap(
            lambda key: nnx.Linear(8, 8, rngs=nnx.Rngs(key), **settings), in_axes=0, out_axes=axis
        )
        self.axis, self.blocks = axis, make(jax.random.split(rngs.params(), 3))
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        scan = nnx.scan(
            lambda x, block: x + block(x), in_axes=(nnx.Carry, self.axis), out_axes=nnx.Carry
        )
        return self.head(scan(x, self.blocks))


# Name, function of the random streams, input, paths of its layers.
KINDS = {
    "linear": (lambda r: nnx.Linear(12, 8, rngs=r), SEQUENCE, [""]),
    "linear_no_bias": (lambda r: nnx.Linear(12, 8, use_bias=False, rngs=r), SEQUENCE, [""]),
    "general": (lambda r: nnx.LinearGeneral(12, (2, 4), rngs=r), SEQUENCE, [""]),
    "general_axes": (
        lambda r: nnx.LinearGeneral((6, 4), (2, 4), axis=(1, -1), rngs=r),
        IMAGE,
        [""],
    ),
    "einsum": (
        lambda r: nnx.Einsum("abc,cde->abde", (12, 2, 4), (2, 4), rngs=r),
        SEQUENCE,
        [""],
    ),
    "einsum_ellipsis": (
        lambda r: nnx.Einsum("...dk,jkd->...j", (4, 6, 8), (4,), rngs=r),
        normal(1, 2, 3, 8, 6),
        [""],
    ),
    "einsum_turned": (
        lambda r: nnx.Einsum("bsd,hdk->hbks", (4, 12, 2), (4, 2), rngs=r),
        SEQUENCE,
        [""],
    ),
    "embed": (lambda r: nnx.Embed(24, 12, rngs=r), TOKENS, [""]),
    "tied": (Tied, TOKENS, ["embed"]),
    "attention": (
        Attention,
        SEQUENCE,
        ["attention/query", "attention/key", "attention/value", "attention/out"],
    ),
    "lstm": (Recurrent, SEQUENCE, None),
    "stacked": (Stacked, normal(1, 2, 8), ["blocks", "head"]),
    "stacked_last": (lambda r: Stacked(r, axis=1), normal(1, 2, 8), ["blocks", "head"]),
    "conv": (
        lambda r: nnx.Conv(
            4, 6, (3, 2), strides=(2, 1), padding=((1, 2), 0), kernel_dilation=(1, 2), rngs=r
        ),
        IMAGE,
        [""],
    ),
    "conv_unbatched": (lambda r: nnx.Conv(4, 6, (3, 3), rngs=r), IMAGE[0], [""]),
    "conv1d": (
        lambda r: nnx.Conv(12, 6, 3, strides=2, padding="CIRCULAR", rngs=r),
        SEQUENCE,
        [""],
    ),
    "conv_causal": (lambda r: nnx.Conv(12, 6, 3, padding="CAUSAL", rngs=r), SEQUENCE, [""]),
    "conv_depthwise": (
        lambda r: nnx.Conv(4, 8, (3, 3), feature_group_count=4, rngs=r),
        IMAGE,
        [""],
    ),
    "transpose": (lambda r: nnx.ConvTranspose(4, 6, (3, 2), strides=(2, 3), rngs=r), IMAGE, [""]),
    "transpose_valid": (
        lambda r: nnx.ConvTranspose(
            4, 6, (2, 3), strides=(3, 1), padding="VALID", kernel_dilation=(1, 2), rngs=r
        ),
        IMAGE,
        [""],
    ),
    "transpose_flipped": (
        lambda r: nnx.ConvTranspose(
            4, 6, (3, 3), strides=2, padding=((1, 2), (0, 1)), transpose_kernel=True, rngs=r
        ),
        IMAGE,
        [""],
    ),
}


def random_model(make, seed=0):
    """A model with normal parameters scaled by the fan-in; biases, too, are not zero."""
    definition, state, others = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param, ...)
    if jax.tree.leaves(others):
        # Keys of random numbers and the like are needed as they are.
        definition, state, others = nnx.split(make(nnx.Rngs(0)), nnx.Param, ...)
    leaves, structure = jax.tree.flatten(state)
    arrays = [scaled_normal(seed + k, leaf.shape, leaf.dtype) for k, leaf in enumerate(leaves)]
    return nnx.merge(definition, jax.tree.unflatten(structure, arrays), others)


def exact_plan(model, sample, **rule):
    """A plan at the ranks asked for, even where they save nothing."""
    table = tdjax.layer_table(model, sample)
    return Plan(tuple(plan_layer(layer, Rule(path=".*", **rule)) for layer in table))


def full_rank(model, sample, method):
    entries = []
    for layer in tdjax.layer_table(model, sample):
        found = plan_layer(layer, Rule(path=".*", method=method, rank=1)).method
        ranks = full_ranks(found, layer.group_shape)
        entries.append(plan_layer(layer, Rule(path=".*", method=method, rank=ranks)))
    return Plan(tuple(entries))


def flat(model, *filters):
    """Arrays by '/'-joined path."""
    state = nnx.to_pure_dict(nnx.state(model, *filters))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def close(found, expected, tolerance=1e-4):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def same(left, right):
    assert left.keys() == right.keys()
    for path in left:
        np.testing.assert_array_equal(left[path], right[path])


# ---------------------------------------------------------------- kinds


@pytest.mark.parametrize("kind", KINDS)
def test_full_rank_reproduces_the_layer(kind):
    make, sample, paths = KINDS[kind]
    model = random_model(make)
    before = flat(model, nnx.Param)
    plan = full_rank(model, sample, "tt")
    if paths is not None:
        assert [entry.layer.path for entry in plan.factorised] == paths
    small = tdjax.factorize(model, plan)
    close(nnx.jit(lambda m, x: m(x))(small, sample), model(sample))
    dense = reconstruct(small, plan)
    assert type(dense) is type(model)
    found = flat(dense, nnx.Param)
    assert found.keys() == before.keys()
    for path, array in found.items():
        close(array, before[path])
    same(flat(model, nnx.Param), before)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (kind, method)
        for kind in KINDS
        for method in (("cp",) if kind in ("conv", "transpose_valid") else ("svd",))
    ],
)
def test_chain_equals_the_reconstructed_kernel(kind, method):
    make, sample, _ = KINDS[kind]
    model = random_model(make)
    plan = exact_plan(model, sample, method=method, rank=1 if "depth" in kind else 2)
    small = tdjax.factorize(model, plan, key=jax.random.key(0), max_iters=2)
    params = flat(small, nnx.Param)
    assert sum(leaf.size for leaf in params.values()) == plan.size + sum(
        entry.layer.other for entry in plan.layers
    )
    for entry in plan.factorised:
        for stage in entry.stages:
            assert "/".join(filter(None, (entry.layer.path, stage.name, "kernel"))) in params

    @nnx.jit
    def both(small, dense):
        slopes = nnx.grad(lambda m: jnp.sum(m(sample) ** 2))(small)
        return small(sample), dense(sample), slopes

    found, expected, slopes = both(small, reconstruct(small, plan))
    close(found, expected)
    slopes = flat(slopes)
    assert slopes.keys() == params.keys()
    for path, slope in slopes.items():
        assert np.isfinite(slope).all()
        # A bias on the keys moves no attention.
        assert np.abs(slope).max() > 0 or path == "attention/key/bias"


LINEN = {
    "linear": nn.Dense(8),
    "general": nn.DenseGeneral((2, 4)),
    "general_axes": nn.DenseGeneral((2, 4), axis=(1, -1)),
    "einsum": nn.Einsum((12, 2, 4), "abc,cde->abde"),
    "einsum_ellipsis": nn.Einsum((4, 6, 8), "...dk,jkd->...j"),
    "einsum_turned": nn.Einsum((4, 12, 2), "bsd,hdk->hbks"),
    "embed": nn.Embed(24, 12),
    "conv": nn.Conv(6, (3, 2), strides=(2, 1), padding=((1, 2), 0), kernel_dilation=(1, 2)),
    "conv_depthwise": nn.Conv(8, (3, 3), feature_group_count=4),
    "transpose": nn.ConvTranspose(6, (3, 2), strides=(2, 3)),
    "transpose_valid": nn.ConvTranspose(
        6, (2, 3), strides=(3, 1), padding="VALID", kernel_dilation=(1, 2)
    ),
    "transpose_flipped": nn.ConvTranspose(
        6, (3, 3), strides=(2, 2), padding=((1, 2), (0, 1)), transpose_kernel=True
    ),
}


@pytest.mark.parametrize("kind", LINEN)
def test_table_and_factors_are_those_of_linen(kind):
    make, sample, _ = KINDS[kind]
    model, linen = random_model(make), LINEN[kind]
    variables = random_variables(linen, sample)
    (layer,) = tdjax.layer_table(model, sample)
    assert (layer,) == tdjax.layer_table(linen, variables, sample)
    nnx.update(model, nnx.State(variables["params"]))
    plan = exact_plan(model, sample, method="cp", rank=1)
    small = tdjax.factorize(model, plan, key=jax.random.key(3), max_iters=3)
    params = tdjax.factorize_params(variables["params"], plan, key=jax.random.key(3), max_iters=3)
    same(flat(small, nnx.Param), flat_dict(params))
    close(small(sample), tdjax.factorize(linen, plan).apply({"params": params}, sample), 1e-5)


def flat_dict(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


@pytest.mark.parametrize("method", ["svd", "tt", "cp"])
@pytest.mark.parametrize("kind", ["linear", "general_axes", "einsum_ellipsis", "tied", "conv1d"])
def test_macs_are_those_of_the_traced_program(kind, method, count_macs):
    make, sample, _ = KINDS[kind]
    model = random_model(make)
    plan = exact_plan(model, sample, method=method, rank=2)
    small = tdjax.factorize(model, plan, key=jax.random.key(0), max_iters=1)
    for found, expected in ((model, plan.macs_before), (small, plan.macs)):
        graph, state = nnx.split(found)
        macs = count_macs(lambda s, g=graph: nnx.merge(g, s)(sample), state)
        assert macs == len(sample) * expected


def test_attributes_stay():
    layer = nnx.Conv(4, 6, (3, 3), strides=2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    small = tdjax.factorize(layer, exact_plan(layer, IMAGE, method="tucker", rank=2))
    assert isinstance(small, nnx.Conv)
    for name in ("in_features", "out_features", "kernel_size", "strides", "use_bias", "dtype"):
        assert getattr(small, name) == getattr(layer, name)
    assert small.core.dtype == jnp.bfloat16
    assert small.core.param_dtype == jnp.float32
    assert not hasattr(small, "kernel")


@pytest.mark.parametrize("method", ["svd", "tt"])
def test_half_precision_is_kept(method):
    half = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    model = nnx.Sequential(
        nnx.Linear(12, 8, rngs=nnx.Rngs(0), **half),
        nnx.LinearGeneral(8, (2, 3), dtype=jnp.float16, rngs=nnx.Rngs(1)),
    )
    small = tdjax.factorize(model, exact_plan(model, SEQUENCE, method=method, rank=2))
    assert small(SEQUENCE).dtype == jnp.float16
    assert {leaf.dtype for leaf in flat(small.layers[0]).values()} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in flat(small.layers[1]).values()} == {jnp.dtype(jnp.float32)}
    tied = random_model(lambda r: Tied(r, **half))
    small = tdjax.factorize(tied, exact_plan(tied, TOKENS, method=method, rank=2))
    assert small(TOKENS).dtype == jnp.bfloat16


def test_own_arithmetic_is_taken_over():
    def doubled(*args, **kwargs):
        return 2 * jax.lax.dot_general(*args, **kwargs)

    seen = []

    def promote(arrays, *, dtype):
        inputs, kernel, bias = arrays
        seen.append(dtype)
        return inputs, kernel, bias

    model = nnx.Linear(
        12, 8, dot_general=doubled, promote_dtype=promote, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    plan = full_rank(model, SEQUENCE, "svd")
    small = tdjax.factorize(model, plan)
    seen.clear()
    close(small(SEQUENCE), 2 * model(SEQUENCE))
    assert len(seen) == 4
    embed = nnx.Embed(24, 12, rngs=nnx.Rngs(0))
    small = tdjax.factorize(embed, full_rank(embed, TOKENS, "svd"))
    with pytest.raises(ValueError, match="Input type must be an integer"):
        small(SEQUENCE)


# ---------------------------------------------------------------- models


class Block(nnx.Module):
    def __init__(self, width, rngs):
        self.linear = nnx.Linear(width, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return x + self.dropout(nnx.relu(self.norm(self.linear(x))))


class Network(nnx.Module):
    """Containers, a module under two names, and modules that no chain can take."""

    def __init__(self, rngs):
        self.first = nnx.Linear(12, 16, rngs=rngs)
        self.blocks = List([Block(16, rngs) for _ in range(2)])
        self.again = self.blocks[0].linear
        self.tail = nnx.Sequential(nnx.Linear(16, 16, rngs=rngs), nnx.tanh)
        self.heads = Dict(main=nnx.Linear(16, 4, rngs=rngs))
        self.low = nnx.LoRALinear(4, 4, lora_rank=1, rngs=rngs)
        self.position = nnx.Param(jnp.zeros((5, 12)))
        self.aside = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x, scale=1.0):
        x = self.first(x + self.position)
        for block in self.blocks:
            x = block(x)
        x = self.tail(self.again(x))
        return scale * self.low(self.heads["main"](x))


RULES = [
    Rule(path=r"blocks/\d/linear", method="svd", rank=3),
    Rule(path="tail/.*|again|first", method="tt", rank=2),
    Rule(path="heads/main", method="cp", rank=2),
]


@pytest.fixture
def network():
    return random_model(Network)


@pytest.fixture
def plan(network):
    return tdjax.make_plan(network, RULES, SEQUENCE)


def test_table_of_a_model(network, plan):
    table = {layer.path: layer for layer in tdjax.layer_table(network, SEQUENCE)}
    # Where a module has several names, the first in the order of Flax is its own.
    assert list(table)[:5] == ["first", "again", "blocks/1/linear", "tail/layers/0", "heads/main"]
    assert table["first"].kernel_shape == (12, 16)
    assert (table["first"].positions, table["again"].positions) == (5, 10)
    reasons = {path: layer.obstacle for path, layer in table.items() if layer.obstacle}
    assert reasons == {
        "low/lora": "it has no matrix",
        "": "it holds modules beside its own position",
        "aside": "Linear was not called",
    }
    sizes = [math.prod(leaf.shape) for leaf in flat(network, nnx.Param).values()]
    assert plan.size_before == sum(sizes)
    small = tdjax.factorize(network, plan, key=jax.random.key(0))
    assert plan.size == sum(leaf.size for leaf in flat(small, nnx.Param).values())
    assert "blocks/1/linear" in str(plan)
    # Shapes are enough, and keywords are taken as such.
    shapes = nnx.eval_shape(lambda: Network(nnx.Rngs(0)))
    sample = {"x": jax.ShapeDtypeStruct(SEQUENCE.shape, jnp.float32), "scale": 2.0}
    assert tdjax.make_plan(shapes, RULES, sample) == plan
    assert Plan.from_json(plan.to_json()) == plan


def test_model_is_copied_and_ties_stay(network, plan):
    before, graph = flat(network, VALUES), nnx.graphdef(network)
    small = tdjax.factorize(network, plan, key=jax.random.key(0))
    same(flat(network, VALUES), before)
    assert nnx.graphdef(network) == graph
    assert type(small) is Network
    assert small.again is small.blocks[0].linear
    assert small.again is not network.again
    small.first.bias[...] += 1.0
    same(flat(network, VALUES), before)
    dense = reconstruct(small, plan)
    assert dense.again is dense.blocks[0].linear
    assert {path: leaf.shape for path, leaf in flat(dense, VALUES).items()} == {
        path: leaf.shape for path, leaf in before.items()
    }
    network.eval(), small.eval(), dense.eval()
    close(small(SEQUENCE), dense(SEQUENCE))


def test_training(network, plan):
    small = tdjax.factorize(network, plan, key=jax.random.key(0))
    optimizer = nnx.Optimizer(small, optax.adam(1e-2), wrt=nnx.Param)
    traced = []

    @nnx.jit
    def step(model, optimizer, x):
        traced.append(True)
        loss, slopes = nnx.value_and_grad(lambda m: jnp.mean((m(x) - 1) ** 2))(model)
        optimizer.update(model, slopes)
        return loss

    small.train()
    before = flat(small)
    losses = [float(step(small, optimizer, SEQUENCE)) for _ in range(30)]
    assert len(traced) == 1
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    for path, array in flat(small).items():
        idle = path.startswith(("aside", "dropout")) or ("rngs/" in path and "key" in path)
        assert idle or not np.array_equal(array, before[path]), path
    small.eval()
    np.testing.assert_array_equal(small(SEQUENCE), small(SEQUENCE))


def test_states_are_exchanged(network, plan):
    small = tdjax.factorize(network, plan, key=jax.random.key(0))
    other = tdjax.factorize(network, plan, key=jax.random.key(1))
    small.eval(), other.eval()
    graph, state = nnx.split(small)
    assert nnx.graphdef(other) == graph
    np.testing.assert_array_equal(nnx.merge(graph, state)(SEQUENCE), small(SEQUENCE))
    nnx.update(other, nnx.state(small))
    np.testing.assert_array_equal(other(SEQUENCE), small(SEQUENCE))
    traced = []

    @nnx.jit
    def call(model, x):
        traced.append(True)
        return model(x)

    call(small, SEQUENCE), call(other, SEQUENCE)
    assert len(traced) == 1
    # Restored from shapes and a plan alone.
    shapes = nnx.eval_shape(
        lambda: tdjax.factorize(Network(nnx.Rngs(0)), plan, key=jax.random.key(0))
    )
    shapes.eval()
    restored = nnx.merge(nnx.graphdef(shapes), state)
    np.testing.assert_array_equal(restored(SEQUENCE), small(SEQUENCE))


class Child(nnx.Module):
    """Refers to the module around it."""

    def __init__(self, parent, rngs):
        self.parent, self.linear = parent, nnx.Linear(12, 12, rngs=rngs)

    def __call__(self, x):
        return self.linear(x) + self.parent.scale


class Odd(nnx.Module):
    """A circle, a tuple of modules, and transformations inside the call."""

    def __init__(self, rngs):
        self.scale = nnx.Param(jnp.ones(()))
        self.child = Child(self, rngs)
        self.pair = nnx.data(tuple(nnx.Linear(12, 12, rngs=rngs) for _ in range(2)))

    def __call__(self, x):
        saved, jitted = self.pair
        x = nnx.remat(lambda m, x: m(x))(saved, x)
        return _jitted(jitted, self.child(x))


@nnx.jit
def _jitted(module, x):
    return module(x)


def test_transformations_inside_a_model():
    model = random_model(Odd)
    model(SEQUENCE)
    for _ in range(2):
        table = tdjax.layer_table(model, SEQUENCE)
        assert [layer.path for layer in table] == ["pair/0", "child/linear", "pair/1"]
        assert [layer.positions for layer in table] == [5, 5, 5]
    plan = full_rank(model, SEQUENCE, "svd")
    small = tdjax.factorize(model, plan)
    assert small.child.parent is small
    close(small(SEQUENCE), model(SEQUENCE))
    assert type(reconstruct(small, plan).pair[1]) is nnx.Linear


@pytest.mark.parametrize("axis", [0, 1])
def test_stack_is_decomposed_layer_by_layer(axis):
    model, x = random_model(lambda r: Stacked(r, axis=axis)), normal(1, 2, 8)
    stack, head = tdjax.layer_table(model, x)
    assert (stack.copies, stack.size, stack.macs) == (3, 3 * 64, 3 * 64)
    assert (head.copies, head.macs) == (1, 32)
    small = tdjax.factorize(model, exact_plan(model, x, method="svd", rank=2))
    kernels = jnp.moveaxis(model.blocks.kernel[...], axis, 0)
    left, right = (
        jnp.moveaxis(stage.kernel[...], axis, 0)
        for stage in (small.blocks.input, small.blocks.output)
    )
    for k in range(3):
        close(left[k] @ right[k], tdjax.truncated_svd(kernels[k], 2).to_tensor(), 1e-5)


def test_shared_parameters_are_left_alone():
    class Shared(nnx.Module):
        def __init__(self, rngs):
            self.one = nnx.Linear(12, 12, rngs=rngs)
            self.two = nnx.Linear(12, 12, rngs=rngs)
            self.two.kernel = self.one.kernel

        def __call__(self, x):
            return self.two(self.one(x))

    plan = tdjax.make_plan(Shared(nnx.Rngs(0)), [Rule(path=".*", method="svd", rank=1)], SEQUENCE)
    assert plan.factorised == ()
    assert {entry.reason for entry in plan.layers} == {"its kernel is another module's"}
    assert plan.size_before == 12 * 12 + 24


def test_layers_that_no_chain_can_take():
    rngs = nnx.Rngs(0)
    cases = [
        (nnx.LinearGeneral(4, 3, batch_axis={0: 2}, rngs=rngs), IMAGE, "batch dimensions"),
        (nnx.Einsum("bsd,sdf->bsf", (5, 12, 4), rngs=rngs), SEQUENCE, "more than a matrix"),
        (nnx.Conv(12, 4, 3, mask=jnp.ones((3, 12, 4)), rngs=rngs), SEQUENCE, "is masked"),
        (nnx.ConvTranspose(12, 3, 3, padding="CIRCULAR", rngs=rngs), SEQUENCE, "wraps its output"),
    ]
    for model, sample, reason in cases:
        (layer,) = tdjax.layer_table(model, sample)
        assert reason in layer.obstacle
        plan = tdjax.make_plan(model, [Rule(path=".*", method="svd", rank=1)], sample)
        assert plan.factorised == ()
        assert plan.size == sum(leaf.size for leaf in flat(model, nnx.Param).values())


# ---------------------------------------------------------------- metadata and errors


def names(model):
    found = {}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        metadata = variable.get_metadata()
        found["/".join(map(str, path))] = metadata.get("out_sharding", metadata.get("sharding"))
    return {path: given for path, given in found.items() if given is not None}


@pytest.fixture
def no_mesh():
    """Names of axes without a mesh, which newer versions of Flax ask for."""
    lazy = getattr(nnx, "use_eager_sharding", None)
    with lazy(False) if lazy else contextlib.nullcontext():
        yield


def partitioned(*axes):
    return nnx.with_partitioning(nnx.initializers.lecun_normal(), axes)


class Sharded(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(12, 12, kernel_init=partitioned("data", "model"), rngs=rngs)
        self.conv = nnx.Conv(12, 6, 3, kernel_init=partitioned(None, "data", "model"), rngs=rngs)

    def __call__(self, x):
        return self.conv(self.dense(x))


def test_sharding_is_carried_over(no_mesh):
    model = Sharded(nnx.Rngs(0))
    plan = exact_plan(model, SEQUENCE, method="svd", rank=2)
    small = tdjax.factorize(model, plan)
    assert names(small) == {
        "dense/input/kernel": ("data", None),
        "dense/output/kernel": (None, "model"),
        "conv/input/kernel": (None, "data", None),
        "conv/output/kernel": (None, None, "model"),
    }
    assert names(reconstruct(small, plan)) == names(model)


@pytest.mark.parametrize("axis", [0, 1])
def test_sharding_of_a_stack_is_carried_over(axis, no_mesh):
    model = Stacked(nnx.Rngs(0), axis=axis, kernel_init=partitioned("data", "model"))
    plan = exact_plan(model, SEQUENCE[..., :8], method="svd", rank=2)
    small = tdjax.factorize(model, plan)
    assert names(small) == {
        "blocks/input/kernel": ("data", None),
        "blocks/output/kernel": (None, "model"),
    }
    assert names(reconstruct(small, plan)) == names(model)


def test_errors_name_the_layer(network, plan):
    key = jax.random.key(0)
    bad = nnx.clone(network)
    bad.first.kernel[...] = bad.first.kernel[...].at[0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="layer 'first': the kernel holds NaN"):
        tdjax.factorize(bad, plan, key=key)
    with pytest.raises(KeyError, match=r"no layer 'first'; its modules are: \(model\), dropout"):
        tdjax.factorize(network.blocks[0], plan, key=key)
    bad = nnx.clone(network)
    bad.first = nnx.Linear(12, 8, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=re.escape("layer 'first': kernel of shape (12, 8)")):
        tdjax.factorize(bad, plan, key=key)
    bad.first = nnx.Embed(12, 16, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="layer 'first': the plan was made for dense, not Embed"):
        tdjax.factorize(bad, plan, key=key)
    with pytest.raises(ValueError, match=r"layer 'first' is not factorised, but an nnx\.Linear"):
        reconstruct(network, plan)
    small = tdjax.factorize(network, plan, key=key)
    with pytest.raises(ValueError, match="layer 'first' of the model is factorised already"):
        tdjax.factorize(small, plan, key=key)
    wider = tdjax.make_plan(network, [Rule(path="first", method="svd", rank=3)], SEQUENCE)
    with pytest.raises(ValueError, match="layer 'first' was factorised by another plan"):
        reconstruct(small, wider)
    with pytest.raises(ValueError, match="matches no layer; layers are: first"):
        tdjax.make_plan(network, [Rule(path="none", method="svd", rank=3)], SEQUENCE)
    grouped = nnx.Conv(4, 8, (3, 3), feature_group_count=2, rngs=nnx.Rngs(0))
    plan = exact_plan(grouped, IMAGE, method="svd", rank=2)
    with pytest.raises(ValueError, match="pass key="):
        tdjax.factorize(grouped, exact_plan(grouped, IMAGE, method="cp", rank=2))
    plain = nnx.Conv(2, 8, (3, 3), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="has 1 feature groups, but the plan was made for 2"):
        tdjax.factorize(plain, plan)
    einsum = nnx.Einsum("abc,cde->abde", (12, 2, 4), rngs=nnx.Rngs(0))
    small = tdjax.factorize(einsum, full_rank(einsum, SEQUENCE, "svd"))
    small.einsum_str = "abc,cde->ae"
    with pytest.raises(ValueError, match="more than a matrix product"):
        small(SEQUENCE)


def test_things_that_are_no_modules():
    for call in (
        lambda: tdjax.make_plan(3, [], SEQUENCE),
        lambda: tdjax.layer_table(Network, SEQUENCE),
        lambda: tdjax.factorize(None, Plan(())),
    ):
        with pytest.raises(
            TypeError, match=r"expected a flax.linen.Module, a flax.nnx.Module or a func"
        ):
            call()


def test_automatic_format():
    model = random_model(lambda r: nnx.Conv(4, 6, (3, 3), rngs=r))
    rules = [Rule(path="", method="auto", compression=0.5)]
    plan = tdjax.make_plan(model, rules, IMAGE)
    assert len(plan.factorised) == 1
    shapes = nnx.eval_shape(lambda: nnx.clone(model))
    with pytest.raises(ValueError, match="shape alone"):
        tdjax.make_plan(shapes, rules, IMAGE)
    with pytest.raises(ValueError, match=r"layer '' holds a shape and no array"):
        tdjax.factorize(shapes, plan)
