"""The ways to compute a stage, against XLA's own convolution, alone and through whole layers."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export, lax
from plain_models import normal, scaled_normal

import tdjax
from tdjax import Form, Layer, Plan, PlannedLayer, Rule
from tdjax.compute import rule
from tdjax.compute.convolve import Apart, StageConvolution, apart, dense_kernel
from tdjax.compute.programs import channels_last
from tdjax.compute.rule import is_reconstructed, way_of
from tdjax.nnx.model import with_chains
from tdjax.plan.decide import plan_layer


def close(found, expected, tolerance):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


# ---------------------------------------------------------------- one convolution


def drawn(seed):
    """The arguments of a convolution, of one to three axes, and the ways that there are for it."""
    random = np.random.default_rng(seed)
    axes = 1 + seed % 3
    sizes, window, strides, spread, wide = (
        random.integers(low, high, axes).tolist()
        for low, high in ((5, 8), (1, 4), (1, 4), (1, 3), (1, 3))
    )
    groups, inputs, outputs = [(6, 1, 1), (3, 2, 4), (1, 5, 4)][(seed // 3) % 3]
    pairs = [tuple(pair) for pair in random.integers(-1, 4, (axes, 2)).tolist()]
    padding = ["SAME", "VALID", "SAME_LOWER", pairs][seed % 4]
    x = random.normal(size=(seed % 2 + 1, *sizes, groups * inputs))
    kernel = random.normal(size=(*window, inputs, groups * outputs))
    asked = {
        "window_strides": strides,
        "padding": padding,
        # With that, a padding by its name is refused.
        "lhs_dilation": spread if padding is pairs else None,
        "rhs_dilation": wide,
        "dimension_numbers": channels_last(axes + 2),
        "feature_group_count": groups,
    }
    return x, kernel, asked, {6: ("shifted", "split"), 3: ("split",), 1: ()}[groups] + ("product",)


def with_gradients(convolve, x, kernel, asked):
    y, back = jax.vjp(lambda *arrays: convolve(*arrays, **asked), x, kernel)
    return y, *back(jnp.cos(y))


@pytest.mark.parametrize("seed", range(12))
def test_ways_equal_xlas_own_convolution(seed, float64):
    x, kernel, asked, ways = drawn(seed)

    @jax.jit
    def both(x, kernel):
        own = with_gradients(lax.conv_general_dilated, x, kernel, asked)
        return own, [with_gradients(StageConvolution(way), x, kernel, asked) for way in ways]

    with float64():
        expected, others = both(x, kernel)
    for found in others:
        for one, other in zip(found, expected, strict=True):
            close(one, other, 1e-12)


def taken(way, x, kernel, groups=1, **settings):
    """A convolution of a named way, and the primitives that compute it."""
    asked = {"dimension_numbers": channels_last(x.ndim), "feature_group_count": groups, **settings}
    ones = (1,) * (x.ndim - 2)
    program = jax.make_jaxpr(lambda *own: StageConvolution(way)(*own, ones, "SAME", **asked))
    made = program(x, kernel)
    return made.out_avals[0], {str(eqn.primitive) for eqn in made.eqns}


DEPTHWISE = normal(0, 2, 6, 4), normal(1, 3, 1, 4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounded_once(dtype):
    x, kernel = (own.astype(dtype) for own in DEPTHWISE)
    settings = ((1,), "SAME", None, None, channels_last(3), 4)
    ways = [StageConvolution(way) for way in ("shifted", "split", "product")]

    @jax.jit
    def run(x, kernel):
        wide = x.astype(jnp.float32), kernel.astype(jnp.float32)
        more = {"preferred_element_type": jnp.float32}
        return (
            lax.conv_general_dilated(*wide, *settings),
            [way(x, kernel, *settings) for way in ways],
            [way(x, kernel, *settings, **more) for way in ways],
        )

    expected, half, single = run(x, kernel)
    for found, more in zip(half, single, strict=True):
        assert (found.dtype, more.dtype) == (dtype, jnp.float32)
        close(found, expected, float(jnp.finfo(dtype).eps))
        close(more, expected, 1e-6)


def test_what_no_program_computes_is_xlas_own():
    x, kernel = DEPTHWISE
    assert "conv_general_dilated" not in taken("shifted", x, kernel, 4)[1]
    # No depthwise kernel, an empty result, whole numbers, forced, and settings that are not known.
    assert "conv_general_dilated" in taken("shifted", x, normal(2, 3, 2, 4), 2)[1]
    assert "conv_general_dilated" in taken("shifted", x[:, :0], kernel, 4)[1]
    whole = jnp.ones((1, 5, 4), jnp.int32), jnp.ones((3, 1, 4), jnp.int32)
    assert "conv_general_dilated" in taken("shifted", *whole, 4)[1]
    assert "conv_general_dilated" in taken("shifted", x, kernel, 4, batch_group_count=1)[1]
    with tdjax.xla_ways():
        assert "conv_general_dilated" in taken("shifted", x, kernel, 4)[1]
    with pytest.raises(TypeError, match="dtype"):
        taken("product", x, kernel.astype(jnp.bfloat16), 4)


@pytest.mark.parametrize("way", ["shifted", "split", "product"])
def test_batches_that_are_not_known_yet_and_vmap(way):
    x, kernel = normal(3, 4, 3, 5, 4), DEPTHWISE[1]
    settings = ((2,), "SAME", None, (2,), channels_last(3), 4)

    def convolve(x, kernel):
        return StageConvolution(way)(x, kernel, *settings)

    (batch,) = export.symbolic_shape("b")
    shape = jax.ShapeDtypeStruct((batch, *x.shape[2:]), x.dtype)
    exported = export.export(jax.jit(convolve))(shape, kernel)
    kernels = jnp.stack([kernel * number for number in range(1, 5)])
    together = jax.jit(jax.vmap(convolve))(x, kernels)
    for number in range(2):
        expected = lax.conv_general_dilated(x[number], kernels[number], *settings)
        close(together[number], expected, 1e-6)
    close(exported.call(x[0, :1], kernel), together[0, :1], 1e-6)
    close(exported.call(x[0], kernel), together[0], 1e-6)


# ---------------------------------------------------------------- whole layers


class Net(nn.Module):
    """Convolutions of all kinds, side by side."""

    @nn.compact
    def __call__(self, image, sequence):
        return [
            nn.Conv(6, (3, 3), name="same")(image),
            nn.Conv(
                6,
                (3, 2),
                2,
                [(1, 0), (2, 1)],
                kernel_dilation=(1, 2),
                precision="highest",
                name="pairs",
            )(image),
            nn.Conv(6, (3, 3), padding="CIRCULAR", name="circular")(image),
            nn.Conv(8, (3, 3), (2, 1), "VALID", feature_group_count=2, name="groups")(image[0]),
            nn.Conv(6, (3, 3), padding=1, input_dilation=2, dtype=jnp.bfloat16, name="half")(image),
            nn.Conv(6, (4,), padding="CAUSAL", use_bias=False, name="causal")(sequence),
            nn.ConvTranspose(6, (3, 3), (2, 2), transpose_kernel=True, name="up")(image[..., :6]),
        ]


class NetNNX(nnx.Module):
    """The same."""

    def __init__(self, rngs):
        self.same = nnx.Conv(8, 6, (3, 3), rngs=rngs)
        self.pairs = nnx.Conv(
            8,
            6,
            (3, 2),
            2,
            padding=[(1, 0), (2, 1)],
            kernel_dilation=(1, 2),
            precision="highest",
            rngs=rngs,
        )
        self.circular = nnx.Conv(8, 6, (3, 3), padding="CIRCULAR", rngs=rngs)
        self.groups = nnx.Conv(
            8, 8, (3, 3), (2, 1), padding="VALID", feature_group_count=2, rngs=rngs
        )
        self.half = nnx.Conv(
            8, 6, (3, 3), padding=1, input_dilation=2, dtype=jnp.bfloat16, rngs=rngs
        )
        self.causal = nnx.Conv(8, 6, (4,), padding="CAUSAL", use_bias=False, rngs=rngs)
        self.up = nnx.ConvTranspose(6, 6, (3, 3), (2, 2), transpose_kernel=True, rngs=rngs)

    def __call__(self, image, sequence):
        named = ("same", "pairs", "circular")
        return [
            *(getattr(self, name)(image) for name in named),
            self.groups(image[0]),
            self.half(image),
            self.causal(sequence),
            self.up(image[..., :6]),
        ]


IMAGE, SEQUENCE = normal(4, 2, 7, 6, 8), normal(5, 2, 9, 8)
RULES = {
    "same": {"method": "cp", "sparse": 0.2},
    "pairs": {"method": "cp", "spatial": "merged"},
    "circular": {"method": "svd", "splits": 2},
    "groups": {"method": "tucker"},
    "half": {"method": "tt"},
    "causal": {"method": "cp"},
    "up": {"method": "svd", "fold": "rows"},
}
# None of their stages has feature groups.
FAST = {
    "same": "shifted",
    "pairs": "shifted",
    "circular": "split",
    "groups": "split",
    "half": "xla",
    "causal": ("product", "shifted", "xla"),
    "up": "split",
}


def planned(table):
    found = {layer.path: layer for layer in table}
    return Plan(
        tuple(plan_layer(found[path], Rule(path=path, compression=0.5, **own))
              for path, own in RULES.items())
    )  # fmt: skip


def drawn_factors(model, plan):
    """Variables of the factorised model: kernels and biases drawn, nonzeros spread evenly."""
    shapes = jax.eval_shape(tdjax.factorize(model, plan).init, jax.random.key(0), IMAGE, SEQUENCE)
    size = math.prod(plan["same"].layer.kernel_shape)

    def draw(path, leaf):
        if leaf.dtype == jnp.int32:
            return jnp.asarray(np.arange(*leaf.shape) * size // leaf.size, jnp.int32)
        return scaled_normal(len(jax.tree_util.keystr(path)), (*leaf.shape, 1), np.float32)[..., 0]

    return jax.tree_util.tree_map_with_path(draw, shapes)


class Side(NamedTuple):
    """A model of one module system, and how it is factorised with factors given."""

    plan: Plan
    of: Callable[[Plan], Callable[[Any], Any]]
    params: Any


def linen_side():
    model = Net()
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGE, SEQUENCE)
    plan = planned(tdjax.layer_table(model, shapes, (IMAGE, SEQUENCE)))
    variables = drawn_factors(model, plan)

    def of(plan):
        small = tdjax.factorize(model, plan)
        return lambda params: small.apply({**variables, "params": params}, IMAGE, SEQUENCE)

    return Side(plan, of, variables["params"]), variables


def nnx_side(variables):
    """Of the factors of the other one."""
    model = NetNNX(nnx.Rngs(0))
    plan = planned(tdjax.layer_table(model, (IMAGE, SEQUENCE)))
    factors = {**variables["params"]}
    (indices,) = jax.tree.leaves({k: v for k, v in variables.items() if k != "params"})
    factors["same"] = {**factors["same"]}
    factors["same"]["sparse"] = {**factors["same"]["sparse"], "indices": indices}

    def of(plan):
        graph, _, rest = nnx.split(with_chains(model, plan, factors), nnx.Param, ...)
        return lambda params: nnx.merge(graph, params, rest)(IMAGE, SEQUENCE)

    return Side(plan, of, nnx.split(with_chains(model, plan, factors), nnx.Param, ...)[1])


def outputs(side, plan):
    """What the factorised model returns, and the gradient of a loss."""
    apply = side.of(plan)

    def run(params):
        ys = apply(params)
        return sum(jnp.sum(jnp.square(y.astype(jnp.float32))) for y in ys), ys

    (_, ys), gradient = jax.jit(jax.value_and_grad(run, has_aux=True))(side.params)
    return ys, gradient


@pytest.fixture(scope="module")
def sides():
    """Both models, and what XLA's own convolutions make of their equal factors."""
    linen, variables = linen_side()
    made = {"linen": linen, "nnx": nnx_side(variables)}
    return made, outputs(linen, linen.plan.with_ways("xla"))


