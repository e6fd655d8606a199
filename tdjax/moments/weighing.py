"""Weights of rows: how much each counts in a moment, such as 0 for padded tokens.

Given for a batch as an array (batch, ...) whose axes are the first of what passes through the
model, as an attention mask (batch, tokens). Layers whose rows have these axes in front, merged or
not, or the first two of them the other way round, are weighed row by row; rows that all examples
have in common, as those of a table of positions, by the mean over the examples; others example by
example, by the largest weight that an example has. Axes are told by their sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float


def by_row(
    weights: Float[Array, "*_"], front: Sequence[int], *, constant: bool = False
) -> Float[Array, "*_"] | None:
    """The weights in the order of rows that have their axes in front; None for other rows.

    Arguments:
        front, constant: see `laid_out`.
    """
    front = tuple(front)
    if front[: weights.ndim] == weights.shape:
        return weights
    if front[:1] == (weights.size,):
        return weights.reshape(-1)
    if constant or weights.ndim < 2 or front[:1] == weights.shape[:1]:
        return None
    turned = weights.swapaxes(0, 1)
    return turned if front[: weights.ndim] == turned.shape else None


def laid_out(
    weights: Float[Array, "*_"],
    front: Sequence[int],
    *,
    constant: bool = False,
    summed: bool = False,
) -> Float[Array, "*_"]:
    """The weights with axes that are the first of `front`; laid out again, they stay.

    Arguments:
        weights: of a batch, or laid out.
        front: sizes of the axes in front of the rows.
        constant: whether the rows do not depend on the batch, so that examples are not told by
            the number of rows.
        summed: of a gradient: that of rows which all examples have in common is the sum of
            theirs already, and counts as it is unless it is that of padding.
    """
    front = tuple(front)
    own = by_row(weights, front, constant=constant)
    if own is not None:
        return own
    examples, *rest = weights.shape
    if not constant and front[:1] == (examples,):
        return weights_of_examples(weights)
    ones = front[:1] if front[:1] == (1,) else ()
    if (rest or constant or ones) and front[: len(ones) + len(rest)] == (*ones, *rest):
        mean = weights.mean(axis=0)
        mean = jnp.where(mean > 0, 1.0, 0.0) if summed else mean
        return mean.reshape(*ones, *rest)
    if front[:1] == (examples,):
        return weights_of_examples(weights)
    if not constant and front and front[0] % examples == 0:
        return jnp.repeat(weights_of_examples(weights), front[0] // examples)
    # Rows of another kind count as they are.
    return jnp.ones((), weights.dtype)


def weights_of_rows(weights: Float[Array, "*_"], front: Sequence[int]) -> Float[Array, " rows"]:
    """One weight for each row; see `laid_out`."""
    own = laid_out(weights, front)
    own = own.reshape(*own.shape, *(1,) * (len(front) - own.ndim))
    return jnp.broadcast_to(own, tuple(front)).reshape(-1)


def weights_of_examples(weights: Float[Array, " b *_"]) -> Float[Array, " b"]:
    """One weight for each example: the largest that it has."""
    return weights.reshape(len(weights), -1).max(axis=1)


def weighed(rows: Float[Array, "n ..."], weights: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """Rows times their weights. Those of weight zero are zero, even where they are not finite.

    Arguments:
        rows: (n, groups, d).
        weights: (n,), or one for each group, (n, groups).
    """
    own = weights.reshape(*weights.shape, *(1,) * (rows.ndim - weights.ndim))
    return jnp.where(own > 0, rows * own, 0.0)


def without_lost_padding(x: Array, weights: Float[Array, " b *_"]) -> Array:
    """An array of a batch with zeros for what is not finite in rows of weight zero.

    Through a gradient it would spoil all others. Of an array that has the axes of the weights
    alone NaN goes, and infinity stays, as in a mask that is added to scores.
    """
    own = by_row(weights, x.shape)
    if own is None or not jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    own = own.reshape(*own.shape, *(1,) * (x.ndim - own.ndim))
    lost = jnp.isnan(x) if x.shape == own.shape else ~jnp.isfinite(x)
    return jnp.where((own == 0) & lost, 0, x)
