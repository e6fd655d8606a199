import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from plain_models import normal

import tdjax
from tdjax import Rule
from tdjax.trace.marks import INPUT, mark
from tdjax.trace.survey import survey_of

KERNEL = jnp.ones((3, 3))


def runs_of(function, *args):
    """How often each call of `mark` in a function runs."""
    numbers = itertools.count()

    def marked(x):
        return mark(x, KERNEL, next(numbers), INPUT)

    jaxpr = jax.make_jaxpr(lambda *args: function(marked, *args))(*args)
    runs = survey_of(jaxpr).runs
    return [runs[number] for number in range(next(numbers))]


def scanned(mark, x):
    def step(carry, row):
        return jnp.tanh(mark(carry @ row)), None

    return jax.lax.scan(step, x, jnp.ones((5, 3, 3)))[0]


def test_a_scan_runs_its_body_for_every_step():
    x = jnp.ones((2, 3))
    assert runs_of(scanned, x) == [5]
    assert runs_of(lambda mark, x: jax.vmap(lambda row: scanned(mark, row))(x), x) == [10]


def test_vmap_over_what_the_call_does_not_see():
    # The argument of the call has no axis that is mapped, its result has.
    def mapped(mark, x):
        return jax.vmap(lambda kernel: mark(x) @ kernel)(jnp.ones((4, 3, 3)))

    # A mark whose kernel is not mapped either runs once.
    assert runs_of(mapped, jnp.ones((2, 3))) == [1]


def test_jit_remat_derivatives_and_conditions():
    def function(mark, x):
        x = jax.jit(lambda x: mark(2 * x))(x)
        x = jax.checkpoint(lambda x: mark(jnp.sin(x)))(x)
        return jax.lax.cond(x.sum() > 0, mark, lambda x: mark(mark(x)), x)

    assert runs_of(function, jnp.ones(3)) == [1, 1, 1, 1, 1]


def test_a_trace_that_is_thrown_away_counts_nothing():
    def function(mark, x):
        jax.eval_shape(mark, x)
        return mark(x), mark(x[:0])

    assert runs_of(function, jnp.ones(3)) == [0, 1, 1]


class Mapped(nn.Module):
    """One dense layer on every row by `nn.vmap`, an ensemble of three, a repeated layer, an RNN."""

    @nn.compact
    def __call__(self, x):
        shared = nn.vmap(nn.Dense, variable_axes={"params": None}, split_rngs={"params": False})
        x = shared(8, name="rows")(x)
        ensemble = nn.vmap(
            nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True},
            in_axes=None, out_axes=0, axis_size=3,
        )  # fmt: skip
        x = ensemble(8, name="ensemble")(x).mean(axis=0)
        again = nn.scan(
            lambda module, x, _: (jnp.tanh(module(x)), None),
            variable_broadcast="params", split_rngs={"params": False}, length=4,
        )  # fmt: skip
        x, _ = again(nn.Dense(8, name="again"), x, None)
        return nn.RNN(nn.GRUCell(6), name="recurrent")(x)


class MappedNnx(nnx.Module):
    """The same in NNX."""

    def __init__(self, rngs):
        self.rows = nnx.Linear(8, 8, rngs=rngs)
        make = nnx.vmap(lambda key: nnx.Linear(8, 8, rngs=nnx.Rngs(key)))
        self.ensemble = make(jax.random.split(rngs.params(), 3))
        self.again = nnx.Linear(8, 8, rngs=rngs)
        self.recurrent = nnx.RNN(nnx.GRUCell(8, 6, rngs=rngs))

    def __call__(self, x):
        x = nnx.vmap(lambda layer, row: layer(row), in_axes=(None, 0))(self.rows, x)
        x = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(self.ensemble, x).mean(axis=0)
        again = nnx.scan(
            lambda x, layer: jnp.tanh(layer(x)),
            length=4, in_axes=(nnx.Carry, None), out_axes=nnx.Carry,
        )  # fmt: skip
        return self.recurrent(again(x, self.again))


# For each of 5 places of a sequence: the row, three of the ensemble, four turns, six gates.
MACS = 5 * (64 + 3 * 64 + 4 * 64 + 3 * 6 * 8 + 3 * 6 * 6)
RULES = [Rule(path=".*", method="svd", rank=2)]


@pytest.mark.parametrize("batch", [1, 3])
def test_macs_of_layers_inside_transformations(batch, count_macs):
    x, model = normal(0, batch, 5, 8), Mapped()
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    plan = tdjax.make_plan(model, variables, RULES, x)
    assert plan.macs_before == MACS
    small = tdjax.factorize(model, plan)
    factors = jax.eval_shape(small.init, jax.random.key(0), x)
    assert count_macs(model.apply, variables, x) == batch * plan.macs_before
    assert count_macs(small.apply, factors, x) == batch * plan.macs


def pure(model):
    """A function of a model's state and input, and the state."""
    graph, state = nnx.split(model)
    return lambda state, x: nnx.merge(graph, state)(x), state


@pytest.mark.parametrize("batch", [1, 3])
def test_macs_of_nnx_layers_inside_transformations(batch, count_macs):
    x, model = normal(0, batch, 5, 8), MappedNnx(nnx.Rngs(0))
    plan = tdjax.make_plan(model, RULES, x)
    assert plan.macs_before == MACS
    small = tdjax.factorize(model, plan)
    assert count_macs(*pure(model), x) == batch * plan.macs_before
    assert count_macs(*pure(small), x) == batch * plan.macs


def test_what_depends_on_the_batch():
    """Not a table of positions; a state that a scan carries from its second turn on."""

    def function(kernel, x):
        table = mark(jnp.sin(jnp.arange(3.0))[None] @ kernel, kernel, 0, INPUT)

        def turn(state, row):
            state = mark(state, kernel, 1, INPUT) @ kernel + row
            return state, mark(table, kernel, 2, INPUT)

        state, tables = jax.lax.scan(turn, jnp.zeros((1, 3)), x)
        return state + tables.sum() + mark(x[0], kernel, 3, INPUT)

    jaxpr = jax.make_jaxpr(function)(KERNEL, jnp.ones((5, 1, 3)))
    assert survey_of(jaxpr, 1).called_with_data == {1, 3}