@pytest.mark.parametrize("adapter", ["linen", "nnx"])
@pytest.mark.parametrize("ways", ["rule", "fast", "product", "reconstruct"])
def test_layers_are_equal_whatever_the_way(ways, adapter, sides):
    made, (expected, slopes) = sides
    side = made[adapter]
    named = {} if ways == "rule" else FAST if ways == "fast" else ways
    plan = side.plan.with_ways(named)
    found, gradient = outputs(side, plan)
    for path, one, other in zip(RULES, found, expected, strict=True):
        assert one.dtype == other.dtype
        # Rounded to half precision between stages, too.
        close(one, other, 0.02 if path == "half" else 2e-5)
    if adapter == "linen":
        for path in RULES.keys() - {"half"}:
            for one, other in zip(
                *map(jax.tree.leaves, (gradient[path], slopes[path])), strict=True
            ):
                close(one, other, 2e-4)
    program = str(jax.make_jaxpr(side.of(plan))(side.params))
    convolutions = len(re.findall(r"= conv_general_dilated\[", program))
    grouped = len(re.findall("feature_group_count=[^1]", program))
    # Of sparse corrections there is one more; of groups that are convolved densely, one.
    known = {"fast": (21, 0), "product": (1, 0), "reconstruct": (7, 1)}
    assert (convolutions, grouped) == known.get(ways, (convolutions, grouped))


