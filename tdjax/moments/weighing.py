"""Weights of rows: how much each counts in a moment, such as 0 for padded tokens.

Given for a batch as an array (batch, ...) whose axes are the first of what passes through the
model, as an attention mask (batch, tokens). Layers whose rows have these axes in front, merged or
not, are weighed row by row; others example by example, by the largest weight that an example has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float


def weights_of_rows(weights: Float[Array, " b *_"], front: Sequence[int]) -> Float[Array, " rows"]:
    """One weight for each row.

    Arguments:
        weights: of a batch.
        front: sizes of the axes in front of the rows. Rows that are not laid out by examples,
            as those of a table of positions, count as they are.
    """
    front, examples = tuple(front), len(weights)
    if front[: weights.ndim] == weights.shape:
        own = weights
    elif front[:1] == (weights.size,):
        own = weights.reshape(-1)
    elif front and front[0] % examples == 0:
        own = jnp.repeat(weights.reshape(examples, -1).max(axis=1), front[0] // examples)
    else:
        return jnp.ones((math.prod(front),), weights.dtype)
    own = own.reshape(*own.shape, *(1,) * (len(front) - own.ndim))
    return jnp.broadcast_to(own, front).reshape(-1)


def weighed(rows: Float[Array, "n ..."], weights: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """Rows times their weights. Those of weight zero are zero, even where they are not finite.

    Arguments:
        rows: (n, groups, d).
        weights: (n,), or one for each group, (n, groups).
    """
    own = weights.reshape(*weights.shape, *(1,) * (rows.ndim - weights.ndim))
    return jnp.where(own > 0, rows * own, 0.0)
