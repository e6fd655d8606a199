import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_models import normal, random_variables
from sklearn.linear_model import Lasso

import tdjax

RNG = np.random.default_rng(0)
N = 300


def correlated(d, seed=0):
    rng = np.random.default_rng(seed)
    return np.maximum(rng.normal(size=(N, d)) @ rng.normal(size=(d, d)) / 2 + 1, 0)


def with_scikit(x, y, penalty, bias_penalty):
    """An intercept under its own penalty is a column of that much less weight."""
    x = np.hstack([x, np.full((len(x), 1), penalty / bias_penalty)])
    model = Lasso(alpha=penalty / 2, fit_intercept=False, tol=1e-10, max_iter=100000)
    w = model.fit(x, y).coef_
    return w[:-1], w[-1] * penalty / bias_penalty


@pytest.mark.parametrize("penalty", [0.5, 0.02])
def test_many_neurons_against_scikit_learn(penalty):
    x = correlated(20)
    y = x @ RNG.normal(size=(20, 5)) + RNG.normal(size=(N, 5))
    w, info = tdjax.lasso(x.T @ x / N, x.T @ y / N, penalty, tol=1e-4)
    assert info.converged
    for k in range(5):
        model = Lasso(alpha=penalty / 2, fit_intercept=False, tol=1e-10, max_iter=100000)
        expected = model.fit(x, y[:, k]).coef_
        np.testing.assert_allclose(w[:, k], expected, atol=2e-3)
        np.testing.assert_array_equal(np.abs(w[:, k]) > 0, np.abs(expected) > 1e-4)


def test_penalties_of_their_own_and_inputs_of_zero():
    x = correlated(6)
    x[:, 2] = 0
    y = x @ np.ones((6, 1))
    penalty = jnp.array([0.1, 0.0, 0.1, 1e4, 0.1, 0.1])
    w, info = tdjax.lasso(x.T @ x / N, x.T @ y / N, penalty)
    assert info.converged
    assert w[2] == 0
    assert w[3] == 0
    assert (w[jnp.array([0, 1, 4, 5])] != 0).all()
    whole, _ = tdjax.lasso(x.T @ x / N, x.T @ y / N, 1e6)
    np.testing.assert_array_equal(whole, 0)


class Perceptron(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(12, name="first")(x))
        x = nn.relu(nn.Dense(8, name="second")(x))
        return nn.Dense(3, name="third")(x)


def test_a_network_pruned_backwards():
    x = jnp.asarray(correlated(10), jnp.float32)
    variables = random_variables(Perceptron(), x)
    moments = tdjax.collect_moments(Perceptron(), variables, [x[:200], x[200:]])
    params = variables["params"]
    found = tdjax.lasso_prune(params, moments, 0.4, 1.0, tol=1e-4)
    assert all(found.converged.values())
    inputs = {"first": x}
    inputs["second"] = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"])
    inputs["third"] = jax.nn.relu(
        inputs["second"] @ params["second"]["kernel"] + params["second"]["bias"]
    )
    used = np.ones(3, bool)
    for name in ("third", "second", "first"):
        own, new = params[name], found.params[name]
        y = inputs[name] @ own["kernel"] + own["bias"]
        for k in range(y.shape[1]):
            w, b = np.zeros(len(own["kernel"])), 0
            if used[k]:
                w, b = with_scikit(np.asarray(inputs[name]), np.asarray(y[:, k]), 0.4, 1.0)
            np.testing.assert_allclose(new["kernel"][:, k], w, atol=2e-3)
            np.testing.assert_allclose(new["bias"][k], b, atol=2e-3)
        np.testing.assert_array_equal(found.mask[name]["kernel"], new["kernel"] != 0)
        assert found.mask[name]["bias"].all()
        used = np.asarray(found.mask[name]["kernel"]).any(1)
    assert not all(np.asarray(found.mask["first"]["kernel"]).any(0))


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), strides=2, name="first")(x))
        x = nn.Conv(4, (2, 2), use_bias=False, feature_group_count=2, name="second")(x)
        x = nn.BatchNorm(use_running_average=True)(x)
        return nn.Dense(3, name="head")(nn.relu(x).reshape(len(x), -1))