def test_functions_are_equal_whatever_the_way():
    x, params = normal(6, 2, 8, 9), {"kernel": normal(7, 16, 8, 3), "up": normal(8, 3, 16, 4)}

    def apply(params, x):
        y = lax.conv_general_dilated(x, params["kernel"], (2,), "SAME")
        y = jnp.moveaxis(y, 1, 2)
        return lax.conv_transpose(y, params["up"], (2,), "SAME")

    table = tdjax.layer_table(apply, params, x)
    plan = Plan(tuple(
        plan_layer(layer, Rule(path=".*", method="cp", compression=0.5)) for layer in table
    ))  # fmt: skip
    factors = {
        entry.layer.path: {
            stage.name: {"kernel": normal(k, *stage.kernel_shape)}
            for k, stage in enumerate(entry.stages)
        }
        for entry in plan.layers
    }
    expected = tdjax.factorize(apply, plan.with_ways("xla"))(factors, x)
    for way in ("shifted", "reconstruct"):
        close(tdjax.factorize(apply, plan.with_ways(way))(factors, x), expected, 1e-5)
    # A compiled function is not taken where another is asked for.
    small = tdjax.factorize(apply, plan)
    close(small(factors, x), expected, 1e-5)
    with tdjax.xla_ways():
        found = small(factors, x)
        program = str(jax.make_jaxpr(small)(factors, x))
    close(found, expected, 1e-5)
    assert program.count("= conv_general_dilated[") == 6


