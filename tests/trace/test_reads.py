"""Layers whose array the model changes, or reads elsewhere, stay dense; all others do not."""

import random

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, struct
from plain_models import normal

import tdjax
from tdjax import Rule
from tdjax.trace import matrices
from tdjax.trace.recorder import CalledLayer, Recorder, trace_model

X, IDS = normal(0, 4, 8), jnp.arange(8).reshape(2, 4)
RULES = [Rule(path=".*", method="svd", rank=2)]
CHANGED, READ = "the model changes its", "is read elsewhere too"


def mapped(cls, function, **settings):
    """A layer whose variables go through a function."""
    return nn.map_variables(cls, "params", trans_in_fn=function, init=True, **settings)


def on_arrays(function):
    return lambda variables: jax.tree.map(function, variables)


class Calls(nn.Module):
    """One function of a model."""

    function: object

    @nn.compact
    def __call__(self, x):
        return self.function(self, x)


def kernel_of(layer, name="kernel"):
    return layer.variables["params"][name]


def tied(how):
    def function(self, ids):
        table = nn.Embed(8, 8, name="table")
        x = nn.Dense(8, name="free")(table(ids))
        if how == "attend":
            return table.attend(x)
        if how == "property":
            return x @ table.embedding.T
        if how == "apply":
            head = {"params": {"kernel": kernel_of(table, "embedding").T}}
            return nn.Dense(8, use_bias=False).apply(head, x)
        return x @ self.variables["params"]["table"]["embedding"].T

    return function


def penalised(self, x):
    layer = nn.Dense(8, name="read")
    y = layer(x)
    self.sow("losses", "l2", (layer.get_variable("params", "kernel") ** 2).sum())
    return nn.Dense(8, name="free")(y)


def sown(self, x):
    layer = nn.Dense(8, name="read")
    y = layer(x)
    self.sow("losses", "kernel", kernel_of(layer))
    return nn.Dense(8, name="free")(y)


def returned(self, x):
    layer = nn.Dense(8, name="read")
    return nn.Dense(8, name="free")(layer(x)), {"kernel": kernel_of(layer)}


def averaged(self, x):
    layer, mean = nn.Dense(8, name="read"), self.variable("ema", "kernel", jnp.zeros, (8, 8))
    y = layer(x)
    mean.value = 0.9 * mean.value + 0.1 * kernel_of(layer)
    return y @ mean.value


def fed(self, x):
    """A layer of its own on another one's kernel."""
    layer = nn.Dense(8, name="read")
    return layer(x).sum() + nn.Dense(8, name="free")(kernel_of(layer))


def scanned(function, axis=0):
    def step(self, x, _):
        return function(self, x), None

    class Block(nn.Module):
        __call__ = nn.compact(step)

    stacked = nn.scan(
        nn.remat(Block), variable_axes={"params": axis}, split_rngs={"params": True}, length=3
    )
    return lambda self, x: stacked(name="stack")(x, None)[0]


def gated(self, x):
    first, second = nn.Dense(8, name="first"), nn.Dense(8, name="second")
    if self.is_initializing():
        return first(x) + second(x)
    return nn.cond(x.sum() > 0, lambda _, x: first(x), lambda _, x: second(x), self, x)


def repeated(self, x):
    layer = nn.Dense(8, name="free")
    if self.is_initializing():
        return layer(x)
    return nn.while_loop(
        lambda _, state: state[0] < 3,
        lambda _, state: (state[0] + 1, jnp.tanh(layer(state[1]))),
        self, (0, x), broadcast_variables="params",
    )[1]  # fmt: skip


def forces(self, x):
    """The gradient of an energy, whose own reads of the kernels are the layers'."""
    first, second = nn.Dense(8, name="first"), nn.Dense(8, name="second")
    if self.is_initializing():
        return second(first(x))
    return jax.grad(lambda x: second(jax.checkpoint(jnp.tanh)(first(x))).sum())(x)


