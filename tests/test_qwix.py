"""Quantisation by qwix, before and after factorising."""

import warnings

import flax.linen as nn
import jax
import pytest
from flax import nnx
from plain_models import normal

import tdjax

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    qwix = pytest.importorskip("qwix")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:rngs must be provided"),
]
X = normal(0, 4, 6, 6, 16)
INT8 = [qwix.QuantizationRule(module_path=".*", weight_qtype="int8", act_qtype="int8")]
RULES = [
    tdjax.Rule(path="conv", method="tucker", compression=0.5),
    tdjax.Rule(path=".*", method="svd", compression=0.3),
]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3), name="conv")(x)).mean(axis=(1, 2))
        x = nn.remat(nn.DenseGeneral)((4, 6), name="general")(x)
        return nn.Einsum((4, 6, 20), "bhk,hko->bo", name="einsum")(x)


class NetNNX(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(16, 16, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(16, 24, rngs=rngs)

    def __call__(self, x):
        return self.dense(nnx.relu(self.conv(x)).mean(axis=(1, 2)))


def off(found, expected):
    return float(abs(found - expected).max() / abs(expected).max())


def number_of_int8(tree):
    return sum(leaf.dtype == "int8" for leaf in jax.tree.leaves(tree))


def test_linen():
    net = Net()
    variables = net.init(jax.random.key(0), X)
    plan = tdjax.make_plan(net, variables, RULES, X)
    stages = sum(len(entry.stages) for entry in plan.layers)
    assert stages == 7
    small = tdjax.factorize(net, plan)
    params = {"params": tdjax.factorize_params(variables["params"], plan)}
    expected = small.apply(params, X)
    model = qwix.quantize_model(small, qwix.PtqProvider(INT8))
    template = jax.eval_shape(model.init, jax.random.key(0), X)["params"]
    quantised = qwix.quantize_params(params["params"], template)
    assert number_of_int8(quantised) == stages
    found = model.apply({"params": quantised}, X)
    assert 1e-4 < off(found, expected) < 0.05
    # Training in the quantised network, quantised last or first, or twice.
    trained = qwix.quantize_model(small, qwix.QtProvider(INT8))
    first = tdjax.factorize(qwix.quantize_model(net, qwix.QtProvider(INT8)), plan)
    twice = qwix.quantize_model(first, qwix.QtProvider(INT8))
    for other in (trained, first, twice):
        assert off(other.apply(params, X), found) < 1e-3


class Two(nn.Module):
    """Its call is made of other methods, which may be called alone."""

    def setup(self):
        self.first, self.second = nn.Dense(24), nn.Dense(20)

    def encode(self, x):
        return nn.relu(self.first(x))

    def __call__(self, x):
        return self.second(self.encode(x))


@pytest.mark.parametrize("empty", [False, True])
def test_linen_methods_and_adapters(empty):
    net, x = Two(), X.mean(axis=(1, 2))
    variables = net.init(jax.random.key(0), x)
    rules = [tdjax.Rule(path=".*", method="svd", rank=3)]
    plan = tdjax.Plan(()) if empty else tdjax.make_plan(net, variables, rules, x)
    small = tdjax.factorize(net, plan)
    params = tdjax.factorize_params(variables["params"], plan)
    layers = 2 if empty else 4
    expected = small.apply({"params": params}, x)
    quantised = qwix.quantize_model(small, qwix.PtqProvider(INT8))
    template = jax.eval_shape(quantised.init, jax.random.key(0), x)["params"]
    assert number_of_int8(template) == layers
    found = quantised.apply({"params": qwix.quantize_params(params, template)}, x)
    assert 1e-4 < off(found, expected) < 0.05
    # Low-rank adapters beside every factor, zero at first, and their gradients.
    adapted = qwix.apply_lora_to_model(
        small, qwix.LoraProvider(module_path=".*", rank=2, alpha=2.0)
    )
    made = adapted.init(jax.random.key(0), x)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(made)
    adapters = [path for path, _ in leaves if "lora" in str(path[-1])]
    assert len(adapters) == 2 * layers
    merged = jax.tree_util.tree_map_with_path(
        lambda path, own: own if "lora" in str(path[-1]) else _at(params, path), made
    )
    assert off(adapted.apply({"params": merged}, x), expected) < 1e-5
    # Methods that are quantised are, whoever calls them.
    trained = qwix.quantize_model(small, qwix.QtProvider(INT8), methods=("encode",))
    plain = small.apply({"params": params}, x, method="encode")
    for method in ("encode", lambda model, x: model.encode(x)):
        assert 1e-4 < off(trained.apply({"params": params}, x, method=method), plain) < 0.05
    gradients = jax.grad(lambda own: trained.apply({"params": own}, x).sum())(params)
    assert all(float(abs(own).max()) > 0 for own in jax.tree.leaves(gradients))


def _at(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree


def test_stored_factors_are_handed_over_as_floats():
    net = Net()
    variables = net.init(jax.random.key(0), X)
    plan = tdjax.make_plan(net, variables, RULES, X).with_dtypes("int8")
    small = tdjax.factorize(net, plan)
    stored = tdjax.factorize_params(variables["params"], plan)
    expected = small.apply({"params": stored}, X)
    model = qwix.quantize_model(small, qwix.PtqProvider(INT8))
    template = jax.eval_shape(model.init, jax.random.key(0), X)["params"]
    quantised = qwix.quantize_params(tdjax.dequantize(stored, plan), template)
    assert number_of_int8(quantised) == 7
    assert off(model.apply({"params": quantised}, X), expected) < 0.05


def test_nnx():
    model = NetNNX(nnx.Rngs(0))
    plan = tdjax.make_plan(model, RULES, X)
    small = tdjax.factorize(model, plan)
    expected = small(X)
    found = qwix.quantize_model(small, qwix.PtqProvider(INT8), X)
    assert number_of_int8(nnx.state(found)) == 5
    assert 1e-4 < off(found(X), expected) < 0.05
    trained = qwix.quantize_model(small, qwix.QtProvider(INT8), X)
    assert off(trained(X), found(X)) < 1e-3
    gradients = nnx.grad(lambda own: own(X).sum())(trained)
    assert all(float(abs(own).max()) > 0 for own in jax.tree.leaves(gradients))
    adapted = qwix.apply_lora_to_model(
        small, qwix.LoraProvider(module_path=".*", rank=2, alpha=2.0), X
    )
    assert off(adapted(X), expected) < 1e-5
    stored = tdjax.factorize(model, plan.with_dtypes("int8"))
    full = tdjax.dequantize(stored, plan.with_dtypes("int8"))
    again = qwix.quantize_model(full, qwix.PtqProvider(INT8), X)
    assert number_of_int8(nnx.state(again)) == 5
    assert off(again(X), stored(X)) < 0.05