# ---------------------------------------------------------------- the rule, and ways in plans


def layer(width, size, **settings):
    return Layer("c", "conv", (3, 3, width, width), 1, (size, size), (size, size), **settings)


def kept(layer, keep=0.25, **rule):
    return plan_layer(layer, Rule(path=".*", compression=1 - keep, **rule))


def test_the_rule_follows_what_was_measured():
    """As the table of `tdjax.compute.rule` has it."""
    small, middle, wide = (32, 16, 32), (64, 8, 32), (256, 14, 1)
    known = [
        ({"method": "cp"}, [False, False, False]),
        ({"method": "tucker"}, [False, False, False]),
        ({"method": "svd", "fold": "rows"}, [False, False, False]),
        ({"method": "svd", "splits": 4}, [True, False, False]),
        ({"method": "tucker", "keep": 0.5}, [True, False, False]),
    ]
    for own, expected in known:
        found = []
        for width, size, batch in (small, middle, wide):
            entry = kept(layer(width, size), **own)
            found.append(is_reconstructed(entry, (batch, size, size, width), "cpu"))
            assert not is_reconstructed(entry, (batch, size, size, width), "gpu")
        assert found == expected, own
    # A map that leaves the cache, and one of so many examples that are not known.
    large = kept(layer(64, 56), method="cp")
    assert is_reconstructed(large, (16, 56, 56, 64), "cpu")
    assert not is_reconstructed(large, (1, 56, 56, 64), "cpu")
    assert is_reconstructed(large, (*export.symbolic_shape("b"), 56, 56, 64), "cpu")
    # Of a sparse correction a dense convolution is computed anyway.
    sparse = kept(layer(64, 8), method="tucker", sparse=0.1)
    assert is_reconstructed(sparse, (32, 8, 8, 64), "cpu")
    assert [way_of(*own, "cpu") for own in (((3, 1, 1, 9), 9), ((5, 5, 1, 9), 9))] == [
        "shifted", "xla"
    ]  # fmt: skip
    assert [way_of((3, 3, width, 64), 4, "cpu") for width in (8, 16)] == ["xla", "split"]
    assert way_of((3, 1, 1, 9), 9, "tpu") == "xla"