# Each with what is said of its layers, None of those that are factorised.
LINEN = {
    "attend": (tied("attend"), {"table": None, "free": None}),
    "variables": (tied("variables"), {"table": READ, "free": None}),
    "property": (tied("property"), {"table": READ, "free": None}),
    "apply": (tied("apply"), {"table": READ, "free": None}),
    "penalised": (penalised, {"read": READ, "free": None}),
    "sown": (sown, {"read": "(kept as 'losses/kernel/0')", "free": None}),
    "returned": (returned, {"read": "(the model returns it)", "free": None}),
    "averaged": (averaged, {"read": READ}),
    "fed": (fed, {"read": "(by layer 'free')", "free": None}),
    "identity": (lambda _, x: mapped(nn.Dense, lambda v: v)(8, name="d")(x), {"d": None}),
    "cast": (
        lambda _, x: mapped(nn.Dense, on_arrays(lambda k: k.astype(jnp.bfloat16)))(8, name="d")(x),
        {"d": None},
    ),
    "binary": (
        lambda _, x: mapped(nn.Dense, on_arrays(jnp.sign))(8, name="d")(x),
        {"d": CHANGED},
    ),
    "transposed": (
        lambda _, x: mapped(nn.Dense, on_arrays(jnp.transpose))(8, name="d")(x),
        {"d": CHANGED},
    ),
    "nested": (
        lambda _, x: mapped(Calls, lambda v: v)(
            lambda _, x: mapped(nn.Dense, on_arrays(jnp.sign))(8, name="in")(
                nn.Dense(8, name="free")(x)
            ),
            name="out",
        )(x),
        {"out/in": CHANGED, "out/free": None},
    ),
    "weight_norm": (
        lambda _, x: nn.WeightNorm(nn.Dense(8, name="d"))(nn.Dense(8, name="free")(x)),
        {"d": CHANGED, "free": None},
    ),
    "spectral_norm": (
        lambda _, x: nn.SpectralNorm(nn.Dense(8, name="d"))(x, update_stats=False),
        {"d": CHANGED},
    ),
    "scan": (scanned(lambda _, x: jnp.tanh(nn.Dense(8, name="d")(x))), {"stack/d": None}),
    "scan of penalties": (
        scanned(lambda self, x: penalised(self, x) + self.variables["params"]["read"]["bias"]),
        {"stack/read": READ, "stack/free": None},
    ),
    "vmap": (
        lambda _, x: nn.vmap(
            nn.Dense, variable_axes={"params": 1}, split_rngs={"params": True},
            in_axes=None, axis_size=3,
        )(8, name="d")(x),
        {"d": None},
    ),
    "cond": (gated, {"first": None, "second": None}),
    "while": (repeated, {"free": None}),
    "gradient": (forces, {"first": None, "second": None}),
    "mixed precision": (
        lambda _, x: nn.DenseGeneral((2, 4), dtype=jnp.bfloat16, name="d")(x),
        {"d": None},
    ),
}  # fmt: skip


def agree(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        np.testing.assert_allclose(one, other, rtol=0.05, atol=0.05)


def verdicts(plan):
    return {entry.layer.path: entry.reason for entry in plan.layers}


def same_verdicts(plan, expected):
    found = verdicts(plan)
    assert found.keys() == expected.keys()
    for path, reason in expected.items():
        assert (found[path] is None) == (reason is None), found
        assert reason is None or reason in found[path]


@pytest.mark.parametrize("name", LINEN)
def test_linen(name):
    function, expected = LINEN[name]
    model, x = Calls(function), IDS if "table" in expected else X
    variables = dict(model.init(jax.random.key(0), x))
    variables.pop("losses", None)
    plan = tdjax.make_plan(model, variables, RULES, x)
    same_verdicts(plan, expected)
    assert plan.size_before == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    small = {**variables, "params": tdjax.factorize_params(variables["params"], plan)}
    dense = {**variables, "params": tdjax.reconstruct_params(small["params"], plan)}
    run = {"mutable": ["losses", "ema"]} if "read" in expected else {}
    agree(tdjax.factorize(model, plan).apply(small, x, **run), model.apply(dense, x, **run))


class Tied(nnx.Module):
    """A head that reads an embedding's table, an L2 term, and an array that is kept."""

    def __init__(self, rngs):
        self.table = nnx.Embed(8, 8, rngs=rngs)
        self.penalised = nnx.Linear(8, 8, rngs=rngs)
        self.kept = nnx.Linear(8, 8, rngs=rngs)
        self.free = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, ids):
        x = self.free(self.kept(self.penalised(self.table(ids))))
        self.penalty = nnx.Intermediate((self.penalised.kernel[...] ** 2).sum())
        self.last = nnx.Intermediate(self.kept.kernel[...])
        return x @ self.table.embedding[...].T


