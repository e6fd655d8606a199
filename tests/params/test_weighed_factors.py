"""Factorisation in the norm of the data, through whole models."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_models import random_variables
from plain_networks import LanguageModel

import tdjax
from tdjax import Rule

pytestmark = pytest.mark.filterwarnings("ignore:too few rows")
KEY = jax.random.key(0)


def smooth(seed, *shape):
    """Images whose neighbouring pixels and channels are alike, as in a network."""
    x = np.random.default_rng(seed).normal(size=shape)
    for axis in (1, 2, 3):
        x = x + np.roll(x, 1, axis) + np.roll(x, 2, axis)
    return jnp.maximum(jnp.asarray(x, jnp.float32), 0) + 0.5


X = smooth(0, 40, 8, 8, 8)
LAYERS = {
    "conv": nn.Conv(12, (3, 3)),
    "strided": nn.Conv(12, (3, 3), strides=2, padding=((2, 1), (0, 1))),
    "grouped": nn.Conv(16, (3, 3), feature_group_count=2),
    "transposed": nn.ConvTranspose(12, (3, 3), strides=(2, 2)),
    "transposed kernel": nn.ConvTranspose(12, (3, 3), strides=(2, 2), transpose_kernel=True),
    "dense": nn.Dense(12),
    "general": nn.DenseGeneral((3, 4), axis=(2, -1)),
}


def rule(method, layer):
    """About half the parameters."""
    if method == "tt" and layer in ("dense", "general"):
        return Rule(path=".*", method="tt", compression=0.3)
    return Rule(path=".*", method=method, compression=0.5)


def squared_change(model, variables, params):
    change = model.apply(variables, X) - model.apply({"params": params}, X)
    return float(jnp.sum(change**2))


# Every layer in one format at least, every format on a plain convolution.
PAIRS = [
    *(("conv", method) for method in ("svd", "tucker", "cp", "tt")),
    ("strided", "tucker"),
    ("grouped", "tt"),
    ("grouped", "cp"),
    ("transposed", "svd"),
    ("transposed kernel", "tucker"),
    ("dense", "svd"),
    ("dense", "tt"),
    ("general", "svd"),
    ("general", "tt"),
]


@pytest.mark.parametrize(("layer", "method"), PAIRS)
def test_outputs_change_less_than_by_weights_alone(layer, method):
    model = LAYERS[layer]
    variables = random_variables(model, X)
    moments = tdjax.collect_moments(model, variables, [X])
    plan = tdjax.make_plan(model, variables, [rule(method, layer)], X)
    (entry,) = plan.layers
    assert entry.method == method

    def change(**options):
        params = tdjax.factorize_params(variables["params"], plan, key=KEY, max_iters=20, **options)
        return squared_change(model, variables, tdjax.reconstruct_params(params, plan))

    plain, weighed = change(), change(moments=moments)
    assert weighed < plain * 1.001
    if layer in ("conv", "dense") and method != "tt":
        assert weighed < 0.9 * plain
    # With the bias, what is left is the spread around the mean.
    assert change(moments=moments, correct_bias=True) < weighed * 1.001


def test_the_mean_output_stays_with_a_corrected_bias():
    model = nn.Conv(12, (3, 3), strides=2)
    variables = random_variables(model, X)
    moments = tdjax.collect_moments(model, variables, [X])
    plan = tdjax.make_plan(model, variables, [rule("tucker", "conv")], X)
    params = tdjax.factorize_params(variables["params"], plan, moments=moments, correct_bias=True)
    small = tdjax.factorize(model, plan)
    means = [
        np.asarray(m.apply(v, X)).mean(axis=(0, 1, 2))
        for m, v in ((model, variables), (small, {"params": params}))
    ]
    np.testing.assert_allclose(*means, atol=1e-4)


def test_the_layer_of_lowest_change_by_the_gradient():
    model = nn.Dense(12)
    variables = random_variables(model, X)
    # Only the first two outputs matter to the loss.
    loss = lambda outputs, _: jnp.sum(outputs[..., :2] ** 2, axis=(1, 2, 3))  # noqa: E731
    moments = tdjax.collect_moments(model, variables, [X], loss_fn=loss)
    plan = tdjax.make_plan(model, variables, [Rule(path=".*", method="svd", rank=2)], X)

    def loss_of(norm):
        params = tdjax.factorize_params(variables["params"], plan, moments=moments, norm=norm)
        dense = tdjax.reconstruct_params(params, plan)
        change = model.apply(variables, X) - model.apply({"params": dense}, X)
        return float(jnp.sum(change[..., :2] ** 2))

    assert loss_of("kronecker") < 0.05 * loss_of("covariance")
    assert loss_of(None) == loss_of("kronecker")


def test_nnx_gives_what_linen_gives():
    layer = nnx.Conv(8, 12, (3, 3), rngs=nnx.Rngs(0))
    model = nnx.Sequential(layer, nnx.relu)
    linen = nn.Conv(12, (3, 3))
    params = {"kernel": layer.kernel[...], "bias": jnp.arange(12.0)}
    layer.bias[...] = jnp.arange(12.0)
    moments = tdjax.collect_moments(model, [X])
    (path,) = moments
    others = tdjax.collect_moments(linen, {"params": params}, [X])
    np.testing.assert_allclose(moments[path].inputs, others[""].inputs, rtol=1e-5)
    plan = tdjax.make_plan(model, [Rule(path=".*", method="tucker", compression=0.5)], X)
    small = tdjax.factorize(model, plan, moments=moments, correct_bias=True)
    assert np.asarray(model.layers[0].bias[...]).tolist() == list(range(12))
    linen_plan = tdjax.make_plan(linen, {"params": params}, [rule("tucker", "conv")], X)
    factors = tdjax.factorize_params(params, linen_plan, moments=others, correct_bias=True)
    expected = nn.relu(tdjax.factorize(linen, linen_plan).apply({"params": factors}, X))
    np.testing.assert_allclose(small(X), expected, rtol=1e-3, atol=1e-3)


def test_stacks_embeddings_and_attention():
    model = LanguageModel()
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 24, (8, 6)))
    variables = random_variables(model, tokens)
    moments = tdjax.collect_moments(
        model, variables, [tokens], loss_fn=lambda y, _: jnp.sum(y**2, axis=(1, 2))
    )
    rules = [
        Rule(path="positions", method="svd", rank=2),
        Rule(path=".*/up", method="tt", compression=0.4),
        Rule(path=".*", method="svd", compression=0.4),
    ]
    plan = tdjax.make_plan(model, variables, rules, tokens)
    small = tdjax.factorize(model, plan)
    logits = model.apply(variables, tokens)

    def change(**options):
        params = tdjax.factorize_params(variables["params"], plan, **options)
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(
            jnp.shape, random_variables(small, tokens)["params"]
        )
        return float(jnp.linalg.norm(small.apply({"params": params}, tokens) - logits))

    assert change(moments=moments) < change()


def test_what_is_refused():
    model, other = nn.Dense(12), nn.Dense(12)
    variables = random_variables(model, X)
    plan = tdjax.make_plan(model, variables, [rule("svd", "conv")], X)
    params = variables["params"]
    moments = tdjax.collect_moments(other, random_variables(other, X), [X])
    with pytest.raises(ValueError, match="norm 'kronecker' needs moments of the gradient"):
        tdjax.factorize_params(params, plan, moments=moments, norm="kronecker")
    with pytest.raises(ValueError, match="norm 'mean': known are covariance, kronecker"):
        tdjax.factorize_params(params, plan, moments=moments, norm="mean")
    with pytest.raises(ValueError, match="norm 'covariance' needs moments="):
        tdjax.factorize_params(params, plan, norm="covariance")
    with pytest.raises(ValueError, match="correct_bias needs moments="):
        tdjax.factorize_params(params, plan, correct_bias=True)
    with pytest.raises(KeyError, match="no moments of layer ''"):
        tdjax.factorize_params(params, plan, moments={})
    narrow = nn.Dense(12)
    few = tdjax.collect_moments(narrow, random_variables(narrow, X[..., :4]), [X[..., :4]])
    with pytest.raises(ValueError, match=r"layer '': a moment of shape \(1, 4, 4\)"):
        tdjax.factorize_params(params, plan, moments=few)
