"""One small training loop: several runs of equal shapes, early stopping, resumable by epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from experiments.data.splits import DataSplits, Examples, Inputs
from experiments.network.expanded import Expanded
from experiments.network.feed import feed_of, on_device
from experiments.network.forward import Apply, Variables
from experiments.network.judge import BY_CLASS, Judge
from experiments.network.schedule import FitSettings
from experiments.network.steps import Course, expanded_steps, plain_steps, whole
from experiments.workdir.devices import in_parts, parts_of, spread
from experiments.workdir.fields import FieldError


class Scores(NamedTuple):
    """Performance on a set of examples, one entry for each run.

    Arguments:
        accuracy: share of right classes, or the mean of another metric; NaN where there is none.
        cross_entropy: the mean loss, see `experiments.network.judge`.
    """

    accuracy: Float[np.ndarray, " runs"]
    cross_entropy: Float[np.ndarray, " runs"]


class Fit(NamedTuple):
    """A training in progress or at its end; every leaf has the runs as its first axis.

    A pytree of arrays, so a checkpoint of it continues the training exactly.

    Arguments:
        best_loss: the validation loss of the best epoch, or with `FitSettings.best_by_metric` what
            its metric lacks to 1.
    """

    model: Variables
    optimizer: Any
    best: Variables
    best_loss: Float[Array, " runs"]
    best_epoch: Int[Array, " runs"]
    epoch: Int[Array, " runs"]


class Begun(NamedTuple):
    """A training within an epoch; a pytree of arrays, of which a checkpoint continues it exactly.

    The order of the data follows from the runs' keys and the epoch: where to read on, in memory or
    in files, is told by the number of steps alone.

    Arguments:
        fit: before the epoch.
        course: where its steps have led to.
        taken: how many steps these are.
    """

    fit: Fit
    course: Course
    taken: Int[np.ndarray, ""] | Int[Array, ""]


class Trained(NamedTuple):
    """A training after one more epoch, and how that went.

    Arguments:
        loss: mean of the batches, each before its step.
        scores: on the validation examples, after the epoch.
    """

    fit: Fit
    loss: Float[np.ndarray, " runs"]
    scores: Scores


def start_fit(models: Variables, settings: FitSettings) -> Fit:
    """The state before the first epoch. Every leaf of `models` has the runs as its first axis."""
    runs = jax.tree.leaves(models.params)[0].shape[0]
    none = jnp.asarray(np.zeros(runs, np.int32))
    worst = jnp.asarray(np.full(runs, np.inf, np.float32))
    return Fit(models, _optimizer_state(models.params, settings), models, worst, none, none)


@partial(jax.jit, static_argnames=("settings",))
def _optimizer_state(params: Any, settings: FitSettings) -> Any:
    # The state counts steps, whatever the number of them in an epoch.
    return jax.vmap(settings.optimiser(1).init)(params)


def fit_epochs(
    fit: Fit | Begun,
    apply: Apply,
    settings: FitSettings,
    splits: DataSplits,
    keys: Array,
    judge: Judge = BY_CLASS,
    keep: Callable[[Begun], None] | None = None,
) -> Iterator[Trained]:
    """Train all runs side by side, yielding after every epoch; the last yield has the result.

    Where the arrays of `fit` are spread over devices each of these takes a part of every batch.

    Each run has its own order of the data and its own augmentation, fixed by its key and the
    epoch, so a run gives the same numbers alone, beside others, and continued from a checkpoint.

    Arguments:
        fit: from `start_fit`, or the last one yielded before an interruption, or given to `keep`.
        apply: the network's forward function.
        splits: the training examples are trained on; early stopping looks at the validation set.
        keys: (runs,) PRNG keys.
        judge: the loss that is trained by.
        keep: called after each step but the last of an epoch.

    The best model of a run whose loss is never finite is the one it started from, of epoch 0.

    Raises ValueError where the training set is smaller than one batch.
    """
    steps = steps_per_epoch(splits.train, settings)
    begun = fit if isinstance(fit, Begun) else None
    fit = begun.fit if begun else cast(Fit, fit)
    parts = parts_of(fit.model)
    place: Any = on_device if parts is None else spread
    feed = feed_of(splits, settings.batch_size, place)
    options: dict[str, Any] = {"settings": settings, "steps": steps, "judge": judge, "parts": parts}
    take: Callable[..., Iterator[Course]] = (
        expanded_steps if isinstance(apply, Expanded) else plain_steps
    )
    nothing = place(np.zeros(len(keys), np.float32))
    while not is_over(fit, settings):
        epoch = int(np.max(fit.epoch))
        own, order = place(_orders(keys, epoch, len(splits.train.labels)))
        course, first = Course(fit.model, fit.optimizer, nothing), 0
        if begun:
            course, first = begun.course, int(begun.taken)
        batches, begun = feed.steps(order, own, range(first, steps)), None
        states = take(course, batches, apply, taken=first, **options)
        for taken, state in enumerate(states, first + 1):
            course = state
            if keep and taken < steps:
                keep(Begun(fit, course, np.asarray(taken, np.int32)))
        scores = evaluate(course.model, apply, splits.validation, judge=judge)
        fit = _keep_best(fit, course, scores, settings)
        yield Trained(fit, np.asarray(course.loss) / steps, scores)


def is_over(fit: Fit, settings: FitSettings) -> bool:
    """Whether no run has an epoch left."""
    return int(np.max(fit.epoch)) >= settings.epochs or not _running(fit, settings.patience).any()


def steps_per_epoch(train: Examples, settings: FitSettings) -> int:
    """Whole batches in the training set. Raises FieldError if there is none."""
    steps = len(train.labels) // settings.batch_size
    if steps == 0:
        size = settings.batch_size
        problem = f"{len(train.labels)} training examples are less than one batch of {size}"
        raise FieldError("batch_size", f"is {size}: {problem}")
    return steps


def evaluate(
    models: Variables,
    apply: Apply,
    examples: Examples,
    batch_size: int = 500,
    judge: Judge = BY_CLASS,
) -> Scores:
    """Metric and mean loss of every run's model, in inference mode.

    Where the models are spread over devices each of these takes a part of every batch.
    """
    totals: Any = 0
    parts = parts_of(models)
    if isinstance(apply, Expanded):
        # One program for all that are expanded to the same network.
        models, apply = Variables(whole(models.params, apply), models.state), apply.apply
    for images, labels in examples.parts(batch_size):
        own = (images, labels) if parts is None else in_parts((images, labels), parts)
        correct, loss = _evaluate_batch(models, apply, *own, judge, len(labels))
        totals = totals + np.stack([np.asarray(correct, np.float64), np.asarray(loss, np.float64)])
    accuracy, cross_entropy = totals / len(examples.labels)
    return Scores(judge.bounded(accuracy), cross_entropy)


def performance(scores: Scores, index: int, count: int) -> dict[str, Any]:
    """The fields of a record that say how run or candidate `index` did on `count` examples."""
    return {
        "accuracy": float(scores.accuracy[index]),
        "cross_entropy": float(scores.cross_entropy[index]),
        "count": count,
    }


@partial(jax.jit, static_argnames=("count",))
def _orders(keys: Array, epoch: int, count: int) -> tuple[Array, Int[Array, "runs n"]]:
    """The key of each run in an epoch, and its order of the data."""
    own = jax.vmap(lambda key: jax.random.fold_in(key, epoch))(keys)
    return own, jax.vmap(lambda key: jax.random.permutation(key, count))(own)


@partial(jax.jit, static_argnames=("apply", "judge", "number"))
def _evaluate_batch(
    models: Variables, apply: Apply, images: Inputs, labels: Array, judge: Judge, number: int
) -> tuple[Any, Any]:
    """Sums over the first examples of a batch, so many; the others fill it up."""

    def one(model: Variables) -> tuple[Array, Array]:
        logits, _ = apply(model.params, model.state, images, None)
        right, loss = judge(logits, labels)
        return jnp.sum(right[:number]), jnp.sum(loss[:number])

    return jax.vmap(one)(models)


def _running(fit: Fit, patience: int | None) -> Bool[np.ndarray, " runs"]:
    """The runs that are not out of patience, which end even where others beside them go on."""
    waited = np.asarray(fit.epoch) - np.asarray(fit.best_epoch)
    return np.full(waited.shape, True) if patience is None else waited < patience


def _keep_best(fit: Fit, course: Course, scores: Scores, settings: FitSettings) -> Fit:
    least, epoch = np.asarray(fit.best_loss), np.asarray(fit.epoch) + 1
    loss = _judged(scores, settings).astype(least.dtype)
    better = (loss < least) & _running(fit, settings.patience)
    best = fit.best if not better.any() else course.model
    if better.any() and not better.all():
        best = _chosen(better, course.model, fit.best)
    counts = (np.where(better, loss, least), np.where(better, epoch, fit.best_epoch), epoch)
    return Fit(course.model, course.optimizer, best, *map(jnp.asarray, counts))


def _judged(scores: Scores, settings: FitSettings) -> Float[np.ndarray, " runs"]:
    """What is least for the best epoch; NaN for one that cannot be the best."""
    loss = scores.cross_entropy
    if not settings.best_by_metric:
        return loss
    # Where the loss is not finite only a part of the outputs may be so.
    lacking = np.where(np.isfinite(loss), 1 - scores.accuracy, np.nan)
    return np.where(np.isnan(scores.accuracy), loss, lacking)


@jax.jit
def _chosen(better: Array, model: Variables, best: Variables) -> Variables:
    """The better of two models, for each run."""

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return cast(Variables, jax.tree.map(choose, model, best))
