"""Networks trained with labels: from nothing, or as the rival of refinement."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from jaxtyping import Array, Int, UInt8

from benchmarks.refinement.images import augmented, standardised
from tdjax.progress import Steps


@dataclass(frozen=True)
class Course:
    """How a network is trained: a short rise of the learning rate, half a cosine down to zero.

    Arguments:
        optimizer: without a learning rate; those that share one share programs.
        rate: the highest.
        batch: images of each step.
        train: whether batch statistics are those of each batch; else they stay.
        augment: whether images are cropped and mirrored at random.
    """

    optimizer: optax.GradientTransformation
    epochs: int
    rate: float
    batch: int
    train: bool
    augment: bool = True

    def rates(self, steps: int) -> np.ndarray:
        """The learning rate, step by step."""
        rise = max(1, steps // 20)
        schedule = optax.warmup_cosine_decay_schedule(0.0, self.rate, rise, max(steps, rise + 1))
        return np.asarray(schedule(np.arange(1, steps + 1)), np.float32)


def descended(
    name: str,
    model: nn.Module,
    course: Course,
    variables: Any,
    images: UInt8[np.ndarray, "n h w 3"],
    labels: Int[np.ndarray, " n"],
) -> Any:
    """Variables after all epochs, each in an order of its own; a last batch that is short is left.

    Arguments:
        name: of what is done, on lines about its progress.
    """
    rates = iter(course.rates(course.epochs * (len(images) // course.batch)))
    state = _State(variables, course.optimizer.init(variables["params"]))
    options = (course.optimizer, course.train, course.augment)
    with Steps("labels", progress=True).step(name, "epoch", course.epochs) as tick:
        for epoch in range(1, course.epochs + 1):
            key = jax.random.fold_in(jax.random.key(1), epoch)
            losses = []
            for number, rows in enumerate(_batches(key, len(images), course.batch)):
                examples = images[rows], labels[rows], jax.random.fold_in(key, number)
                state, loss = _step(model, options, state, next(rates), *examples)
                losses.append(loss)
            tick(epoch, f"loss {np.mean(jax.device_get(losses)):.3f}" if losses else "")
    return state.variables


class _State(NamedTuple):
    """What steps change."""

    variables: Any
    optimizer: Any


def _batches(key: Array, number: int, size: int) -> Iterator[np.ndarray]:
    order = np.asarray(jax.random.permutation(key, number))
    for start in range(0, number - size + 1, size):
        yield order[start : start + size]


# A program for each step: inside a loop XLA runs convolutions on one core of a CPU.
@partial(jax.jit, static_argnums=(0, 1))
def _step(
    model: nn.Module,
    options: tuple[optax.GradientTransformation, bool, bool],
    state: _State,
    rate: Array,
    images: Array,
    labels: Array,
    key: Array,
) -> tuple[_State, Array]:
    optimizer, train, augment = options
    inputs = standardised(images)
    inputs = augmented(key, inputs) if augment else inputs

    def loss(params: Any) -> tuple[Array, Any]:
        own = {**state.variables, "params": params}
        logits, rest = model.apply(own, inputs, train=train, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), rest

    params = state.variables["params"]
    (value, rest), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    updates, known = optimizer.update(gradients, state.optimizer, params)
    updates = jax.tree.map(lambda update: -rate * update, updates)
    params = optax.apply_updates(params, updates)
    return _State({**state.variables, **rest, "params": params}, known), value