class Binary(nnx.Module):
    """Kernels that are signs while a layer is called, and a transformed layer that is left."""

    def __init__(self, rngs):
        self.signs = nnx.Linear(8, 8, rngs=rngs)
        self.free = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        kernel = self.signs.kernel[...]
        self.signs.kernel[...] = jnp.sign(kernel)
        y = self.signs(x)
        self.signs.kernel[...] = kernel
        return nnx.jit(lambda layer, y: layer(y))(self.free, y)


class Stack(nnx.Module):
    """Layers in a stack, each taken by its index."""

    def __init__(self, rngs):
        self.layers = nnx.vmap(lambda key: nnx.Linear(8, 8, rngs=nnx.Rngs(key)))(
            jax.random.split(rngs(), 3)
        )

    def __call__(self, x):
        graph, state = nnx.split(self.layers)

        def turn(k, x):
            return jnp.tanh(nnx.merge(graph, jax.tree.map(lambda p: p[k], state))(x))

        return jax.lax.fori_loop(1, 3, turn, turn(0, x))


NNX = {
    Tied: {"table": READ, "penalised": READ, "kept": "(kept as 'last')", "free": None},
    Binary: {"signs": CHANGED, "free": None},
    Stack: {"layers": None},
}


@pytest.mark.parametrize("cls", NNX)
def test_nnx(cls):
    model, x = cls(nnx.Rngs(0)), IDS if cls is Tied else X
    plan = tdjax.make_plan(model, RULES, x)
    same_verdicts(plan, NNX[cls])
    small = tdjax.factorize(model, plan)
    agree(small(x), tdjax.nnx.reconstruct(small, plan)(x))


@pytest.mark.skipif(not hasattr(nnx, "WeightNorm"), reason="this Flax has none")
def test_wrappers_of_nnx_that_normalise():
    class Normed(nnx.Module):
        def __init__(self, rngs):
            self.one = nnx.WeightNorm(nnx.Linear(8, 8, rngs=rngs), rngs=rngs)
            self.other = nnx.SpectralNorm(nnx.Linear(8, 8, rngs=rngs), rngs=rngs)

        def __call__(self, x):
            return self.other(self.one(x))

    plan = tdjax.make_plan(Normed(nnx.Rngs(0)), RULES, X)
    paths = ("one/layer_instance", "other/layer_instance")
    same_verdicts(plan, dict.fromkeys(paths, CHANGED))


BOTH_WAYS = "its calls multiply by its kernel in more than one way"


def test_a_kernel_that_is_multiplied_by_in_two_ways():
    def function(_, x):
        layer = nn.Einsum((8, 8), use_bias=False, name="e")
        return layer(jnp.tanh(layer(x, "bd,de->be")), "be,de->bd")

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.e = nnx.Einsum("bd,de->be", (8, 8), rngs=rngs)

        def __call__(self, x):
            return self.e(jnp.tanh(self.e(x)), "be,de->bd")

    model = Calls(function)
    variables = model.init(jax.random.key(0), X)
    same_verdicts(tdjax.make_plan(model, variables, RULES, X), {"e": BOTH_WAYS})
    net = Model(nnx.Rngs(0))
    same_verdicts(tdjax.make_plan(net, RULES, X), {"e": BOTH_WAYS})
    small = tdjax.factorize(net, tdjax.make_plan(net, RULES, X, method=lambda net, x: net.e(x)))
    with pytest.raises(ValueError, match="layer 'e': its equation 'be,de->bd' multiplies by its"):
        small(X)


def test_a_layer_of_several_axes_that_is_read_elsewhere_is_saved(tmp_path):
    def function(self, x):
        y = nn.DenseGeneral((2, 4), name="read")(x)
        z = nn.Dense(8, name="free")(x)
        return y.sum(axis=1), z, self.variables["params"]["read"]["kernel"].sum()

    model = Calls(function)
    variables = model.init(jax.random.key(0), X)
    plan = tdjax.make_plan(model, variables, RULES, X)
    same_verdicts(plan, {"read": READ, "free": None})
    params = tdjax.factorize_params(variables["params"], plan)
    tdjax.save_factorised(tmp_path / "saved", params, plan)
    assert tdjax.load_factorised(tmp_path / "saved")[1] == plan


