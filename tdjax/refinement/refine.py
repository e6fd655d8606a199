"""A small network's arrays fitted until it answers as the dense one, whatever its module system."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from tdjax.arguments.described import shapes_text
from tdjax.params.tree import inside, join_path
from tdjax.progress import Steps
from tdjax.refinement.blocks import AUTO, blocks_of, matched
from tdjax.refinement.data import Pool, size_of_steps, split_off
from tdjax.refinement.objective import Objective
from tdjax.refinement.pair import Pair, balanced_leaves
from tdjax.refinement.programs import Given, Problem
from tdjax.refinement.result import Epoch, Refined
from tdjax.refinement.settings import Settings
from tdjax.refinement.training import (
    Course,
    Fitted,
    Training,
    check_finite,
    fitted,
    fitted_at_found_rate,
    judged_loss,
    with_targets,
)
from tdjax.trace.names import names_of


def refine(
    pair: Pair,
    pools: Sequence[Pool],
    held_out: Sequence[Pool] | None,
    settings: Settings,
    key: Array,
    steps: Steps,
) -> Refined:
    """See `tdjax.refine`; `factors` of the result are variables of the small network.

    Arguments:
        pools: of all examples.
        held_out: those by which iterates are judged; None for a share of the others.
    """
    order, key = jax.random.split(key)
    if held_out is None:
        pools, held_out = split_off(pools, settings.held_out, order)
    work = _work(pair, pools, held_out, settings)
    blocks = [] if settings.blocks is None else blocks_of(pair.plan, pair.modules, settings.blocks)
    _check_calls(work.training)
    if blocks:
        _check_calls(_of_blocks(work, blocks, blocks if settings.mix else ()))
    work, start = _started(work)
    now, found = _blocks(work, blocks, key, steps)
    fit, rate = _fitted(now, settings.epochs, jax.random.fold_in(key, 1), steps, "all layers")
    best = _with_start(fit, start, work) if blocks else fit
    # At best 0 nothing is an improvement, not even what the blocks made.
    own = now if best.best else work
    leaves = work.training.problem.leaves(own.training.given.leaves, best.trained)
    leaves, renewed = _renewed(work, leaves, best, steps)
    return Refined(
        jax.tree.unflatten(pair.structure, leaves), best.curve, best.best, rate, best.stopped,
        renewed, found,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Work:
    """What is refined, and how.

    Arguments:
        training: of all layers.
    """

    pair: Pair
    settings: Settings
    training: Training


def _work(pair: Pair, pools: Sequence[Pool], held_out: Sequence[Pool], settings: Settings) -> Work:
    weights = settings.weights
    paths = matched("features", [own for own in weights if own != AUTO], pair.modules)
    if AUTO in weights:
        paths[AUTO] = blocks_of(pair.plan, pair.modules, AUTO)
    features = tuple(
        (path, weights[pattern] / len(found)) for pattern, found in paths.items() for path in found
    )
    problem = Problem(
        pair.dense[0], pair.small[0], Objective(settings.loss, settings.temperature, features),
        pair.structure, (), (), settings.optimizer or _adam(), settings.augment,
    )  # fmt: skip
    problem = _with_places(problem, pair, pair.places(settings.trained))
    given = Given(pair.dense[1], pair.leaves)
    size = size_of_steps(pools, settings.batch_size)
    return Work(pair, settings, Training(problem, given, pools, held_out, size))


def _started(work: Work) -> tuple[Work, Epoch]:
    """With balanced factors and known targets, and the losses before any step.

    Raises ValueError for NaN or Inf.
    """
    pair, leaves = work.pair, work.pair.leaves
    if work.settings.balance:
        leaves = balanced_leaves(leaves, pair.names, pair.plan)
    work = replace(work, training=with_targets(_at(work.training, leaves), work.settings.memory))
    start = Epoch(None, judged_loss(work.training, _trained(work.training)))
    if not math.isfinite(start.held_out):
        check_finite(work.training, _trained(work.training), work.training.judged)
        raise ValueError(
            "refine: at the start the loss is NaN or Inf: look for them in the batches and in the "
            "model's weights"
        )
    return work, start


def _with_places(problem: Problem, pair: Pair, places: tuple[int, ...]) -> Problem:
    """A problem in which the leaves at some places are trained."""
    leaves = pair.leaves
    dtypes = tuple(np.dtype(leaves[place].dtype) for place in places)
    return replace(problem, places=places, dtypes=dtypes)


@lru_cache(maxsize=1)
def _adam() -> optax.GradientTransformation:
    """One object, so that programs are shared."""
    return optax.chain(optax.scale_by_adam(nesterov=True), optax.scale(-1.0))


def _at(training: Training, leaves: Sequence[Any]) -> Training:
    """A training that begins with some leaves."""
    return replace(training, given=training.given._replace(leaves=list(leaves)))


def _trained(training: Training) -> list[Array]:
    return training.problem.trained(training.given.leaves)


def _check_calls(training: Training) -> None:
    """Refuse, by shapes alone, what a step would fail on."""
    problem, pool = training.problem, training.pools[0]
    rows = jnp.zeros(training.size, jnp.int32)

    def loss(given: Given, arrays: Any, weights: Array) -> tuple[Any, Any, Array]:
        inputs = pool.layout.inputs(arrays, rows)
        changed = inputs
        if problem.augment is not None:
            changed = problem.augment(jax.random.key(0), inputs)
        wanted = problem.targets(given.dense, changed)
        others = problem.replaced(given.dense, changed, len(rows), jax.random.key(0))
        sums = problem.objective.sums(
            problem.answers(given.leaves, changed, others), wanted, jnp.take(weights, rows, axis=0)
        )
        return inputs, changed, problem.objective.value(sums, wanted)

    inputs, changed, _ = jax.eval_shape(loss, training.given, pool.arrays, pool.weights)
    before, after = (
        [(names_of(path), leaf.shape, leaf.dtype) for path, leaf in jax.tree.leaves_with_path(x)]
        for x in (inputs, changed)
    )
    if before != after:
        raise ValueError(
            f"refine: augment made {shapes_text(changed)} of {shapes_text(inputs)}: return one "
            "like the input that it is given"
        )


def _of_blocks(work: Work, blocks: Sequence[str], earlier: Sequence[str]) -> Training:
    """The training of what is in some blocks, towards what the dense ones return.

    Arguments:
        earlier: blocks that return what the dense ones do, for the share of examples to mix.
    """
    training, pair = work.training, work.pair

    def is_in_blocks(place: int) -> bool:
        # A shared factor is, where all that read it are.
        paths = pair.readers.get(place, (join_path(*(pair.names[place] or ())),))
        return all(any(inside(path, block) for block in blocks) for path in paths)

    places = tuple(filter(is_in_blocks, training.problem.places))
    problem = replace(
        _with_places(training.problem, pair, places),
        objective=Objective(None, features=tuple((block, 1.0) for block in blocks)),
        mix=work.settings.mix,
        earlier=tuple(earlier),
    )
    plain = [replace(pool, targets=None) for pool in training.pools]
    held_out = [replace(pool, targets=None) for pool in training.held_out]
    return replace(training, problem=problem, pools=plain, held_out=held_out)


def _blocks(
    work: Work, blocks: Sequence[str], key: Array, steps: Steps
) -> tuple[Work, dict[str, tuple[float, float]]]:
    """All blocks refined one after the other, each with the inputs that those before it make.

    Returns the work that is left to do, and the losses of each block before and after.
    """
    found, epochs = {}, work.settings.block_epochs
    for number, block in enumerate(blocks):
        training = _of_blocks(work, [block], blocks[:number] if work.settings.mix else ())
        own = replace(work, training=with_targets(training, work.settings.memory))
        if own.training.problem.places:
            name = f"block {block} ({number + 1} of {len(blocks)})"
            fit, _ = _fitted(own, epochs, jax.random.fold_in(key, number + 2), steps, name)
            leaves = own.training.problem.leaves(own.training.given.leaves, fit.trained)
            work = replace(work, training=_at(work.training, leaves))
            found[block] = (fit.curve[0].held_out, fit.curve[fit.best].held_out)
    return work, found


def _fitted(
    work: Work, epochs: int, key: Array, steps: Steps, name: str
) -> tuple[Fitted, float | None]:
    """What is trained, at its best, and the learning rate."""
    training, settings = work.training, work.settings
    trained, rate = _trained(training), settings.learning_rate
    with steps.step(name, "epoch", epochs) as tick:

        def tell(number: int, epoch: Epoch) -> None:
            tick(number, f"training loss {epoch.training:.4g}, held-out {epoch.held_out:.4g}")

        course = Course(epochs, rate, settings.patience)
        if settings.optimizer is None and rate is None and epochs:
            fit, rate = fitted_at_found_rate(training, trained, course, key, tell)
        else:
            fit = fitted(training, trained, course, key, tell)
        before, after = fit.curve[0].held_out, fit.curve[fit.best].held_out
        at = "" if rate is None else f", learning rate {rate:.2g}"
        why = "" if fit.stopped is None else f"; stopped: {fit.stopped}"
        tick(len(fit.curve) - 1, f"held-out loss {before:.4g} -> {after:.4g}{at}{why}")
    return fit, rate


def _with_start(fit: Fitted, start: Epoch, work: Work) -> Fitted:
    """With the start in front, from which the first epoch of the fit came by blocks."""
    curve = (start, *fit.curve)
    if start.held_out <= fit.curve[fit.best].held_out:
        return replace(fit, curve=curve, best=0, trained=_trained(work.training))
    return replace(fit, curve=curve, best=fit.best + 1)


def _renewed(work: Work, leaves: list[Any], fit: Fitted, steps: Steps) -> tuple[list[Any], bool]:
    """The leaves with batch statistics estimated again where these are no worse."""
    pair, before = work.pair, fit.curve[fit.best].held_out
    if pair.renewed is None:
        return leaves, False
    with steps.step("batch statistics") as tick:
        again = jax.tree.leaves(pair.renewed(jax.tree.unflatten(pair.structure, leaves)))
        training = _at(work.training, again)
        after = judged_loss(training, _trained(training))
        kept = after <= before
        tick(0, f"held-out loss {before:.4g} -> {after:.4g}: {'kept' if kept else 'left'}")
    return (again, True) if kept else (leaves, False)
