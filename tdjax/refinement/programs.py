"""What runs on the device: steps of training, and the loss of some examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from tdjax.decompose.scale import at_least_single
from tdjax.refinement.data import Layout, Pool, rows_of, taken
from tdjax.refinement.objective import Answers, Network, Objective, Sums, called_modules
from tdjax.trace.mixed import Replacement


@dataclass(frozen=True)
class Problem:
    """Two networks and what is to be made least: all that is static. Equal ones share programs.

    Arguments:
        dense, small: the networks.
        objective: how far they are apart.
        structure: of the small network's variables.
        places: of what is trained among their leaves.
        dtypes: of what is trained; it is trained in single precision at least.
        optimizer: of what is trained.
        augment: see `tdjax.refine`.
        mix: the share of examples for which the modules at `earlier` return what they do in the
            dense network.
    """

    dense: Network
    small: Network
    objective: Objective
    structure: Any
    places: tuple[int, ...]
    dtypes: tuple[Any, ...]
    optimizer: optax.GradientTransformation
    augment: Callable[[Array, Any], Any] | None = None
    mix: float = 0.0
    earlier: tuple[str, ...] = ()

    def trained(self, leaves: Sequence[Any]) -> list[Array]:
        """What is trained, from all leaves."""
        return [at_least_single(jnp.asarray(leaves[place])) for place in self.places]

    def leaves(self, leaves: Sequence[Any], trained: Sequence[Array]) -> list[Any]:
        """All leaves, with those that are trained as they are by now."""
        own = list(leaves)
        for place, array, dtype in zip(self.places, trained, self.dtypes, strict=True):
            own[place] = array.astype(dtype)
        return own

    def targets(self, dense: Any, inputs: Any) -> Answers:
        """What the dense network answers."""
        return self.objective.ask(self.dense, dense, inputs)

    def answers(self, leaves: Sequence[Any], inputs: Any, replaced: Replacement | None) -> Answers:
        """What the small network answers.

        Arguments:
            replaced: what modules at `earlier` return in place of what they made.
        """
        variables = jax.tree.unflatten(self.structure, leaves)
        return self.objective.ask(self.small, variables, inputs, replaced)

    def replaced(self, dense: Any, inputs: Any, number: int, key: Array) -> Replacement | None:
        """What modules at `earlier` return for some of so many examples."""
        if not (self.mix and self.earlier):
            return None
        _, found = called_modules(self.dense, dense, self.earlier, inputs)
        return Replacement(jax.random.bernoulli(key, self.mix, (number,)), found)


class Given(NamedTuple):
    """Arrays that no step changes: the dense network's variables, the small one's leaves."""

    dense: Any
    leaves: list[Any]


class State(NamedTuple):
    """What steps change: what is trained, and what the optimiser knows."""

    trained: list[Array]
    optimizer: Any


@dataclass(frozen=True, eq=False)
class Batch:
    """The examples of one step.

    Arguments:
        pool: that they are taken from.
        index: their rows in it.
        counts: which of them count.
    """

    pool: Pool
    index: Int[np.ndarray, " b"]
    counts: Float[np.ndarray, " b"]

    @property
    def arrays(self) -> _Arrays:
        """What programs take of it."""
        pool = self.pool
        return _Arrays(pool.arrays, pool.weights, pool.targets, self.index, self.counts)


def batches_of(pool: Pool, size: int, key: Array | None = None) -> list[Batch]:
    """All examples of a pool, so many at a time.

    Arguments:
        key: of their order; None for the one that they have.
    """
    return [Batch(pool, *rows) for rows in zip(*rows_of(pool, size, key), strict=True)]


class _Arrays(NamedTuple):
    """See `Pool` and `Batch`."""

    arrays: Any
    weights: Array
    targets: Any
    rows: Any
    counted: Any


def step(
    problem: Problem, given: Given, state: State, batch: Batch, rate: float, key: Array
) -> tuple[State, Float[Array, ""]]:
    """The state after a step, and the loss before: one program, whatever the rate.

    A loop around it stays outside: XLA runs convolutions inside loops on one core of a CPU, without
    its library for them, some forty times slower.

    Arguments:
        rate: what the optimiser's updates are multiplied by.
    """
    return _step(problem, batch.pool.layout, given, state, batch.arrays, rate, key)


@partial(jax.jit, static_argnums=(0, 1))
def _step(
    problem: Problem,
    layout: Layout,
    given: Given,
    state: State,
    batch: _Arrays,
    rate: Array,
    key: Array,
) -> tuple[State, Array]:
    inputs = layout.inputs(batch.arrays, batch.rows)
    if problem.augment is not None:
        inputs = problem.augment(key, inputs)
    wanted, counting = _targets(problem, given, batch, inputs), _counting(batch)
    others = problem.replaced(given.dense, inputs, len(batch.rows), jax.random.fold_in(key, 1))

    def loss(trained: list[Array]) -> Array:
        found = problem.answers(problem.leaves(given.leaves, trained), inputs, others)
        return problem.objective.value(problem.objective.sums(found, wanted, counting), wanted)

    value, gradients = jax.value_and_grad(loss)(state.trained)
    updates, known = problem.optimizer.update(gradients, state.optimizer, state.trained)
    updates = jax.tree.map(lambda update: rate * update, updates)
    return State(optax.apply_updates(state.trained, updates), known), value


def measured(problem: Problem, given: Given, trained: Sequence[Array], batch: Batch) -> Sums:
    """The sums of all terms over a batch."""
    return _measured(problem, batch.pool.layout, given, list(trained), batch.arrays)


@partial(jax.jit, static_argnums=(0, 1))
def _measured(
    problem: Problem, layout: Layout, given: Given, trained: list[Array], batch: _Arrays
) -> Sums:
    inputs = layout.inputs(batch.arrays, batch.rows)
    found = problem.answers(problem.leaves(given.leaves, trained), inputs, None)
    wanted = _targets(problem, given, batch, inputs)
    return problem.objective.sums(found, wanted, _counting(batch))


def answered(problem: Problem, dense: Any, batch: Batch) -> Any:
    """What the dense network answers to a batch."""
    return _answered(problem, batch.pool.layout, dense, batch.pool.arrays, batch.index)


@partial(jax.jit, static_argnums=(0, 1))
def _answered(problem: Problem, layout: Layout, dense: Any, arrays: Any, index: Array) -> Any:
    return problem.targets(dense, layout.inputs(arrays, index))


def _targets(problem: Problem, given: Given, batch: _Arrays, inputs: Any) -> Any:
    if batch.targets is None:
        return jax.lax.stop_gradient(problem.targets(given.dense, inputs))
    return jax.tree.map(lambda array: taken(array, batch.rows), batch.targets)


def _counting(batch: _Arrays) -> Array:
    own = taken(batch.weights, batch.rows)
    return own * batch.counted.reshape(-1, *(1,) * (own.ndim - 1))