def test_what_is_asked_of_a_kernel_beside_its_values():
    class Asking(nnx.Module):
        def __init__(self, rngs):
            self.asked, self.free = (nnx.Linear(8, 8, rngs=rngs) for _ in range(2))

        def __call__(self, x):
            return self.free(self.asked(x)) / self.asked.kernel.shape[0]

    same_verdicts(
        tdjax.make_plan(Asking(nnx.Rngs(0)), RULES, X),
        {"asked": "(the model asks for it, or its shape)", "free": None},
    )
    # Linen does not tell, so the factorised model says it.
    for name, ask in (
        ("kernel", lambda self, d, t: self.variables["params"]["d"]["kernel"].size),
        ("kernel", lambda self, d, t: d.variables["params"]["kernel"].ndim),
        ("embedding", lambda self, d, t: t.embedding.shape[0]),
    ):

        def function(self, ids, ask=ask):
            table, layer = nn.Embed(8, 8, name="t"), nn.Dense(8, name="d")
            return layer(table(ids)) / ask(self, layer, table)

        model = Calls(function)
        variables = model.init(jax.random.key(0), IDS)
        plan = tdjax.make_plan(model, variables, RULES, IDS)
        small = {"params": tdjax.factorize_params(variables["params"], plan)}
        with pytest.raises(ValueError, match=f"asks for the {name} of a factorised layer"):
            tdjax.factorize(model, plan).apply(small, IDS)


# What leaves a kernel as it is, wherever its axes lie, and what does not.
VIEWS = (
    lambda k: k.astype(jnp.bfloat16),
    lambda k: k[None][0],
    lambda k: k.T.T,
    lambda k: k.reshape(1, *k.shape, 1)[0, ..., 0],
    lambda k: jax.lax.optimization_barrier(k),
    lambda k: jax.jit(lambda k: k)(k),
    lambda k: jax.checkpoint(lambda k: k.astype(jnp.float32))(k),
    lambda k: jax.lax.cond(True, lambda k: k, lambda k: k.astype(jnp.float32).astype(k.dtype), k),
    lambda k: jax.lax.fori_loop(0, 2, lambda _, k: k, k),
    lambda k: jax.lax.scan(lambda c, _: (c, None), k, None, length=2)[0],
)
CHANGES = (
    lambda k: 2 * k,
    lambda k: k.T,
    lambda k: k[::-1],
    lambda k: k[jnp.array([1, 0, 2, 3])],
    lambda k: k.astype(jnp.int8).astype(jnp.float32),
    lambda k: k - k.mean(),
    lambda k: k.reshape(2, 8).T.reshape(4, 4),
    lambda k: jax.lax.scan(lambda c, _: (c.T, None), k, None, length=3)[0],
    lambda k: jax.lax.cond(True, lambda k: k, jnp.transpose, k),
    lambda k: jax.lax.fori_loop(0, 2, lambda _, k: jnp.roll(k, 1), k),
)


def random_program(rng):
    """A chain of layers, one of a stack, and what is to be said of them."""
    state = {"alone": normal(1, 4, 4), "stack": normal(2, 3, 4, 4)}
    changed, read = rng.choice([None, *state]), rng.choice([None, *state])
    recorder = Recorder()

    class Module:
        features = 4

    def call(path, kernel, x):
        shapes = {"kernel": state[path].shape}
        layer = CalledLayer(
            path, Module, "kernel", shapes, lambda call: matrices.dense(call, 4), array=(path,)
        )
        views = rng.sample(VIEWS, 2)
        if path == changed:
            views.insert(rng.randrange(3), rng.choice(CHANGES))
        for view in views:
            kernel = view(kernel)
        kernel = kernel.astype(jnp.float32)
        return recorder.call(layer, kernel, "__call__", lambda x: x @ kernel, (x,), {})

    def model(state, args, _):
        x = call("alone", state["alone"], args[0])
        x = jax.lax.scan(
            lambda x, kernel: (jnp.tanh(call("stack", kernel, x)), None), x, state["stack"]
        )[0]
        x = call("alone", state["alone"], x)
        return x if read is None else x + state[read].sum()

    obstacles = {
        path: CHANGED if path == changed else READ if path == read else None for path in state
    }
    return trace_model(recorder, model, state, normal(3, 2, 4)), obstacles