def test_ways_are_saved_with_the_plan():
    convolution, dense = layer(32, 16), Layer("d", "dense", (64, 64))
    other = replace(convolution, path="e")
    plain = Plan((kept(convolution, method="cp"), kept(dense, method="svd"), PlannedLayer(other)))
    plan = plain.with_ways("shifted")
    assert plan["c"].ways == ("xla", "shifted", "shifted", "xla")
    assert (plan["d"].ways, plan["e"].ways) == ((), ())
    assert Plan.from_json(plan.to_json()) == plan != plain
    assert (json.loads(plain.to_json())["version"], json.loads(plan.to_json())["version"]) == (1, 4)
    assert "c is computed so: input: xla, spatial_0: shifted" in str(plan)
    whole = plain.with_ways({"c": "reconstruct"})
    assert Plan.from_json(whole.to_json())["c"].ways == ("reconstruct",)
    assert "c is computed by its dense kernel, multiplied out in each call" in str(whole)
    assert (whole.macs, whole.size) == (plain.macs, plain.size)
    assert whole.with_ways({"c": ()}) == plain

    raw = json.loads(plan.to_json())
    for ways, message in (
        (["xla"], "1 ways for its 4 stages"),
        (["shifted"] * 4, "stage 'input' cannot be computed as 'shifted'"),
        (["fast"] * 4, "way 'fast': known are"),
        ([], "holds what is not written as version 4"),
    ):
        changed = json.loads(json.dumps(raw))
        changed["layers"][0]["ways"] = ways
        with pytest.raises(ValueError, match=message):
            Plan.from_json(json.dumps(changed))
    with pytest.raises(ValueError, match="field 'ways' is none of version 3"):
        Plan.from_json(json.dumps(raw | {"version": 3}))


def test_ways_that_a_layer_cannot_have_are_refused():
    plan = Plan(
        (kept(layer(32, 16), method="cp"), kept(Layer("d", "dense", (64, 64)), method="svd"))
    )
    with pytest.raises(ValueError, match="way 'fast': known are xla"):
        plan.with_ways("fast")
    with pytest.raises(ValueError, match="way 'fast': known are xla"):
        plan.with_ways({"c": "fast"})
    with pytest.raises(ValueError, match="layer 'd': ways are for convolutions"):
        plan.with_ways({"d": "reconstruct"})
    with pytest.raises(KeyError, match="no layer 'x'"):
        plan.with_ways({"x": "xla"})
    with pytest.raises(ValueError, match="layer 'c': ways are for factorised layers"):
        PlannedLayer(plan["c"].layer, ways=("xla",))


def test_a_layers_own_function_stays():
    calls = []

    def convolve(*args, **settings):
        calls.append(args[1].shape)
        return lax.conv_general_dilated(*args, **settings)

    x = IMAGE[..., :6]
    model = nn.Conv(6, (3, 3), conv_general_dilated=convolve)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    plan = Plan(tuple(kept(own, 0.9, method="cp") for own in tdjax.layer_table(model, shapes, x)))
    small = tdjax.factorize(model, plan)
    params = jax.eval_shape(small.init, jax.random.key(0), x)
    calls.clear()
    jax.eval_shape(small.apply, params, x)
    assert len(calls) == 4
    # It says of itself that it computes the same, and computes what nothing else does.
    convolve.same_as_lax = True
    rank = plan[""].ranks[0]
    ends = [(1, 1, 6, rank), (1, 1, rank, 6)]
    for way, expected in (("shifted", ends), ("reconstruct", [(3, 3, 6, 6)])):
        calls.clear()
        jax.eval_shape(tdjax.factorize(model, plan.with_ways({"": way})).apply, params, x)
        assert calls == expected


