"""Arrays stored in fewer bits, and models that hold them."""

import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization
from plain_models import normal

import tdjax
from tdjax.params.quantised import integers
from tdjax.params.stored import quantised

X = normal(0, 4, 6, 6, 3)
RULES = [
    tdjax.Rule(path="conv", method="tucker", rank=(2, 3)),
    tdjax.Rule(path="dense", method="svd", rank=7),
]
DTYPES = ("bfloat16", "int8", "int4")


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(15, (3, 3), name="conv")(x)).mean(axis=(1, 2))
        return nn.Dense(5, name="head")(nn.relu(nn.Dense(31, name="dense")(x)))


class NetNNX(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 15, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(15, 31, rngs=rngs)
        self.head = nnx.Linear(31, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv(x)).mean(axis=(1, 2))
        return self.head(nnx.relu(self.dense(x)))


def held(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def same(one, other):
    return jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one, other))


@pytest.fixture(scope="module")
def network():
    variables = Net().init(jax.random.key(0), X)
    return variables, tdjax.make_plan(Net(), variables, RULES, X)


@pytest.mark.parametrize(("dtype", "largest"), [("int8", 127), ("int4", 7)])
@pytest.mark.parametrize("how", [jax.jit, lambda function: function])
def test_integers(dtype, largest, how):
    array = normal(1, 3, 4, 5).at[..., 2].set(0)
    found = how(lambda x: quantised(x, dtype))(array)
    values, scale = np.asarray(integers(found)), np.asarray(found.scale)
    assert found.shape == array.shape
    assert abs(values).max() <= largest
    assert found.values.nbytes == (3 * 4 * 3 if dtype == "int4" else 3 * 4 * 5)
    # No whole numbers are nearer, but where the few are cut off at their largest.
    left, inside = abs(np.asarray(array) / scale - values), abs(values) < largest
    assert (left[inside] <= 0.5001).all()
    np.testing.assert_array_equal(np.asarray(found.to_array()), values * scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linen(network, dtype):
    variables, plan = network
    floats = tdjax.factorize_params(variables["params"], plan)
    plan = plan.with_dtypes(dict.fromkeys(("conv", "dense", "head"), dtype))
    small, model = tdjax.factorize_params(variables["params"], plan), tdjax.factorize(Net(), plan)
    assert held(small) == plan.bytes < held(floats)
    assert same(small, tdjax.quantize(floats, plan))
    found = jax.jit(model.apply)({"params": small}, X)
    assert found.dtype == jnp.float32
    full = tdjax.dequantize(small, plan)
    assert {leaf.dtype for leaf in jax.tree.leaves(full)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(model.apply({"params": full}, X), found, atol=1e-5)
    dense = tdjax.reconstruct_params(small, plan)
    np.testing.assert_allclose(Net().apply({"params": dense}, X), found, atol=1e-5)
    if dtype == "int4":
        # Layers that stay dense are rounded too.
        own, other = (tdjax.feature_errors(Net(), variables, of, [X]) for of in (plan, dense))
        assert own.keys() == other.keys() == {"conv", "dense", "head"}
        assert own["head"]["relative"] == pytest.approx(other["head"]["relative"], rel=1e-4)
    # Rounding is small beside what the numbers can tell apart.
    exact = model.apply({"params": floats}, X)
    error = float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact))
    assert error < {"bfloat16": 0.01, "int8": 0.02, "int4": 0.3}[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_checkpoints(network, dtype):
    variables, plan = network
    plan = plan.with_dtypes(dict.fromkeys(("conv", "dense", "head"), dtype))
    small, folder = tdjax.factorize_params(variables["params"], plan), tempfile.mkdtemp()
    tdjax.save_factorised(folder, small, plan)
    for like in (None, variables["params"], small):
        again, found = tdjax.load_factorised(folder, like=like)
        assert found == plan
        assert same(again, small)
    with pytest.raises(ValueError, match="is stored as float32, but the plan says"):
        tdjax.save_factorised(folder, tdjax.dequantize(small, plan), plan)
    # And by Flax's own functions, with a template by shapes.
    template = jax.eval_shape(
        lambda held: tdjax.quantize(held, plan),
        tdjax.factorize(Net(), plan).init(jax.random.key(2), X)["params"],
    )
    read = serialization.from_bytes(template, serialization.to_bytes(small))
    assert same(read, small)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nnx(dtype):
    model = NetNNX(nnx.Rngs(0))
    plan = tdjax.make_plan(model, RULES, X)
    floats = tdjax.factorize(model, plan)
    plan = plan.with_dtypes(dict.fromkeys(("conv", "dense", "head"), dtype))
    small = tdjax.factorize(model, plan)
    assert held(nnx.state(small)) == plan.bytes < held(nnx.state(floats))
    assert same(nnx.state(small), nnx.state(tdjax.quantize(floats, plan)))
    found = nnx.jit(lambda model, x: model(x))(small, X)
    assert found.dtype == jnp.float32
    for other in (tdjax.dequantize(small, plan), tdjax.nnx.reconstruct(small, plan)):
        np.testing.assert_allclose(other(X), found, atol=1e-5)
    folder = tempfile.mkdtemp()
    tdjax.save_factorised(folder, small, plan)
    for like in (model, small):
        again, _ = tdjax.load_factorised(folder, like=like)
        assert same(nnx.state(again), nnx.state(small))
        np.testing.assert_allclose(again(X), found, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_functions(network, dtype):
    variables, expected = network
    apply = lambda params, x: Net().apply({"params": params}, x)  # noqa: E731
    rules = [
        tdjax.Rule(path="conv/kernel", method="tucker", rank=(2, 3)),
        tdjax.Rule(path="dense/kernel", method="svd", rank=7),
    ]
    plan = tdjax.make_plan(apply, variables["params"], rules, X)
    paths = [f"{path}/kernel" for path in ("conv", "dense", "head")]
    plan = plan.with_dtypes(dict.fromkeys(paths, dtype))
    small = tdjax.factorize_params(variables["params"], plan)
    assert held(small) == plan.bytes
    expected = expected.with_dtypes(dict.fromkeys(("conv", "dense", "head"), dtype))
    other = tdjax.factorize_params(variables["params"], expected)
    found = tdjax.factorize(apply, plan)(small, X)
    wanted = tdjax.factorize(Net(), expected).apply({"params": other}, X)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        scanned = nn.scan(
            nn.remat(Row), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return scanned(name="rows")(x, None)[0]


class Row(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(9, name="inner")(nn.Dense(9, name="dense")(x)), None


@pytest.mark.parametrize("dtype", DTYPES)
def test_stacks_and_tables(dtype):
    class Words(nn.Module):
        @nn.compact
        def __call__(self, x):
            table = nn.Embed(40, 9, name="table")
            return table.attend(Stack(name="stack")(table(x)))

    x = jnp.arange(8).reshape(2, 4)
    variables = Words().init(jax.random.key(0), x)
    rules = [tdjax.Rule(path=".*(dense|table)", method="svd", rank=3)]
    plan = tdjax.make_plan(Words(), variables, rules, x)
    plan = plan.with_dtypes({entry.layer.path: dtype for entry in plan.layers})
    small = tdjax.factorize_params(variables["params"], plan)
    model = tdjax.factorize(Words(), plan)
    assert held(small) == plan.bytes
    full = tdjax.dequantize(small, plan)
    found = model.apply({"params": small}, x)
    np.testing.assert_allclose(found, model.apply({"params": full}, x), atol=1e-5)


def test_what_is_refused(network):
    variables, plan = network
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables["params"])
    small = plan.with_dtypes("int8")
    with pytest.raises(ValueError, match="only float32 is stored as int8, not float16"):
        tdjax.factorize_params(jax.tree.map(lambda leaf: leaf.astype(jnp.float16), halves), small)
    params = tdjax.factorize_params(variables["params"], small)
    for function in (
        lambda: tdjax.balance_factors(params, small),
        lambda: tdjax.refine(Net(), variables, params, small, [X]),
    ):
        with pytest.raises(ValueError, match="give tdjax"):
            function()
    boxed = jax.tree.map(lambda leaf: nn.Partitioned(leaf, ("a",) * leaf.ndim), variables)
    with pytest.raises(ValueError, match="arrays whose axes have names"):
        tdjax.factorize_params(boxed["params"], small)
