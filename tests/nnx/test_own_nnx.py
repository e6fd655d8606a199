"""NNX layers of classes that are not Flax's own."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tdjax
from tdjax.trace.products import products_of


class Named(nnx.Linear):
    """A subclass without a line of its own."""


class Turned(nnx.Module):
    """Its kernel is (outputs, inputs), beside a bias and a number."""

    def __init__(self, inputs, outputs, rngs):
        self.w = nnx.Param(jax.random.normal(rngs.params(), (outputs, inputs)) / 3)
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.scale = 0.5

    def __call__(self, x):
        return self.scale * (x @ self.w[...].T) + self.bias[...]


class Normalised(nnx.Module):
    """Changes its kernel before it multiplies."""

    def __init__(self, rngs):
        self.w = nnx.Param(jax.random.normal(rngs.params(), (8, 8)) / 3)

    def __call__(self, x):
        return x @ (self.w[...] / jnp.linalg.norm(self.w[...]))


class Network(nnx.Module):
    """All of them, computed again and in a scan."""

    def __init__(self, rngs):
        self.first = Turned(6, 8, rngs)
        self.named = Named(8, 8, rngs=rngs)
        self.normalised = Normalised(rngs)

        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def made(rngs):
            return Turned(8, 8, rngs)

        self.blocks = made(rngs)

    def __call__(self, x):
        x = nnx.remat(lambda module, x: module(x))(self.first, x)
        x = self.normalised(jnp.tanh(self.named(x)))

        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def turn(block, x):
            return jnp.tanh(block(x))

        return turn(self.blocks, x)


MODEL, X = Network(nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (100, 6))
PLAN = tdjax.make_plan(MODEL, [tdjax.Rule(path=".*", method="svd", rank=2)], X)
SMALL = tdjax.factorize(MODEL, PLAN)


def test_they_are_layers_and_counted():
    assert {entry.layer.path for entry in PLAN.factorised} == {"first", "named", "blocks"}
    assert PLAN["normalised"].reason == "w: it is read otherwise than by a product, by mul"
    graph, state = nnx.split(MODEL)
    count = products_of(jax.make_jaxpr(lambda s: nnx.merge(graph, s)(X))(state))
    assert PLAN.macs_before * len(X) == sum(count.values())
    graph, state = nnx.split(SMALL)
    after = products_of(jax.make_jaxpr(lambda s: nnx.merge(graph, s)(X))(state))
    assert PLAN.macs * len(X) == sum(after.values())
    assert PLAN.size == sum(leaf.size for leaf in jax.tree.leaves(nnx.state(SMALL, nnx.Param)))


def test_chains_compute_what_their_reconstructions_do(tmp_path):
    dense = tdjax.nnx.reconstruct(SMALL, PLAN)
    assert type(dense.first) is Turned
    expected = dense(X)
    np.testing.assert_allclose(SMALL(X), expected, atol=1e-5)
    gradients = nnx.jit(nnx.grad(lambda model: (model(X) ** 2).mean()))(SMALL)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))
    for again in (copy.deepcopy(SMALL), nnx.clone(SMALL)):
        np.testing.assert_allclose(again(X), expected, atol=1e-5)
    again = pickle.loads(pickle.dumps(SMALL.first))
    np.testing.assert_allclose(again(X), SMALL.first(X), atol=1e-6)
    tdjax.save_factorised(tmp_path / "net", SMALL, PLAN)
    loaded, _ = tdjax.load_factorised(tmp_path / "net", like=MODEL)
    np.testing.assert_allclose(loaded(X), expected, atol=1e-5)


def test_moments_and_errors():
    moments = tdjax.collect_moments(MODEL, [X], loss_fn=lambda y, _: (y**2).sum(axis=1))
    rows = np.asarray(X, np.float64)
    np.testing.assert_allclose(moments["first"].inputs[0], rows.T @ rows / len(rows), atol=1e-5)
    assert moments["blocks"].inputs.shape == (3, 1, 8, 8)
    other = nnx.clone(MODEL)
    other.first.w[...] = 1.1 * MODEL.first.w[...]
    errors = tdjax.feature_errors(MODEL, other, [X])
    np.testing.assert_allclose(errors["first"]["relative"], 0.1, rtol=1e-4)


class OwnConv(nnx.Conv):
    """A subclass without a line of its own."""


class Pair(nnx.Module):
    """Two matrices."""

    def __init__(self):
        self.one, self.other = (nnx.Param(jnp.eye(4) * k) for k in (2, 3))

    def __call__(self, x):
        return x @ self.one[...] + jnp.tanh(x) @ self.other[...]


def test_convolutions_of_ones_own_and_modules_with_several_arrays():
    model = nnx.Sequential(
        OwnConv(3, 8, (3, 3), rngs=nnx.Rngs(0)), nnx.Conv(8, 4, (1, 1), rngs=nnx.Rngs(1)), Pair()
    )
    x = jax.random.normal(jax.random.key(1), (3, 5, 5, 3))
    plan = tdjax.make_plan(model, [tdjax.Rule(path=".*", method="svd", rank=2)], x)
    kinds = [entry.layer.kind for entry in plan.layers]
    assert kinds == ["convolution", "conv", "product", "product"]
    assert plan["layers/2/other"].layer.kernel_shape == (4, 4)
    small = tdjax.factorize(model, plan)
    np.testing.assert_allclose(small(x), tdjax.nnx.reconstruct(small, plan)(x), atol=1e-5)
    with pytest.raises(TypeError, match=r"lists, whose keys are numbers.*tdjax\.nnx\.reconstruct"):
        tdjax.reconstruct_params(nnx.state(small), plan)
