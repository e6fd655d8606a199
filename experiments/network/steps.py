"""The steps of an epoch of training, of several runs at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from experiments.data.augment import random_crop_flip
from experiments.data.splits import Inputs, rows
from experiments.network.expanded import Expanded
from experiments.network.forward import Apply, Variables
from experiments.network.judge import Judge
from experiments.network.schedule import FitSettings

T = TypeVar("T")


class Epoch(NamedTuple):
    """What the steps of an epoch, or one of them, are taken on.

    Arguments:
        images, labels: all examples, or those of this step.
        order: that of each run: of all its examples, of which a step takes its batch, or of the
            one batch.
        keys: of each run in this epoch.
        fill: the padding of random crops.
    """

    images: Inputs
    labels: Array
    order: Int[Array, "runs n"]
    keys: Array
    fill: Array


class Course(NamedTuple):
    """Where the steps of an epoch have led to; every leaf has the runs as its first axis.

    Arguments:
        loss: the sum of the losses of the batches, each before its step. On the device: to ask for
            it at each step would keep the next one waiting.
    """

    model: Variables
    optimizer: Any
    loss: Float[Array, " runs"]


def plain_steps(
    course: Course, feed: Iterable[Epoch], apply: Apply, *, taken: int, **options: Any
) -> Iterator[Course]:
    """Steps of an epoch of a network whose own parameters are trained: a program for each.

    Yields after each of them.

    Arguments:
        feed: what each of the steps is taken on.
        taken: how many steps of the epoch are before them.
    """
    # Not one for all of them: in a loop XLA has no fast convolution on a CPU.
    for index, data in enumerate(feed, taken):
        course = _step(course, data, index, apply=apply, **options)
        yield course


def expanded_steps(
    course: Course,
    feed: Iterable[Epoch],
    apply: Expanded,
    *,
    taken: int,
    steps: int,
    **options: Any,
) -> Iterator[Course]:
    """The same of one whose parameters are made of others: two programs for each step."""
    (params, state), optimizer, total = course
    settings = options["settings"]
    full = whole(params, apply)
    for index, data in enumerate(feed, taken):
        gradient, state, total = _gradient(
            Variables(full, state), total, data, index, apply=apply.apply, steps=steps, **options
        )
        params, optimizer, full = _taken_back(
            params, optimizer, gradient, apply=apply, settings=settings, steps=steps
        )
        yield Course(Variables(params, state), optimizer, total)


@partial(jax.jit, static_argnames=("apply", "settings", "steps", "judge", "parts"))
def _step(
    course: Course,
    data: Epoch,
    index: Int[Array, ""],
    *,
    settings: FitSettings,
    steps: int,
    **options: Any,
) -> Course:
    """One optimisation step of all runs; compiled once for equal arguments and shapes."""
    slope: Any = partial(_slope, settings=settings, steps=steps, **options)

    def one(own: Course, order: Array, key: Array) -> Course:
        gradient, state, loss = slope(own.model, data._replace(order=order, keys=key), index)
        params, optimizer = _updated(own.model.params, own.optimizer, gradient, settings, steps)
        return Course(Variables(params, state), optimizer, own.loss + loss)

    return jax.vmap(one)(course, data.order, data.keys)


@partial(jax.jit, static_argnames=("apply", "settings", "steps", "judge", "parts"))
def _gradient(
    models: Variables, totals: Array, data: Epoch, index: Int[Array, ""], **options: Any
) -> tuple[Any, Any, Array]:
    """The gradient of all runs' parameters in one step, the collections and the sums after it."""

    def one(model: Variables, total: Array, order: Array, key: Array) -> tuple[Any, Any, Array]:
        own = data._replace(order=order, keys=key)
        gradient, state, loss = _slope(model, own, index, **options)
        return gradient, state, total + loss

    return each(one, models, totals, data.order, data.keys)


@partial(jax.jit, static_argnames=("apply", "settings", "steps"))
def _taken_back(
    params: Any,
    optimizers: Any,
    gradients: Any,
    *,
    apply: Expanded,
    settings: FitSettings,
    steps: int,
) -> tuple[Any, Any, Any]:
    """What a step makes of all runs' parameters, given the gradient of what they expand to."""

    def one(params: Any, optimizer: Any, gradient: Any) -> tuple[Any, Any, Any]:
        (own,) = jax.vjp(apply.whole, params)[1](gradient)
        params, optimizer = _updated(params, optimizer, own, settings, steps)
        return params, optimizer, apply.whole(params)

    return each(one, params, optimizers, gradients)


@partial(jax.jit, static_argnames=("apply",))
def whole(params: Any, apply: Expanded) -> Any:
    """The parameters of all runs that `apply` makes of theirs."""
    return each(apply.whole, params)


def each(function: Callable[..., T], *of_runs: Any) -> T:
    """A function of each run, side by side; of one alone as it is.

    XLA's convolutions on a CPU take up to twice as long with an axis of one run.
    """
    if jax.tree.leaves(of_runs)[0].shape[0] > 1:
        return jax.vmap(function)(*of_runs)
    found = function(*jax.tree.map(lambda leaf: leaf[0], of_runs))
    return cast(T, jax.tree.map(lambda leaf: leaf[None], found))


def _slope(
    model: Variables,
    data: Epoch,
    index: Int[Array, ""],
    *,
    apply: Apply,
    settings: FitSettings,
    steps: int,
    judge: Judge,
    parts: NamedSharding | None,
) -> tuple[Any, Any, Array]:
    """The gradient of one run's parameters on a batch, the collections after it, and the loss.

    Arguments:
        parts: how the batch is split over devices, None for one that is not. Sums and statistics
            are those of all of it in any case.
    """
    size = settings.batch_size
    # Of the order of one batch all: a slice does not start behind the last place that holds it.
    chosen = jax.lax.dynamic_slice(data.order, (index * size,), (size,))
    batch, targets = rows(data.images, chosen), data.labels[chosen]
    if settings.augment:
        batch = random_crop_flip(jax.random.fold_in(data.keys, index), batch, fill=data.fill)
    if parts is not None:
        batch, targets = jax.lax.with_sharding_constraint((batch, targets), parts)

    # The keys below `steps` belong to the crops.
    drawn = jax.random.fold_in(data.keys, steps + index)

    def loss(params: Any) -> tuple[Array, Any]:
        logits, state = apply(params, model.state, batch, drawn)
        return jnp.mean(judge(logits, targets)[1]), state

    (found, state), gradient = jax.value_and_grad(loss, has_aux=True)(model.params)
    return gradient, state, found.astype(jnp.float32)


def _updated(
    params: Any, optimizer: Any, gradient: Any, settings: FitSettings, steps: int
) -> tuple[Any, Any]:
    updates, optimizer = settings.optimiser(steps).update(gradient, optimizer, params)
    return optax.apply_updates(params, updates), optimizer