def test_the_dense_kernel_is_rounded_once():
    entry = PlannedLayer(layer(8, 4), Form("tt", (4, 5, 6)))
    kernels = {
        stage.name: normal(k, *stage.kernel_shape).astype(jnp.bfloat16)
        for k, stage in enumerate(entry.stages)
    }
    wide = [np.asarray(own, np.float64) for own in kernels.values()]
    first, rows, columns, last = wide
    expected = np.einsum("ca,hab,wbd,dt->hwct", first[0, 0], rows[:, 0], columns[0], last[0, 0])
    found = dense_kernel(entry, kernels)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=2**-8, atol=1e-4)


# ---------------------------------------------------------------- computed apart


def test_what_is_computed_apart_is_the_same_with_its_derivatives():
    x = jnp.asarray([1.5, -0.0, jnp.nan, jnp.inf, -jnp.inf, 3e38], jnp.float32)
    for dtype in (jnp.float32, jnp.bfloat16):
        own = x.astype(dtype)
        assert apart(own).dtype == dtype
        np.testing.assert_array_equal(apart(own).astype(jnp.float32), own.astype(jnp.float32))
        assert bool(jnp.signbit(apart(own)[1]))
        np.testing.assert_array_equal(jax.grad(lambda x: apart(x).sum())(own), jnp.ones(6, dtype))
    assert "select" in str(jax.make_jaxpr(apart)(x))
    assert apart(jnp.arange(3)).dtype == jnp.int32
    assert apart(None) is None
    with tdjax.xla_ways():
        assert apart(x) is x


class Tail(nn.Module):
    """Convolutions with a mean behind them."""

    @nn.compact
    def __call__(self, x):
        for name in ("first", "second"):
            x = nn.relu(nn.Conv(8, (3, 3), name=name)(x))
        return nn.Dense(3, name="out")(x.mean(axis=(1, 2)))


class TailInNNX(nnx.Module):
    def __init__(self, rngs):
        for name in ("first", "second"):
            setattr(self, name, nnx.Conv(8, 8, (3, 3), rngs=rngs))
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        for conv in (self.first, self.second):
            x = nnx.relu(conv(x))
        return self.out(x.mean(axis=(1, 2)))


def test_layers_that_a_plan_keeps_dense_are_computed_apart():
    x, rules = normal(0, 2, 6, 6, 8), [Rule(path="first", method="svd", rank=3)]

    def selections(call, *args):
        return str(jax.make_jaxpr(call)(*args)).count("select_n")

    model, variables = Tail(), Tail().init(jax.random.key(0), x)
    plan = tdjax.make_plan(model, variables, rules, x)
    dense = Plan(tuple(PlannedLayer(entry.layer) for entry in plan.layers))
    for own in (plan, dense):
        small = tdjax.factorize(model, own)
        params = tdjax.factorize_params(variables, own)
        assert selections(small.apply, params, x) - selections(model.apply, variables, x) == 3
    np.testing.assert_allclose(
        tdjax.factorize(model, dense).apply(variables, x), model.apply(variables, x), rtol=1e-6
    )
    other = TailInNNX(nnx.Rngs(0))
    plan = tdjax.make_plan(other, rules, x)
    small = tdjax.factorize(other, plan)
    assert selections(small, x) - selections(other, x) == 3
    # On the way back nothing is left of it.
    again = tdjax.nnx.reconstruct(small, plan)
    assert isinstance(small.second.conv_general_dilated, Apart)
    assert again.second.conv_general_dilated is other.second.conv_general_dilated
    assert again.out.dot_general is other.out.dot_general
    function = {"a": normal(1, 3, 3, 8, 8), "b": normal(2, 3, 3, 8, 8)}

    def apply(params, x):
        numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        for kernel in (params["a"], params["b"]):
            x = jax.nn.relu(lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **numbers))
        return x.mean(axis=(1, 2))

    plan = tdjax.make_plan(apply, function, [Rule(path="a", method="svd", rank=3)], x)
    factors = tdjax.factorize_params(function, plan)
    small = tdjax.factorize(apply, plan)
    assert selections(small, factors, x) - selections(apply, function, x) == 2


