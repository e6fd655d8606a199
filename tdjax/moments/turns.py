"""Sums over many examples, of a few at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def in_turns(function: Callable[[Any], Any], x: Any, count: int) -> Any:
    """Sum of a function of about `count` examples at a time.

    Arguments:
        function: from a pytree of arrays to one of sums over their first axis, zero for zeros.
        x: the whole arrays.
    """
    number = jax.tree.leaves(x)[0].shape[0]
    # So many that all devices which share the examples have some.
    count = max(1, min(number, max(count, jax.local_device_count())))
    turns = -(-number // count)
    if turns <= 1:
        return function(x)
    count = -(-number // turns)

    def apart(x: jax.Array) -> jax.Array:
        # Those of a turn lie apart, for the same reason.
        whole = jnp.pad(x, [(0, count * turns - number), *((0, 0) for _ in x.shape[1:])])
        return whole.reshape(count, turns, *x.shape[1:]).swapaxes(0, 1)

    parts = jax.tree.map(apart, x)
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(
        lambda sum, turn: (jax.tree.map(jnp.add, sum, function(turn)), None), zero, parts
    )
    return total