@pytest.mark.parametrize("seed", range(12))
def test_random_programs(seed):
    trace, expected = random_program(random.Random(seed))
    for path, layer in trace.layers.items():
        reason = expected[path]
        assert (layer.obstacle is None) == (reason is None), (path, layer.obstacle, reason)
        assert reason is None or reason in layer.obstacle


class Square(nn.Module):
    """As many layers as each has inputs and outputs, along any axis of their array."""

    axis: int

    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return jnp.tanh(nn.Dense(4, use_bias=False, name="d")(x)), None

        settings = {"variable_axes": {"params": self.axis}, "split_rngs": {"params": True}}
        return nn.scan(Block, **settings, length=4)(name="stack")(x, None)[0]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_stack_lies_along_the_axis_that_is_sliced(axis):
    model, x = Square(axis), normal(0, 2, 4)
    variables = model.init(jax.random.key(0), x)
    plan = tdjax.make_plan(model, variables, [Rule(path=".*", method="svd", rank=1)], x)
    assert plan.layers[0].layer.storage.stack == axis
    factors = tdjax.factorize_params(variables["params"], plan)
    dense = {"params": tdjax.reconstruct_params(factors, plan)}
    agree(tdjax.factorize(model, plan).apply({"params": factors}, x), model.apply(dense, x))


@pytest.mark.parametrize("dtype", ["int8", "complex64", "float8_e4m3fn"])
def test_numbers_that_no_factors_hold(dtype):
    model, x = nn.Dense(8, dtype=None if dtype == "complex64" else "float32"), X
    kernel = jnp.ones((8, 8), dtype)
    params = {"kernel": kernel, "bias": jnp.zeros(8)}
    plan = tdjax.make_plan(model, {"params": params}, RULES, x)
    assert plan.layers[0].reason == f"its kernel holds {dtype} numbers"
    found = tdjax.factorize(model, plan).apply({"params": params}, x)
    np.testing.assert_array_equal(found, model.apply({"params": params}, x))
    real = {"params": {**params, "kernel": jnp.ones((8, 8))}}
    plan = tdjax.make_plan(model, real, RULES, x)
    with pytest.raises(ValueError, match=f"layer '': its kernel holds {dtype} numbers"):
        tdjax.factorize_params(params, plan)


@struct.dataclass
class Quantised:
    """A kernel of several arrays."""

    values: object
    scale: object

    def __getitem__(self, _):
        return self

    value = property(lambda self: self)


def test_a_quantised_kernel_is_no_array():
    def multiply(x, kernel, dimensions, **_):
        values, scale = kernel.values, kernel.scale
        return jax.lax.dot_general(x, values[...].astype(x.dtype), dimensions) * scale[...]

    class Model(nnx.Module):
        def __init__(self, rngs):
            own = {"dot_general": multiply, "promote_dtype": lambda arrays, **_: arrays}
            self.quantised = nnx.Linear(8, 8, rngs=rngs, **own)
            values, scale = jnp.ones((8, 8), jnp.int8), jnp.ones((1, 8))
            self.quantised.kernel = Quantised(nnx.Param(values), nnx.Param(scale))
            self.free = nnx.Linear(8, 8, rngs=rngs)

        def __call__(self, x):
            return self.free(self.quantised(x))

    model = Model(nnx.Rngs(0))
    plan = tdjax.make_plan(model, RULES, X)
    same_verdicts(plan, {"quantised": "its kernel is no array, but Quantised", "free": None})
    assert plan.size_before == 64 + 8 + 8 + 64 + 8
    assert plan.macs_before == 2 * 64
    small = tdjax.factorize(model, plan)
    agree(small(X), tdjax.nnx.reconstruct(small, plan)(X))


def test_equal_modules_under_jit_are_told_apart():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jnp.tanh(nn.Dense(8, name="d")(x))

    def model(block):
        return Calls(lambda _, x: block(name="two")(block(name="one")(x)))

    x, rules = normal(5, 100, 8), RULES
    jitted, plain = model(nn.jit(Block)), model(Block)
    variables = plain.init(jax.random.key(0), x)
    plan = tdjax.make_plan(jitted, variables, rules, x)
    assert plan == tdjax.make_plan(plain, variables, rules, x)
    found = tdjax.collect_moments(jitted, variables, [x])
    for path, moments in tdjax.collect_moments(plain, variables, [x]).items():
        np.testing.assert_allclose(found[path].inputs, moments.inputs, rtol=1e-5)