# ---------------------------------------------------------------- factors with zeros behind them


def test_ranks_that_a_cpu_computes_faster():
    def wide(width, ranks, backend="cpu", inputs=None, **form):
        own = Layer("c", "conv", (3, 3, inputs or width, width), 1, (8, 8), (8, 8))
        return rule.widened(PlannedLayer(own, Form(ranks=ranks, **form)), backend).ranks

    low = {"method": "svd"}
    assert [wide(128, (r,), **low) for r in (12, 13, 17, 24, 25, 32, 40, 49, 63, 64, 70)] == [
        (12,), (16,), (17,), (24,), (32,), (32,), (40,), (64,), (64,), (64,), (70,)
    ]  # fmt: skip
    assert wide(64, (21,), inputs=3, **low) == (48,)
    # What comes out of one window and goes into the next is whole vectors.
    assert wide(64, (18,), fold="rows", **low) == (24,)
    assert wide(64, (3, 19), method="tucker") == (3, 24)
    assert wide(64, (21, 7, 50), method="tt") == (24, 8, 64)
    for kept_so in ({"method": "cp"}, {"method": "svd", "splits": 2}):
        assert wide(64, (13,), **kept_so) == (13,)
    assert wide(64, (13,), "gpu", **low) == (13,)


@pytest.mark.parametrize("form", ["svd", "rows", "tucker", "tt"])
def test_zeros_behind_factors_change_nothing(form):
    form = {
        "svd": Form("svd", (13,)), "rows": Form("svd", (7,), fold="rows"),
        "tucker": Form("tucker", (5, 7)), "tt": Form("tt", (5, 6, 13)),
    }[form]  # fmt: skip
    x, xla = normal(0, 2, 6, 6, 8), {"": ("xla",) * (4 if form.method == "tt" else 2)}
    xla = {"": ("xla",) * 3} if form.method == "tucker" else xla
    model = nn.Conv(16, (3, 3))
    variables = model.init(jax.random.key(0), x)
    (own,) = tdjax.layer_table(model, variables, x)
    plan = Plan((PlannedLayer(own, form),)).with_ways(xla)
    params = tdjax.factorize_params(variables, plan)
    found = tdjax.factorize(model, plan).apply(params, x)
    expected = model.apply(tdjax.reconstruct_params(params, plan), x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    shapes = [stage.kernel_shape for stage in rule.widened(plan[""], "cpu").stages]
    assert shapes != [stage.kernel_shape for stage in plan[""].stages]
    assert str(shapes[1]).strip("()") in re.sub(
        r"f32\[([\d,]+)\]",
        lambda m: m[1].replace(",", ", "),
        str(jax.make_jaxpr(tdjax.factorize(model, plan).apply)(params, x)),
    )
    other = nnx.Conv(8, 16, (3, 3), rngs=nnx.Rngs(0))
    other.kernel[...], other.bias[...] = (variables["params"][name] for name in ("kernel", "bias"))
    (same,) = tdjax.layer_table(other, x)
    small = tdjax.factorize(other, Plan((PlannedLayer(same, form),)).with_ways(xla))
    np.testing.assert_allclose(small(x), expected, rtol=1e-4, atol=1e-5)

    def apply(params, x):
        numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        return lax.conv_general_dilated(x, params["k"], (1, 1), "SAME", **numbers)

    kernels = {"k": variables["params"]["kernel"]}
    (same,) = tdjax.layer_table(apply, kernels, x)
    plan = Plan((PlannedLayer(same, form),)).with_ways({"k": xla[""]})
    found = tdjax.factorize(apply, plan)(tdjax.factorize_params(kernels, plan), x)
    np.testing.assert_allclose(found + variables["params"]["bias"], expected, rtol=1e-4, atol=1e-5)
