import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tdjax
from tdjax.trace.kept import kept


class Compilations(logging.Handler):
    """Names of the programs that are compiled meanwhile."""

    def __enter__(self):
        self.names = []
        self.was = jax.config.jax_log_compiles
        jax.config.update("jax_log_compiles", True)
        self.logger = logging.getLogger("jax._src.dispatch")
        self.propagated, self.logger.propagate = self.logger.propagate, False
        self.logger.addHandler(self)
        return self.names

    def emit(self, record):
        message = record.getMessage()
        if message.startswith("Finished XLA compilation"):
            self.names.append(message)

    def __exit__(self, *_):
        self.logger.removeHandler(self)
        self.logger.propagate = self.propagated
        jax.config.update("jax_log_compiles", self.was)


class Small(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(True)(nn.Conv(4, (3, 3))(x)))
        return nn.Dense(3)(x.mean(axis=(1, 2)))


@pytest.mark.filterwarnings("ignore:too few rows")
def test_a_second_call_compiles_nothing():
    x = jax.random.normal(jax.random.key(0), (8, 6, 6, 2))
    model = Small()
    variables = model.init(jax.random.key(1), x)
    rules = [tdjax.Rule(path="Dense.*", method="svd", rank=1)]
    plan = tdjax.make_plan(model, variables, rules, x)

    def through(scale):
        # A loss made anew each time, as in a notebook.
        moments = tdjax.collect_moments(
            Small(), variables, [x], loss_fn=lambda y, _: scale * jnp.sum(y**2, axis=1)
        )
        tdjax.factorize_params(variables["params"], plan, moments=moments)
        tdjax.reestimate_batch_stats(Small(), variables, [x])
        return moments

    with Compilations() as first:
        before = through(1.0)
    with Compilations() as second:
        again = through(1.0)
    with Compilations() as other:
        larger = through(2.0)
    assert any("program" in name for name in first)
    assert second == []
    # What the loss closes over is part of it: never the sums of the loss before.
    assert any("program" in name for name in other)
    np.testing.assert_array_equal(again["Dense_0"].outputs, before["Dense_0"].outputs)
    np.testing.assert_allclose(larger["Dense_0"].outputs, 4 * before["Dense_0"].outputs, rtol=1e-5)


def test_arrays_closed_over_are_arguments():
    def times(array):
        return kept(lambda x: x * array)

    large, x = jnp.arange(3000.0), jnp.ones(3000)
    times(large)(x)
    with Compilations() as names:
        found = times(large + 1)(x)
    np.testing.assert_array_equal(found, np.arange(3000.0) + 1)
    assert not any("program" in name for name in names)


def test_arguments_that_do_not_count_are_told_apart():
    x, y = jnp.ones(3), jnp.full(3, 2.0)
    first, second = kept(lambda x, y: 3 * x), kept(lambda x, y: 3 * y)
    assert first(x, y).tolist() == [3.0] * 3
    assert second(x, y).tolist() == [6.0] * 3


def test_nnx_statistics_compile_once():
    model = nnx.BatchNorm(2, use_running_average=True, rngs=nnx.Rngs(0))
    x = jnp.array([[1.0, 5.0], [3.0, 5.0]])
    tdjax.reestimate_batch_stats(model, [x])
    with Compilations() as names:
        tdjax.reestimate_batch_stats(model, [x])
    assert names == []
