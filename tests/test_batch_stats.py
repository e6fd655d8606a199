import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_models import normal, random_variables

import tdjax

BATCHES = [normal(k, n, 6, 6, 3) * (1 + k) + k for k, n in enumerate((8, 8, 4))]


class Network(nn.Module):
    """Normalisation that is told its mode at the call, and one that is told when it is made."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="first")(x)
        x = nn.Conv(5, (3, 3), name="conv")(x)
        x = nn.BatchNorm(momentum=0.5, name="second")(x, use_running_average=not train)
        return nn.relu(x).mean(axis=(1, 2))


def by_hand(model, variables):
    """Mean and variance over all batches, each normalised by itself."""
    seen = {"first": [], "second": []}
    for x in BATCHES:
        mutable = ["intermediates", "batch_stats"]
        _, state = model.apply(
            variables, x, train=True, capture_intermediates=True, mutable=mutable
        )
        seen["first"].append(np.asarray(x, np.float64).reshape(-1, 3))
        inside = state["intermediates"]["conv"]["__call__"][0]
        seen["second"].append(np.asarray(inside, np.float64).reshape(-1, 5))
    rows = {name: np.concatenate(parts) for name, parts in seen.items()}
    return {name: (x.mean(axis=0), x.var(axis=0)) for name, x in rows.items()}


def test_statistics_of_all_batches():
    model = Network()
    variables = random_variables(model, BATCHES[0])
    found = tdjax.reestimate_batch_stats(model, variables, BATCHES)
    for name, (mean, var) in by_hand(model, variables).items():
        np.testing.assert_allclose(found["batch_stats"][name]["mean"], mean, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found["batch_stats"][name]["var"], var, rtol=1e-3)
    assert found["params"] is variables["params"]


def test_a_factorised_network():
    model = Network()
    variables = random_variables(model, BATCHES[0])
    rules = [tdjax.Rule(path="conv", method="tucker", rank=(2, 3))]
    plan = tdjax.make_plan(model, variables, rules, BATCHES[0])
    small = tdjax.factorize(model, plan)
    params = tdjax.factorize_params(variables["params"], plan)
    found = tdjax.reestimate_batch_stats(small, {**variables, "params": params}, BATCHES)
    dense = {**variables, "params": tdjax.reconstruct_params(params, plan)}
    expected = tdjax.reestimate_batch_stats(model, dense, BATCHES)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        found["batch_stats"],
        expected["batch_stats"],
    )


class NNXNetwork(nnx.Module):
    """As `Network`."""

    def __init__(self, rngs):
        self.first = nnx.BatchNorm(3, momentum=0.9, use_running_average=True, rngs=rngs)
        self.conv = nnx.Conv(3, 5, (3, 3), rngs=rngs)
        self.second = nnx.BatchNorm(5, momentum=0.5, use_running_average=True, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.second(self.conv(self.first(x)))).mean(axis=(1, 2))


def test_nnx():
    model = NNXNetwork(nnx.Rngs(0))
    linen = Network()
    params = {"conv": {"kernel": model.conv.kernel[...], "bias": model.conv.bias[...]}}
    for name in ("first", "second"):
        layer = getattr(model, name)
        params[name] = {"scale": layer.scale[...], "bias": layer.bias[...]}
    variables = {**random_variables(linen, BATCHES[0]), "params": params}
    found = tdjax.reestimate_batch_stats(model, BATCHES)
    for name, (mean, var) in by_hand(linen, variables).items():
        layer = getattr(found, name)
        np.testing.assert_allclose(layer.mean[...], mean, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(layer.var[...], var, rtol=1e-3)
        assert layer.use_running_average
    assert not np.asarray(model.first.mean[...]).any()


def test_what_is_refused():
    model = Network()
    variables = random_variables(model, BATCHES[0])
    with pytest.raises(ValueError, match="no batches"):
        tdjax.reestimate_batch_stats(model, variables, [])
    with pytest.raises(ValueError, match="no batch statistics"):
        tdjax.reestimate_batch_stats(nn.Dense(2), {"params": {}}, BATCHES)
    with pytest.raises(ValueError, match="no batch statistics"):
        tdjax.reestimate_batch_stats(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), [jnp.ones((2, 2))])
