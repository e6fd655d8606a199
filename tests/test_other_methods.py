"""Models that are called by other methods than their own call, in every function on models."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx
from plain_models import normal

import tdjax
from tdjax.dispatch import candidate_feature_errors

X = normal(0, 32, 8)
RULES = [tdjax.Rule(path="enc", method="svd", rank=2)]


class Coder(nn.Module):
    """No call of its own."""

    def setup(self):
        self.enc, self.dec = nn.Dense(9), nn.Dense(8)
        self.norm = nn.BatchNorm(use_running_average=True)

    def encode(self, x):
        return self.norm(self.enc(x))

    def decode(self, z):
        return self.dec(z)


class CoderNNX(nnx.Module):
    """As `Coder`."""

    def __init__(self, rngs):
        self.enc, self.dec = nnx.Linear(8, 9, rngs=rngs), nnx.Linear(9, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(9, use_running_average=True, rngs=rngs)

    def encode(self, x):
        return self.norm(self.enc(x))

    def decode(self, z):
        return self.dec(z)


def both(model, x):
    return model.decode(model.encode(x))


class Called(nn.Module):
    """The same layers in a model with a call, as the reference."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(9, name="enc")(x)
        return nn.Dense(8, name="dec")(nn.BatchNorm(use_running_average=True, name="norm")(x))


def linen():
    model = Coder()
    return (model, model.init(jax.random.key(0), X, method=both))


def nnx_and_reference():
    model = CoderNNX(nnx.Rngs(0))
    state = nnx.to_pure_dict(nnx.state(model))
    stats = {name: state["norm"].pop(name) for name in ("mean", "var")}
    return (model,), (Called(), {"params": state, "batch_stats": {"norm": stats}})


MODELS = {"linen": lambda: (linen(), (Called(), linen()[1])), "nnx": nnx_and_reference}


@pytest.mark.filterwarnings("ignore:too few rows")
@pytest.mark.parametrize("kind", MODELS)
def test_every_function_takes_a_method(kind):
    model, reference = MODELS[kind]()

    def same(function, *args, **options):
        found = function(*model, *args, method=both, **options)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            found,
            function(*reference, *args, **options),
        )

    def loss(y, batch):
        return (y**2).sum(axis=1)

    plan = tdjax.make_plan(*model, RULES, X, method=both)
    assert plan == tdjax.make_plan(*reference, RULES, X)
    table = tdjax.layer_table(*model, X, method="encode")
    assert [layer.macs for layer in table if layer.macs] == [72]
    same(tdjax.collect_moments, [X], loss_fn=loss)
    same(tdjax.feature_errors, plan, [X])
    kernels = normal(1, 3, 8, 9)
    same(tdjax.evaluate_candidates, "enc", kernels, [X], lambda y, batch: y[:, 0])
    same(candidate_feature_errors, "enc", kernels, [X])
    options = {"budget": 0.788, "methods": ("svd",)}
    assert tdjax.allocate(*model, X, method=both, **options) == tdjax.allocate(
        *reference, X, **options
    )
    small = tdjax.remove_dead(*model, X, method=both)
    assert small.kept == tdjax.remove_dead(*reference, X).kept


def test_results_answer_to_all_methods():
    model, variables = linen()
    plan = tdjax.make_plan(model, variables, RULES, X, method=both)
    small = tdjax.factorize(model, plan)
    params = tdjax.factorize_sequentially(model, variables, plan, [X], method=both)
    found = tdjax.reestimate_batch_stats(small, {**variables, "params": params}, [X], method=both)
    z = small.apply(found, X, method="encode")
    np.testing.assert_allclose(z.mean(axis=0), np.zeros(9), atol=1e-4)
    net = CoderNNX(nnx.Rngs(0))
    plan = tdjax.make_plan(net, RULES, X, method=CoderNNX.encode)
    chain = tdjax.factorize_sequentially(net, plan, [X], method=net.encode)
    again = tdjax.reestimate_batch_stats(chain, [X], method="encode")
    assert type(again) is CoderNNX
    np.testing.assert_allclose(again.encode(X).mean(axis=0), np.zeros(9), atol=1e-4)


def test_what_is_no_method():
    model, variables = linen()
    with pytest.raises(ValueError, match="Coder has no method '__call__': name one"):
        tdjax.make_plan(model, variables, RULES, X)
    with pytest.raises(ValueError, match="no method 'encod'; did you mean 'encode'"):
        tdjax.make_plan(CoderNNX(nnx.Rngs(0)), RULES, X, method="encod")
    with pytest.raises(TypeError, match="method is a tuple of str: pass the name"):
        tdjax.make_plan(model, variables, RULES, X, method=("encode",))
