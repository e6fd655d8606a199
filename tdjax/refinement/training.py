"""Epochs of steps, of which the best is kept."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from tdjax.refinement.data import Pool, size_of_steps, steps_in
from tdjax.refinement.objective import Sums
from tdjax.refinement.programs import (
    Batch,
    Given,
    Problem,
    State,
    answered,
    batches_of,
    measured,
    step,
)
from tdjax.refinement.rates import best_rate, schedule, tried_rates
from tdjax.refinement.result import Epoch

# A rate that gains nothing in an epoch is divided by this, at most so many times.
RETREAT, RETREATS = 4.0, 3


@dataclass(frozen=True, eq=False)
class Training:
    """A problem and the examples that it is solved for.

    Arguments:
        pools: of training.
        held_out: those by which iterates are judged; where there are none, those of training.
        size: examples of each step.
    """

    problem: Problem
    given: Given
    pools: Sequence[Pool]
    held_out: Sequence[Pool]
    size: int

    @property
    def judged(self) -> Sequence[Pool]:
        """The examples by which iterates are judged."""
        return self.held_out or self.pools


@dataclass(frozen=True, eq=False)
class Course:
    """For how long, and how fast.

    Arguments:
        epochs: at most.
        rate: what the updates are multiplied by at most; None where the optimiser has its own.
        patience: epochs without a better one after which it ends; None for none.
        trial: end after the first epoch unless it is better than the start.
    """

    epochs: int
    rate: float | None
    patience: int | None = None
    trial: bool = False

    def rates(self, total: int) -> Float[np.ndarray, " n"]:
        """What updates are multiplied by, step by step."""
        return np.ones(total, np.float32) if self.rate is None else self.rate * schedule(total)


@dataclass(frozen=True, eq=False)
class Fitted:
    """The best iterate, its epoch, all epochs, and why training ended before its time."""

    trained: list[Array]
    best: int
    curve: tuple[Epoch, ...]
    stopped: str | None = None


def judged_loss(training: Training, trained: Sequence[Array]) -> float:
    """The loss of the examples by which iterates are judged."""
    problem, given, pools = training.problem, training.given, training.judged
    size = size_of_steps(pools, training.size)
    batches = [batch for pool in pools for batch in batches_of(pool, size)]
    sums = [measured(problem, given, trained, batch) for batch in batches]
    total = Sums(*(sum(parts[1:], parts[0]) for parts in zip(*sums, strict=True)))
    return float(problem.objective.value(total, shapes_of(training, pools[0], size)))


def check_finite(training: Training, trained: Sequence[Array], pools: Sequence[Pool]) -> None:
    """Refuse, with a ValueError that names the batch, examples whose loss is NaN or Inf."""
    size = size_of_steps(pools, training.size)
    for pool in pools:
        for batch in batches_of(pool, size):
            origins = None if pool.origins is None else pool.origins[batch.index]
            for origin in [None] if origins is None else sorted(set(origins[batch.counts > 0])):
                own = batch if origins is None else _of_origin(batch, origins == origin)
                sums = measured(training.problem, training.given, trained, own)
                if not all(bool(jnp.isfinite(part).all()) for part in sums):
                    named = "" if origin is None else f" with batch {origin} (the first is 1)"
                    raise ValueError(
                        f"refine: at the start the loss is NaN or Inf{named}: look for them in the "
                        "batches and in the model's weights"
                    )


def _of_origin(batch: Batch, own: Bool[np.ndarray, " b"]) -> Batch:
    """The examples of one of the batches that were given."""
    return replace(batch, counts=batch.counts * own)


def shapes_of(training: Training, pool: Pool, size: int) -> Any:
    """The shapes of what the dense network answers to so many examples."""

    def answers(dense: Any, arrays: Any, rows: Any) -> Any:
        return training.problem.targets(dense, pool.layout.inputs(arrays, rows))

    return jax.eval_shape(answers, training.given.dense, pool.arrays, jnp.zeros(size, jnp.int32))


def with_targets(training: Training, memory: int) -> Training:
    """With what the dense network answers computed once, as far as it fits into so many bytes."""
    held_out, left = _with_targets(training, training.held_out, memory)
    if training.problem.augment is not None:
        return replace(training, held_out=held_out)
    pools, _ = _with_targets(training, training.pools, left)
    return replace(training, pools=pools, held_out=held_out)


def _with_targets(
    training: Training, pools: Sequence[Pool], memory: int
) -> tuple[Sequence[Pool], int]:
    """Pools with targets where they fit, and the bytes that are left."""
    if not pools:
        return pools, memory
    size = size_of_steps(pools, training.size)
    leaves = jax.tree.leaves(shapes_of(training, pools[0], size))
    each = sum(leaf.dtype.itemsize * math.prod(leaf.shape) for leaf in leaves)
    needed = each * sum(-(-pool.size // size) for pool in pools)
    if needed > memory or any(leaf.shape[:1] != (size,) for leaf in leaves):
        return pools, memory

    def known(pool: Pool) -> Any:
        dense, batches = training.given.dense, batches_of(pool, size)
        parts = [answered(training.problem, dense, batch) for batch in batches]
        return jax.tree.map(lambda *rows: jnp.concatenate(rows), *parts)

    return [replace(pool, targets=known(pool)) for pool in pools], memory - needed


def found_rate(training: Training, trained: Sequence[Array], key: Array) -> float:
    """The learning rate, from a few steps at growing rates, all on the same examples."""
    batch, *_ = batches_of(training.pools[0], training.size, key)
    state, losses = _start(training, trained), []
    for rate in tried_rates():
        state, loss = step(training.problem, training.given, state, batch, float(rate), key)
        losses.append(loss)
    return best_rate(np.asarray(jnp.stack(losses)))


def fitted(
    training: Training,
    trained: Sequence[Array],
    course: Course,
    key: Array,
    tell: Callable[[int, Epoch], None],
) -> Fitted:
    """Train, and keep what is best on the examples that judge, the start among them.

    Arguments:
        tell: is told of each epoch, the first being 1.

    Raises ValueError for NaN or Inf in the examples.
    """
    start = Epoch(None, judged_loss(training, trained))
    fit, state = Fitted(list(trained), 0, (start,)), _start(training, trained)
    each = sum(steps_in(pool, training.size) for pool in training.pools)
    rates = course.rates(course.epochs * each)
    for number in range(1, course.epochs + 1):
        own = rates[(number - 1) * each : number * each]
        state, loss = _epoch(training, state, own, jax.random.fold_in(key, number))
        epoch = Epoch(loss, judged_loss(training, state.trained))
        tell(number, epoch)
        fit = _with_epoch(fit, epoch, state)
        if not (math.isfinite(loss) and math.isfinite(epoch.held_out)):
            # Steps may bring it about; examples that have it before any step spoil all of them.
            check_finite(training, trained, training.pools)
            return replace(fit, stopped=f"the loss is NaN or Inf in epoch {number}")
        if course.trial and number == 1 and not fit.best:
            return replace(fit, stopped="the first epoch is no better than the start")
        if course.patience is not None and number - fit.best >= course.patience:
            return replace(fit, stopped=f"no better since epoch {fit.best}")
    return fit


def fitted_at_found_rate(
    training: Training,
    trained: Sequence[Array],
    course: Course,
    key: Array,
    tell: Callable[[int, Epoch], None],
) -> tuple[Fitted, float]:
    """As `fitted`, and the rate, which is found.

    Where the first epoch is no better than the start, all begins again at a lower rate.
    """
    rate, left = found_rate(training, trained, jax.random.fold_in(key, 0)), RETREATS
    while True:
        own = replace(course, rate=rate, trial=left > 0)
        fit = fitted(training, trained, own, key, tell)
        if fit.best or len(fit.curve) > 2 or not own.trial:
            return fit, rate
        rate, left = rate / RETREAT, left - 1


def _with_epoch(fit: Fitted, epoch: Epoch, state: State) -> Fitted:
    fit = replace(fit, curve=(*fit.curve, epoch))
    if epoch.held_out < fit.curve[fit.best].held_out:
        return replace(fit, trained=state.trained, best=len(fit.curve) - 1)
    return fit


def _start(training: Training, trained: Sequence[Array]) -> State:
    return State(list(trained), training.problem.optimizer.init(list(trained)))


def _epoch(
    training: Training, state: State, rates: Float[np.ndarray, " n"], key: Array
) -> tuple[State, float]:
    """One pass over all examples in a new order, and the mean of the losses before its steps."""
    order, *keys = jax.random.split(key, len(training.pools) + 1)
    turns = np.asarray(jax.random.permutation(order, len(training.pools)))
    shuffled = (batches_of(training.pools[k], training.size, keys[k]) for k in turns)
    losses: list[Array] = []
    for rate, batch in zip(rates, itertools.chain.from_iterable(shuffled), strict=True):
        own = jax.random.fold_in(key, len(losses))
        state, loss = step(training.problem, training.given, state, batch, float(rate), own)
        losses.append(loss)
    return state, float(jnp.stack(losses).mean())
