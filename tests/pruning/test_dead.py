import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from plain_layers import random_like
from plain_models import Scanned, normal, random_variables
from plain_networks import ResidualNetwork, UNet

import tdjax
from experiments.models import GaripovNet


class Chain(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (3, 3), name="first")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.gelu(nn.ConvTranspose(5, (2, 2), transpose_kernel=True, name="second")(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.silu(nn.Dense(7, name="third")(x))
        return nn.Dense(3, name="fourth")(x)


def cut(params, path, rows):
    """A copy with rows of a layer's kernel set to zero, along its last axis but one."""
    own = params[path]
    kernel = own["kernel"].at[..., jnp.array(rows), :].set(0)
    return {**params, path: {**own, "kernel": kernel}}


def test_a_chain_of_linen_layers():
    x = normal(0, 4, 8, 8, 2)
    variables = random_like(jax.eval_shape(Chain().init, jax.random.key(0), x))
    params = variables["params"]
    params = cut(params, "fourth", [0, 3])
    # Neuron 3 of "third" is dead, and it alone takes channel 2 of "second"; that of channel 4
    # is zero throughout.
    kernel = params["third"]["kernel"].reshape(4, 4, 5, 7)
    kernel = kernel.at[:, :, 4].set(0).at[:, :, 2].set(0).at[:, :, 2, 3].set(1.0)
    params["third"] = {**params["third"], "kernel": kernel.reshape(-1, 7)}
    # The kernel of "second" is stored as (..., out, in).
    kernel = params["second"]["kernel"].at[..., 1].set(0)
    params["second"] = {**params["second"], "kernel": kernel}
    variables = {**variables, "params": params}
    found = tdjax.remove_dead(Chain(), variables, x)
    assert {path: stay.tolist() for path, stay in found.kept.items()} == {
        "first": [0, 2, 3, 4, 5],
        "second": [0, 1, 3],
        "third": [1, 2, 4, 5, 6],
    }
    assert found.obstacles == {"fourth": "the model returns its outputs"}
    shapes = jax.tree.map(jnp.shape, found.variables)
    assert shapes["params"]["first"] == {"kernel": (3, 3, 2, 5), "bias": (5,)}
    assert shapes["params"]["norm"] == {"scale": (5,), "bias": (5,)}
    assert shapes["batch_stats"]["norm"] == {"mean": (5,), "var": (5,)}
    assert shapes["params"]["second"] == {"kernel": (2, 2, 3, 5), "bias": (3,)}
    assert shapes["params"]["third"] == {"kernel": (48, 5), "bias": (5,)}
    assert shapes["params"]["fourth"] == {"kernel": (5, 3), "bias": (3,)}
    expected = Chain().apply(variables, x)
    got = jax.jit(found.model.apply)(found.variables, x)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    fresh = jax.eval_shape(found.model.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, fresh) == shapes

    again = tdjax.remove_dead(found.model, found.variables, x)
    assert again.kept == {}
    layers = {layer.path: layer for layer in tdjax.layer_table(found.model, found.variables, x)}
    assert layers["first"].kernel_shape == (3, 3, 2, 5)
    rules = [tdjax.Rule(path="third", method="svd", rank=2)]
    plan = tdjax.make_plan(found.model, found.variables, rules, x)
    small = tdjax.factorize(found.model, plan)
    params = tdjax.factorize_params(found.variables["params"], plan)
    dense = tdjax.reconstruct_params(params, plan)
    np.testing.assert_allclose(
        small.apply({**found.variables, "params": params}, x),
        found.model.apply({**found.variables, "params": dense}, x),
        rtol=1e-4,
        atol=1e-5,
    )


def test_garipovs_network():
    model = GaripovNet(widths=(6, 6, 8, 8, 8, 8))
    x = normal(1, 2, 32, 32, 3)
    variables = random_like(jax.eval_shape(model.init, jax.random.key(0), x))
    params = variables["params"]
    for layer in ("conv2", "conv3", "conv4", "conv5", "conv6", "linear"):
        params = cut(params, layer, [1, 4])
    variables = {**variables, "params": params}
    found = tdjax.remove_dead(model, variables, x)
    assert set(found.kept) == {f"conv{k}" for k in range(1, 7)}
    assert set(found.obstacles) == {"linear"}
    np.testing.assert_allclose(
        found.model.apply(found.variables, x), model.apply(variables, x), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("model", [ResidualNetwork(), UNet()], ids=["residual", "unet"])
def test_shortcuts_are_left_alone(model):
    x = normal(2, 2, 8, 8, 3)
    variables = random_like(jax.eval_shape(model.init, jax.random.key(0), x))
    # All inputs of all layers but the first two thirds are dead.
    params = jax.tree.map(
        lambda leaf: leaf.at[..., 5:, :].set(0) if leaf.ndim > 1 else leaf, variables["params"]
    )
    variables = {**variables, "params": params}
    found = tdjax.remove_dead(model, variables, x)
    np.testing.assert_allclose(
        found.model.apply(found.variables, x), model.apply(variables, x), rtol=1e-4, atol=1e-5
    )
    if isinstance(model, ResidualNetwork):
        # Inside a block only the first convolution is alone with the second.
        assert set(found.kept) == {"ResidualBlock_0/Conv_0", "ResidualBlock_1/Conv_0"}
        assert "go through" in found.obstacles["stem_conv"]


def test_what_is_no_chain():
    x = normal(3, 2, 8)
    variables = random_variables(Scanned(), x)
    found = tdjax.remove_dead(Scanned(), variables, x)
    assert found.kept == {}
    assert found.obstacles["stack/dense"] == "it is a stack of layers"

    class Softmax(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.softmax(nn.Dense(4)(x)))

    variables = random_variables(Softmax(), x)
    variables["params"] = cut(variables["params"], "Dense_0", [0])
    found = tdjax.remove_dead(Softmax(), variables, x)
    assert found.kept == {}
    assert "its outputs go through" in found.obstacles["Dense_1"]


def test_a_layer_without_use_keeps_one_neuron():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.relu(nn.Dense(4)(x)))

    x = normal(4, 3, 5)
    variables = random_variables(Two(), x)
    variables["params"] = cut(variables["params"], "Dense_0", [0, 1, 2, 3])
    found = tdjax.remove_dead(Two(), variables, x)
    assert found.kept["Dense_1"].tolist() == [0]
    np.testing.assert_array_equal(found.model.apply(found.variables, x), Two().apply(variables, x))


class NnxChain(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.hidden = nnx.Linear(6 * 16, 5, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.head(nnx.tanh(self.hidden(x.reshape(x.shape[0], -1))))


def test_a_chain_of_nnx_layers():
    x = normal(5, 3, 4, 4, 2)
    model = NnxChain(nnx.Rngs(0))
    model.eval()
    model.norm.mean[...] = normal(6, 6)
    model.head.kernel[...] = model.head.kernel[...].at[2].set(0)
    kernel = model.hidden.kernel[...].reshape(4, 4, 6, 5).at[:, :, 1].set(0).reshape(96, 5)
    model.hidden.kernel[...] = kernel
    found = tdjax.remove_dead(model, x)
    small = found.model
    assert {path: stay.tolist() for path, stay in found.kept.items()} == {
        "conv": [0, 2, 3, 4, 5],
        "hidden": [0, 1, 3, 4],
    }
    assert repr(found) == "SmallerModel(NnxChain; neurons kept: conv 5, hidden 4; left alone: head)"
    assert small.conv.kernel.shape == (3, 3, 2, 5)
    assert (small.conv.out_features, small.norm.num_features) == (5, 5)
    assert (small.hidden.in_features, small.hidden.out_features) == (80, 4)
    assert model.conv.kernel.shape == (3, 3, 2, 6)
    np.testing.assert_allclose(small(x), model(x), rtol=1e-5, atol=1e-6)
    assert tdjax.remove_dead(small, x).kept == {}
