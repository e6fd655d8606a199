"""One small training loop: several runs of equal shapes, early stopping, resumable by epoch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.data.augment import random_crop_flip
from experiments.data.splits import DataSplits, Examples, Inputs, rows
from experiments.network.forward import Apply, Variables
from experiments.network.judge import BY_CLASS, Judge
from experiments.network.schedule import FitSettings
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
    """

    model: Variables
    optimizer: Any
    best: Variables
    best_loss: Float[Array, " runs"]
    best_epoch: Int[Array, " runs"]
    epoch: Int[Array, " runs"]


def start_fit(models: Variables, settings: FitSettings) -> Fit:
    """The state before the first epoch. Every leaf of `models` has the runs as its first axis."""
    # The state counts steps, whatever the number of them in an epoch.
    optimizer = jax.jit(jax.vmap(settings.optimiser(1).init))(models.params)
    runs = jax.tree.leaves(models.params)[0].shape[0]
    return Fit(
        models,
        optimizer,
        models,
        jnp.full((runs,), jnp.inf),
        jnp.zeros((runs,), jnp.int32),
        jnp.zeros((runs,), jnp.int32),
    )


def fit_epochs(
    fit: Fit,
    apply: Apply,
    settings: FitSettings,
    splits: DataSplits,
    keys: Array,
    judge: Judge = BY_CLASS,
) -> Iterator[Fit]:
    """Train all runs side by side, yielding after every epoch; the last yield is the result.

    Each run has its own order of the data and its own augmentation, fixed by its key and the
    epoch, so a run gives the same numbers alone, beside others, and continued from a checkpoint.

    Arguments:
        fit: from `start_fit`, or the last one yielded before an interruption.
        apply: the network's forward function.
        splits: the training examples are trained on; early stopping looks at the validation loss.
        keys: (runs,) PRNG keys.
        judge: the loss that is trained by.

    The best model of a run whose loss is never finite is the one it started from, of epoch 0.

    Raises ValueError where the training set is smaller than one batch.
    """
    steps = steps_per_epoch(splits.train, settings)
    images, labels = jax.tree.map(jnp.asarray, (splits.train.images, splits.train.labels))
    # The padding of random crops.
    fill = jnp.asarray(splits.black)
    step = partial(_step, apply=apply, settings=settings, steps=steps, judge=judge)
    for epoch in range(int(fit.epoch.max()), settings.epochs):
        if settings.patience is not None and bool(
            (fit.epoch - fit.best_epoch >= settings.patience).all()
        ):
            return
        epoch_keys = jax.vmap(partial(jax.random.fold_in, data=epoch))(keys)
        order = _orders(epoch_keys, len(labels))
        model, optimizer = fit.model, fit.optimizer
        for index in range(steps):
            model, optimizer = step(
                model, optimizer, images, labels, order, epoch_keys, fill, index
            )
        scores = evaluate(model, apply, splits.validation, judge=judge)
        fit = _keep_best(
            fit, model, optimizer, jnp.asarray(scores.cross_entropy), settings.patience
        )
        yield fit


def steps_per_epoch(train: Examples, settings: FitSettings) -> int:
    """Whole batches in the training set. Raises FieldError if there is none."""
    steps = len(train.labels) // settings.batch_size
    if steps == 0:
        size = settings.batch_size
        problem = f"{len(train.labels)} training images are less than one batch of {size}"
        raise FieldError("batch_size", f"is {size}: {problem}")
    return steps


def evaluate(
    models: Variables,
    apply: Apply,
    examples: Examples,
    batch_size: int = 500,
    judge: Judge = BY_CLASS,
) -> Scores:
    """Metric and mean loss of every run's model, in inference mode."""
    totals: Any = 0
    for start in range(0, len(examples.labels), batch_size):
        part = slice(start, start + batch_size)
        images, labels = rows(examples.images, part), examples.labels[part]
        correct, loss = _evaluate_batch(models, apply, images, labels, judge)
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
def _orders(keys: Array, count: int) -> Int[Array, "runs n"]:
    return jax.vmap(lambda key: jax.random.permutation(key, count))(keys)


@partial(jax.jit, static_argnames=("apply", "judge"))
def _evaluate_batch(
    models: Variables, apply: Apply, images: Inputs, labels: Array, judge: Judge
) -> tuple[Any, Any]:
    def one(model: Variables) -> tuple[Array, Array]:
        logits, _ = apply(model.params, model.state, images, None)
        right, loss = judge(logits, labels)
        return jnp.sum(right), jnp.sum(loss)

    return jax.vmap(one)(models)


@partial(jax.jit, static_argnames=("apply", "settings", "steps", "judge"))
def _step(
    models: Variables,
    optimizers: Any,
    images: Inputs,
    labels: Array,
    order: Int[Array, "runs n"],
    keys: Array,
    fill: Array,
    index: Int[Array, ""],
    *,
    apply: Apply,
    settings: FitSettings,
    steps: int,
    judge: Judge,
) -> tuple[Variables, Any]:
    """One optimisation step of all runs; compiled once for equal arguments and shapes."""
    optimiser = settings.optimiser(steps)
    size = settings.batch_size

    def one(model: Variables, optimizer: Any, order: Array, key: Array) -> tuple[Variables, Any]:
        chosen = jax.lax.dynamic_slice(order, (index * size,), (size,))
        batch, targets = rows(images, chosen), labels[chosen]
        if settings.augment:
            batch = random_crop_flip(jax.random.fold_in(key, index), batch, fill=fill)

        # The keys below `steps` belong to the crops.
        drawn = jax.random.fold_in(key, steps + index)

        def loss(params: Any) -> tuple[Array, Any]:
            logits, state = apply(params, model.state, batch, drawn)
            return jnp.mean(judge(logits, targets)[1]), state

        gradient, state = jax.grad(loss, has_aux=True)(model.params)
        updates, optimizer = optimiser.update(gradient, optimizer, model.params)
        return Variables(optax.apply_updates(model.params, updates), state), optimizer

    return jax.vmap(one)(models, optimizers, order, keys)


@partial(jax.jit, static_argnames=("patience",))
def _keep_best(
    fit: Fit, model: Variables, optimizer: Any, loss: Array, patience: int | None
) -> Fit:
    # A run that is out of patience has ended, even where others beside it go on.
    running = jnp.asarray(True) if patience is None else fit.epoch - fit.best_epoch < patience
    better = (loss < fit.best_loss) & running
    epoch = fit.epoch + 1

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return Fit(
        model,
        optimizer,
        jax.tree.map(choose, model, fit.best),
        jnp.where(better, loss, fit.best_loss),
        jnp.where(better, epoch, fit.best_epoch),
        epoch,
    )
