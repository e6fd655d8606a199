"""What runs on the device: steps of training, and the loss of some examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from tdjax.decompose.scale import at_least_single
from tdjax.refinement.data import Layout, Pool, taken
from tdjax.refinement.objective import Answers, Network, Objective, Sums


@dataclass(frozen=True)
class Problem:
    """Two networks and what is to be made least: all that is static. Equal ones share programs.

    Arguments:
        dense, small: the networks.
        objective: how far they are apart.
        structure: of the small network's variables.
        places: of what is trained among their leaves.
        dtypes: of what is trained; it is trained in single precision at least.
        optimizer: see `steps`.
        augment: see `tdjax.refine`.
    """

    dense: Network
    small: Network
    objective: Objective
    structure: Any
    places: tuple[int, ...]
    dtypes: tuple[Any, ...]
    optimizer: optax.GradientTransformation
    augment: Callable[[Array, Any], Any] | None = None

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

    def answers(self, leaves: Sequence[Any], inputs: Any) -> Answers:
        """What the small network answers."""
        variables = jax.tree.unflatten(self.structure, leaves)
        return self.objective.ask(self.small, variables, inputs)


class Given(NamedTuple):
    """Arrays that no step changes: the dense network's variables, the small one's leaves."""

    dense: Any
    leaves: list[Any]


class State(NamedTuple):
    """What steps change: what is trained, and what the optimiser knows."""

    trained: list[Array]
    optimizer: Any


class Rows(NamedTuple):
    """The examples of each step, (steps, batch), and which of these count."""

    index: Int[Array, "n b"]
    counts: Float[Array, "n b"]


def steps(
    problem: Problem,
    given: Given,
    state: State,
    pool: Pool,
    rows: Rows,
    rates: Float[Array, " m"],
    number: int,
    key: Array,
) -> tuple[State, Float[Array, " m"]]:
    """Some steps, and the losses before each: one program whatever the number and the rates.

    Arguments:
        rates: what the optimiser's updates are multiplied by.
        number: of steps; where there are more than rows, these come again.
    """
    return _steps(
        problem, pool.layout, given, state, pool.arrays, pool.weights, pool.targets, rows, rates,
        number, key,
    )  # fmt: skip


@partial(jax.jit, static_argnums=(0, 1))
def _steps(
    problem: Problem,
    layout: Layout,
    given: Given,
    state: State,
    arrays: Any,
    weights: Array,
    targets: Any,
    rows: Rows,
    rates: Array,
    number: Array,
    key: Array,
) -> tuple[State, Array]:
    def step(turn: Array, carry: tuple[State, Array]) -> tuple[State, Array]:
        (trained, known), losses = carry
        index, counts = (part[turn % len(rows.index)] for part in rows)
        inputs = layout.inputs(arrays, index)
        if problem.augment is not None:
            inputs = problem.augment(jax.random.fold_in(key, turn), inputs)
        wanted = _targets(problem, given, targets, index, inputs)
        counting = _counting(weights, index, counts)

        def loss(trained: list[Array]) -> Array:
            found = problem.answers(problem.leaves(given.leaves, trained), inputs)
            return problem.objective.value(problem.objective.sums(found, wanted, counting), wanted)

        value, gradients = jax.value_and_grad(loss)(trained)
        updates, known = problem.optimizer.update(gradients, known, trained)
        updates = jax.tree.map(lambda update: rates[turn] * update, updates)
        made = optax.apply_updates(trained, updates)
        return State(made, known), losses.at[turn].set(value)

    losses = jnp.zeros(rates.shape, jnp.float32)
    return jax.lax.fori_loop(0, number, step, (state, losses))


def measured(
    problem: Problem, given: Given, trained: Sequence[Array], pool: Pool, rows: Rows
) -> Sums:
    """The sums of all terms over a pool's examples."""
    return _measured(
        problem, pool.layout, given, list(trained), pool.arrays, pool.weights, pool.targets, rows
    )


@partial(jax.jit, static_argnums=(0, 1))
def _measured(
    problem: Problem,
    layout: Layout,
    given: Given,
    trained: list[Array],
    arrays: Any,
    weights: Array,
    targets: Any,
    rows: Rows,
) -> Sums:
    leaves = problem.leaves(given.leaves, trained)

    def one(rows: Rows) -> Sums:
        inputs = layout.inputs(arrays, rows.index)
        wanted = _targets(problem, given, targets, rows.index, inputs)
        counting = _counting(weights, rows.index, rows.counts)
        return problem.objective.sums(problem.answers(leaves, inputs), wanted, counting)

    return Sums(*(jnp.sum(part, axis=0) for part in jax.lax.map(one, rows)))


@partial(jax.jit, static_argnums=(0, 1))
def known_targets(
    problem: Problem, layout: Layout, dense: Any, arrays: Any, index: Int[Array, "n b"]
) -> Any:
    """What the dense network answers, for all examples in a row."""
    found = jax.lax.map(lambda row: problem.targets(dense, layout.inputs(arrays, row)), index)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)


def _targets(problem: Problem, given: Given, known: Any, index: Array, inputs: Any) -> Any:
    if known is None:
        return jax.lax.stop_gradient(problem.targets(given.dense, inputs))
    return jax.tree.map(lambda array: taken(array, index), known)


def _counting(weights: Array, index: Array, counts: Array) -> Array:
    own = taken(weights, index)
    return own * counts.reshape(-1, *(1,) * (own.ndim - 1))
