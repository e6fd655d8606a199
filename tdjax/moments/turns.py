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
    turns = _turns(number, count)
    if turns <= 1:
        return function(x)
    parts = jax.tree.map(lambda x: _apart(x, turns), x)
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(
        lambda sum, turn: (jax.tree.map(jnp.add, sum, function(turn)), None), zero, parts
    )
    return total


def each_in_turns(
    function: Callable[[jax.Array], jax.Array], x: jax.Array, count: int
) -> jax.Array:
    """A function of examples, of about `count` of them at a time; the first axis is theirs."""
    turns = _turns(len(x), count)
    if turns <= 1:
        return function(x)
    found = jax.lax.map(function, _apart(x, turns)).swapaxes(0, 1)
    return found.reshape(-1, *found.shape[2:])[: len(x)]


def _turns(number: int, count: int) -> int:
    # So many at a time that all devices which share the examples have some.
    return -(-number // max(1, min(number, max(count, jax.local_device_count()))))


def _apart(x: jax.Array, turns: int) -> jax.Array:
    """Examples by turns; those of a turn lie apart, so that all devices have some."""
    count = -(-len(x) // turns)
    whole = jnp.pad(x, [(0, count * turns - len(x)), *((0, 0) for _ in x.shape[1:])])
    return whole.reshape(count, turns, *x.shape[1:]).swapaxes(0, 1)
