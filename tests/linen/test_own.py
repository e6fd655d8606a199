"""Layers of classes that are not Flax's own."""

import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tdjax
from tdjax.trace.products import products_of


class Named(nn.Dense):
    """A subclass without a line of its own."""


class Heads(nn.Module):
    """Made in `setup`, with a kernel of three axes and a vector that no one knows."""

    features: int

    def setup(self):
        init = nn.initializers.normal(0.3)
        self.w = self.param("w", init, (6, 2, self.features))
        self.gain = self.param("gain", nn.initializers.ones, (self.features,))

    def __call__(self, x):
        return jnp.einsum("btd,dcf->btcf", x, self.w).sum(2) * self.gain


class Dropping(nn.Module):
    """Draws random numbers beside its product."""

    @nn.compact
    def __call__(self, x, deterministic=True):
        y = x @ self.param("kernel", nn.initializers.normal(0.3), (8, 8))
        if deterministic:
            return y
        return y * jax.random.bernoulli(self.make_rng("dropout"), 0.5, y.shape)


class Laid(nn.Module):
    """Its kernel has names of axes, as those that are laid out over devices."""

    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(nn.initializers.normal(0.3), ("out", "in"))
        return x @ self.param("kernel", init, (8, x.shape[-1])).T


class Turned(nn.Module):
    """Its kernel is (outputs, inputs)."""

    features: int

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.normal(0.3)
        kernel = self.param("kernel", init, (self.features, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return x @ kernel.T + bias


class Normalised(nn.Module):
    """Changes its kernel before it multiplies."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(0.3), (8, 8))
        return x @ (kernel / jnp.linalg.norm(kernel))


class Two(nn.Module):
    """Has two matrices."""

    @nn.compact
    def __call__(self, x):
        one, other = (
            self.param(name, nn.initializers.normal(0.3), (8, 8)) for name in ("one", "other")
        )
        return jnp.tanh(x @ one) @ other


class Network(nn.Module):
    """All of them, computed again and in a scan."""

    @nn.compact
    def __call__(self, x, deterministic=True):
        x = nn.remat(Named)(8)(Dropping()(nn.gelu(Heads(8)(x)), deterministic))

        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return jnp.tanh(Turned(8)(x)), None

        blocks = nn.scan(
            nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return Two()(Normalised()(blocks()(x, None)[0]))


MODEL, X = Network(), jax.random.normal(jax.random.key(1), (40, 5, 6))
VARIABLES = MODEL.init(jax.random.key(0), X)
PLAN = tdjax.make_plan(MODEL, VARIABLES, [tdjax.Rule(path=".*", method="svd", rank=2)], X)
FACTORS = tdjax.factorize_params(VARIABLES["params"], PLAN)
SMALL = tdjax.factorize(MODEL, PLAN)
TAKEN = ["Heads_0", "Dropping_0", "CheckpointNamed_0", "ScanCheckpointBlock_0/Turned_0"]
MEMBERS = ["Two_0/one", "Two_0/other"]


def test_they_are_layers_and_counted():
    assert [entry.layer.path for entry in PLAN.factorised] == [*TAKEN, *MEMBERS]
    reasons = {e.layer.path: e.reason for e in PLAN.layers if e.reason}
    assert reasons == {"Normalised_0": "kernel: it is read otherwise than by a product, by mul"}
    count = products_of(jax.make_jaxpr(lambda v: MODEL.apply(v, X))(VARIABLES))
    assert PLAN.macs_before * len(X) == sum(count.values())
    after = products_of(jax.make_jaxpr(lambda p: SMALL.apply({"params": p}, X))(FACTORS))
    assert PLAN.macs * len(X) == sum(after.values())
    assert PLAN.size == sum(leaf.size for leaf in jax.tree.leaves(FACTORS))
    assert tdjax.Plan.from_json(PLAN.to_json()) == PLAN


def test_chains_compute_what_their_reconstructions_do():
    def loss(model, params):
        return (model.apply({"params": params}, X) ** 2).mean()

    @jax.jit
    def both(factors):
        found = jax.value_and_grad(lambda f: loss(SMALL, f))(factors)
        return found, jax.value_and_grad(lambda f: loss(MODEL, tdjax.reconstruct_params(f, PLAN)))(
            factors
        )

    found, expected = both(FACTORS)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_the_model_makes_its_own_factors():
    params = SMALL.init(jax.random.key(2), X)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, FACTORS)
    dense = tdjax.reconstruct_params(params, PLAN)
    for entry in PLAN.factorised:
        *front, last = entry.layer.path.split("/")
        own, drawn = dense, VARIABLES["params"]
        names = (
            (*front, last) if entry.layer.is_member else (*front, last, entry.layer.storage.name)
        )
        for name in names:
            own, drawn = own[name], drawn[name]
        assert 0.7 < float(jnp.std(own) / jnp.std(drawn)) < 1.4
    rngs = {"dropout": jax.random.key(3)}
    y = SMALL.apply({"params": params}, X, False, rngs=rngs)
    assert bool(jnp.isfinite(y).all())
    assert pickle.loads(pickle.dumps(SMALL)) == SMALL


def test_moments_and_errors_are_those_of_the_function():
    def loss(y, _):
        return (y**2).sum(axis=(1, 2))

    found = tdjax.collect_moments(MODEL, VARIABLES, [X], loss_fn=loss, paths="[HDC].*")
    paths = [f"params/{path}/(w|kernel)" for path in TAKEN[:3]]
    expected = tdjax.collect_moments(MODEL.apply, VARIABLES, [X], loss_fn=loss, paths=paths)
    for one, other in zip(found.values(), expected.values(), strict=True):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    other = jax.tree.map(lambda leaf: leaf, VARIABLES["params"])
    other["Heads_0"]["w"] = 1.1 * other["Heads_0"]["w"]
    errors = tdjax.feature_errors(MODEL, VARIABLES, other, [X])
    np.testing.assert_allclose(errors["Heads_0"]["relative"], 0.1, rtol=1e-4)


def test_the_bias_of_an_own_layer_is_left_alone():
    model, x = nn.Sequential([Turned(8), nn.Dense(8)]), X[..., :6].reshape(-1, 6)
    variables = model.init(jax.random.key(0), x)
    plan = tdjax.make_plan(model, variables, [tdjax.Rule(path=".*", method="svd", rank=1)], x)
    moments = tdjax.collect_moments(model, variables, [x])
    params = tdjax.factorize_params(variables["params"], plan, moments=moments, correct_bias=True)
    assert not jnp.any(params["layers_0"]["bias"])
    assert jnp.any(params["layers_1"]["bias"])


def test_names_of_axes_stay_on_factors():
    model, x = nn.Sequential([Laid(), nn.Dense(8)]), X[0]
    variables = model.init(jax.random.key(0), x)
    rules = [tdjax.Rule(path="layers_0", method="svd", rank=2)]
    plan = tdjax.make_plan(model, variables, rules, x)
    small = tdjax.factorize(model, plan)
    params = tdjax.factorize_params(variables["params"], plan)
    for own in (params, small.init(jax.random.key(1), x)["params"]):
        names = [own["layers_0"][stage]["kernel"].names for stage in ("input", "output")]
        assert names == [("in", None), (None, "out")]
    dense = tdjax.reconstruct_params(params, plan)
    np.testing.assert_allclose(
        small.apply({"params": params}, x), model.apply({"params": dense}, x), atol=1e-5
    )
    sparse = [tdjax.Rule(path=".*", method="svd", rank=2, sparse=0.2)]
    entry = tdjax.make_plan(model, variables, sparse, x)["layers_0"]
    assert entry.reason == "layers of one's own take no sparse correction"


def test_a_part_that_is_taken_out_has_its_chain():
    class Holder(nn.Module):
        def setup(self):
            self.inner = Turned(8)

        def __call__(self, x):
            return self.inner(x)

    model, x = Holder(), X[0]
    variables = model.init(jax.random.key(0), x)
    plan = tdjax.make_plan(model, variables, [tdjax.Rule(path=".*", method="svd", rank=2)], x)
    params = tdjax.factorize_params(variables["params"], plan)
    small = tdjax.factorize(model, plan)
    found = small.bind({"params": params}).inner(x)
    np.testing.assert_allclose(found, small.apply({"params": params}, x), rtol=1e-5)
    with pytest.raises(ValueError, match=r"layer .inner. has kernel, bias, not the factors"):
        small.apply(variables, x)


class OwnConv(nn.Conv):
    """A subclass without a line of its own."""


class Upwards(nn.Module):
    """A transposed convolution with a kernel of its own, outputs first."""

    @nn.compact
    def __call__(self, x):
        w = self.param("w", nn.initializers.normal(0.2), (3, 3, 5, x.shape[-1]))
        numbers = ("NHWC", "HWOI", "NHWC")
        return jax.lax.conv_general_dilated(
            x, w[::-1, ::-1], (1, 1), ((1, 2), (1, 2)), (2, 2), dimension_numbers=numbers
        )


class Convolutions(nn.Module):
    """Convolutions of one's own: with strides, in groups, transposed."""

    @nn.compact
    def __call__(self, x):
        x = nn.gelu(OwnConv(8, (3, 3), strides=2, name="strided")(x))
        x = nn.gelu(OwnConv(8, (3, 1), feature_group_count=2, name="grouped")(x))
        return Upwards(name="upwards")(x)


def test_convolutions_of_ones_own():
    model, x = Convolutions(), jax.random.normal(jax.random.key(2), (60, 6, 6, 4))
    variables = model.init(jax.random.key(0), x)
    rules = [
        tdjax.Rule(path="strided", method="tucker", rank=3),
        tdjax.Rule(path=".*", method="svd", compression=0.5),
    ]
    plan = tdjax.make_plan(model, variables, rules, x)
    assert tdjax.Plan.from_json(plan.to_json()) == plan
    kinds = {entry.layer.path: entry.layer.kind for entry in plan.factorised}
    assert kinds == {
        "strided": "convolution",
        "grouped": "convolution",
        "upwards": "transposed_convolution",
    }
    count = products_of(jax.make_jaxpr(lambda v: model.apply(v, x))(variables))
    assert plan.macs_before * len(x) == sum(count.values())
    params, small = tdjax.factorize_params(variables["params"], plan), tdjax.factorize(model, plan)
    dense = tdjax.reconstruct_params(params, plan)
    np.testing.assert_allclose(
        small.apply({"params": params}, x), model.apply({"params": dense}, x), atol=1e-5
    )
    drawn = small.init(jax.random.key(1), x)["params"]
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, params)
    moments = tdjax.collect_moments(model, variables, [x])
    expected = tdjax.collect_moments(model.apply, variables, [x])
    for path in kinds:
        name = "w" if path == "upwards" else "kernel"
        own = expected[f"params/{path}/{name}"].inputs
        np.testing.assert_allclose(moments[path].inputs, own, rtol=1e-4, atol=1e-5)