def test_convolutions_and_their_channels():
    x = normal(3, 40, 6, 6, 2)
    variables = random_variables(ConvNet(), x)
    variables["batch_stats"]["BatchNorm_0"]["var"] = jnp.ones(4)
    with pytest.warns(UserWarning, match="too few rows"):
        moments = tdjax.collect_moments(ConvNet(), variables, [x])
    found = tdjax.lasso_prune(variables["params"], moments, 0.15)
    mask = found.mask
    head = np.asarray(mask["head"]["kernel"]).reshape(3, 3, 4, 3)
    second = np.asarray(mask["second"]["kernel"])
    used = head.any((0, 1, 3))
    np.testing.assert_array_equal(second.any((0, 1, 2)) & ~used, False)
    # Group 0 of the second takes channels 0, 1, 2 and gives 0, 1.
    taken = second.reshape(2, 2, 3, 2, 2).any((0, 1, 4)).T.ravel()
    first = np.asarray(mask["first"]["kernel"]).any((0, 1, 2))
    np.testing.assert_array_equal(first & ~taken, False)

    # The first layer's neurons by patches written out.
    patches = jax.lax.conv_general_dilated_patches(
        x, (3, 3), (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    rows = np.asarray(patches).reshape(-1, 2, 9).swapaxes(1, 2).reshape(-1, 18)
    own = variables["params"]["first"]
    y = rows @ np.asarray(own["kernel"]).reshape(18, 6) + np.asarray(own["bias"])
    for k in np.flatnonzero(taken):
        w, b = with_scikit(rows, y[:, k], 0.15, 0.15)
        new = found.params["first"]
        np.testing.assert_allclose(new["kernel"][..., k].ravel(), w, atol=5e-3)
        np.testing.assert_allclose(new["bias"][k], b, atol=5e-3)


GRAM = jnp.eye(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tdjax.lasso(GRAM, jnp.ones((2, 1)), 0.1), r"gram has shape \(3, 3\)"),
        (lambda: tdjax.lasso(GRAM, jnp.full((3, 1), jnp.nan), 0.1), "NaN or Inf"),
        (lambda: tdjax.lasso(GRAM, jnp.ones((3, 1)), -0.1), "penalty must lie in"),
        (lambda: tdjax.lasso(GRAM, jnp.ones((3, 1)), jnp.ones(2)), r"shape \(2,\) for 3"),
        (lambda: tdjax.lasso(GRAM, jnp.ones((3, 1)), 0.1, max_iters=0), "at least 1"),
        (lambda: tdjax.lasso(GRAM, jnp.ones((3, 1)), 0.1, start=GRAM), "start has shape"),
    ],
)
def test_what_the_lasso_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_a_chain_refuses():
    x = normal(3, 200, 10)
    variables = random_variables(Perceptron(), x)
    params, moments = variables["params"], tdjax.collect_moments(Perceptron(), variables, [x])
    with pytest.raises(KeyError, match="no moments of layer 'first'"):
        tdjax.lasso_prune(params, {"third": moments["third"]}, 0.1, chain=("first", "third"))
    with pytest.raises(ValueError, match="'third' has 8 inputs, which layer 'first'"):
        tdjax.lasso_prune(params, moments, 0.1, chain=("first", "third"))
    with pytest.raises(ValueError, match="'fourth' cannot be pruned; layers that can are: first"):
        tdjax.lasso_prune(params, moments, 0.1, chain=("fourth",))
    with pytest.raises(ValueError, match="penalty must lie in"):
        tdjax.lasso_prune(params, moments, -1.0)
    wrong = dataclasses.replace(moments["third"], inputs=moments["third"].inputs * jnp.nan)
    with pytest.raises(ValueError, match="layer 'third': the moments hold NaN or Inf"):
        tdjax.lasso_prune(params, {**moments, "third": wrong}, 0.1)
