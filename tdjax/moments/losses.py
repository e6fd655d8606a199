"""Losses whose gradients tell what a change of the outputs does, where there are no labels.

The moments of a layer ask for E g g^T, g the gradient of an example's loss. Drawn at random, a
linear function of the outputs or a label has a gradient with just the E g g^T of the curvature
that is meant, though the loss that has this curvature is at its minimum and has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.decompose.scale import at_least_single
from tdjax.moments.weighing import laid_out
from tdjax.trace.call import batch_size, split_arrays

# (outputs, batch) -> losses of the examples, or their mean: the user's own.
LossFn = Callable[[Any, Any], Any]
OUTPUTS, SAMPLED = NAMES = ("outputs", "sampled")


class Turn(NamedTuple):
    """What a loss may ask of a batch beside it.

    Arguments:
        weights: of its rows, see `tdjax.moments.weighing`, or None.
        number: (2,), numbers of the process and of the batch: each batch has draws of its own.
    """

    weights: Array | None
    number: Any


@dataclass(frozen=True)
class Given:
    """The user's own loss, which needs nothing but the batch."""

    loss_fn: LossFn

    def __call__(self, outputs: Any, batch: Any, turn: Turn) -> Any:
        """Losses of the examples, or their mean."""
        return self.loss_fn(outputs, batch)

    def weights(self, turn: Turn) -> Array | None:
        """Weights for the moments of its gradient."""
        return turn.weights


@dataclass(frozen=True)
class Drawn:
    """A loss by name.

    Arguments:
        name: "outputs" for half the squared change of all outputs, "sampled" for the cross-entropy
            of labels that are drawn from the softmax of the outputs.
        key: of the draws.
        temperature: of the softmax.
        function: whose loss it is, for messages.
    """

    name: str
    key: Array
    temperature: float
    function: str

    def __call__(self, outputs: Any, batch: Any, turn: Turn) -> Float[Array, " b"]:
        """Losses of the examples. Raises ValueError for outputs that have none."""
        number = batch_size(split_arrays(batch)[0])
        key = jax.random.fold_in(jax.random.fold_in(self.key, turn.number[0]), turn.number[1])
        leaves = jax.tree.leaves(outputs)
        places = [place for place, y in enumerate(leaves) if _of_examples(y, number)]
        if self.name == SAMPLED:
            places = [place for place in places if leaves[place].ndim > 1]
        if not places or (self.name == SAMPLED and len(places) > 1):
            raise ValueError(f"{self.function}: {_refusal(self.name, len(places))}")
        if self.name == SAMPLED:
            self._check_classes(leaves[places[0]].shape, turn.weights)
        losses = _signed if self.name == OUTPUTS else partial(_sampled, self.temperature)
        each = [
            losses(jax.random.fold_in(key, place), at_least_single(leaves[place]), turn.weights)
            for place in places
        ]
        return sum(each[1:], each[0])

    def _check_classes(self, shape: tuple[int, ...], weights: Array | None) -> None:
        """Refuse logits, by their shape, whose last axis is not that of classes."""
        of_tokens = weights is not None and weights.ndim > 1 and weights.shape == shape
        if shape[-1] > 1 and not of_tokens:
            return
        what = "as many as there are row_weights" if of_tokens else "a single one"
        raise ValueError(
            f"{self.function}: labels are sampled from the softmax over the last axis, classes; "
            f"the model puts out {shape}, {what}: pass a loss_fn, or "
            "loss_fn='outputs' for the change of the outputs themselves"
        )

    def weights(self, turn: Turn) -> Array | None:
        """Weights for the moments of its gradient, which has those of the rows in it already."""
        return None if turn.weights is None else jnp.where(turn.weights > 0, 1.0, 0.0)


# How the library calls a loss.
TurnLoss = Given | Drawn


def _refusal(name: str, found: int) -> str:
    if name == OUTPUTS:
        return "the model puts out no numbers for each example: pass a loss_fn"
    some = "several arrays that could be" if found else "no"
    return (
        f"the model puts out {some} logits, (batch, ..., classes), to sample from: pass a loss_fn"
    )


def _of_examples(y: Any, number: int) -> bool:
    return bool(jnp.issubdtype(y.dtype, jnp.floating) and y.shape[:1] == (number,))


def _signed(key: Array, y: Float[Array, "*_"], weights: Array | None) -> Float[Array, " b"]:
    """<y, r> with random signs r: E g g^T = J^T J, the curvature of half the squared change of y.

    A row of weight w counts by the root of it, which the square makes w.
    """
    signs = jax.random.rademacher(key, y.shape, y.dtype)
    return _summed(y * signs, weights, y.shape)


def _sampled(
    temperature: float, key: Array, logits: Float[Array, "*_"], weights: Array | None
) -> Float[Array, " b"]:
    """Cross-entropy of labels drawn from the softmax: E g g^T is the Fisher information.

    Of the logits divided by the temperature, and times it: the curvature is that of
    `tdjax.refine`'s "kl" at this temperature.
    """
    front = logits.shape[:-1]
    if weights is not None:
        # Padding may hold anything.
        counted = _over(laid_out(weights, front), logits.ndim) > 0
        logits = jnp.where(counted, logits, 0.0)
    logs = jax.nn.log_softmax(logits / temperature)
    labels = jax.random.categorical(key, jax.lax.stop_gradient(logs))
    taken = jnp.take_along_axis(logs, labels[..., None], axis=-1)[..., 0]
    return _summed(-temperature * taken, weights, front)


def _summed(
    losses: Float[Array, "*_"], weights: Array | None, shape: Sequence[int]
) -> Float[Array, " b"]:
    """Sums over all but the examples, by the roots of the weights."""
    if weights is not None:
        own = _over(laid_out(weights, shape), losses.ndim)
        losses = jnp.where(own > 0, losses * jnp.sqrt(own), 0.0)
    return losses.sum(axis=tuple(range(1, losses.ndim)))


def _over(weights: Array, ndim: int) -> Array:
    return weights.reshape(*weights.shape, *(1,) * (ndim - weights.ndim))
