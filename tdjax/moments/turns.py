"""Sums over many examples, of a few at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def in_turns(function: Callable[[Any], Any], x: Any, count: int) -> Any:
    """Sum of a function of `count` examples at a time.

    Arguments:
        function: from a pytree of arrays to one of sums over their first axis.
        x: the whole arrays.
    """
    number = jax.tree.leaves(x)[0].shape[0]
    count = max(1, min(number, count))
    whole, rest = divmod(number, count)
    if whole == 1:
        total = function(jax.tree.map(lambda x: x[:count], x))
    else:
        # The examples of a turn lie apart, so that all devices that share them have some.
        turns = jax.tree.map(
            lambda x: x[: whole * count].reshape(count, whole, *x.shape[1:]).swapaxes(0, 1), x
        )
        shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], turns))
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, _ = jax.lax.scan(lambda sum, turn: (_plus(sum, function(turn)), None), zero, turns)
    return _plus(total, function(jax.tree.map(lambda x: x[whole * count :], x))) if rest else total


def _plus(one: Any, other: Any) -> Any:
    return jax.tree.map(jnp.add, one, other)
