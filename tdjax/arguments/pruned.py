"""What the functions that prune are handed: layers, patterns, masks and shares.

Each check returns what is wrong, as in `tdjax.arguments.checks`.
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tdjax.arguments.described import described, is_array
from tdjax.arguments.models import is_model
from tdjax.arguments.numeric import Problem
from tdjax.plan.layers import Layer
from tdjax.plan.plan import Plan


def check_layers(value: Any) -> Problem:
    """A layer table, or None."""
    remedy = "pass what tdjax.layer_table returned"
    if value is None:
        return None
    if isinstance(value, Plan):
        return TypeError("is a Plan: pass [entry.layer for entry in plan.layers]")
    if isinstance(value, Layer):
        return TypeError("is one Layer: pass a sequence, (layer,)")
    if isinstance(value, str) or not isinstance(value, Sequence):
        return TypeError(f"is {described(value)}: {remedy}")
    for place, layer in enumerate(value):
        if not isinstance(layer, Layer):
            return TypeError(f"holds {described(layer)} at {place}: {remedy}")
    return None


def check_paths(value: Any) -> Problem:
    """A pattern for the paths of layers, or several."""
    patterns = [value] if isinstance(value, str) else value
    if not isinstance(patterns, Sequence):
        return TypeError(f"is {described(value)}: pass a pattern, or a sequence of them")
    for pattern in patterns:
        if not isinstance(pattern, str):
            return TypeError(f"holds {described(pattern)}: pass patterns, as text")
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            return ValueError(f"holds {pattern!r}, which is no pattern: {error}")
    return None


def check_chain(value: Any) -> Problem:
    """Paths of layers in forward order, or None."""
    if isinstance(value, str):
        return TypeError(f"is a str: pass a sequence of paths, ({value!r},)")
    if value is None or isinstance(value, Sequence):
        return None
    return TypeError(f"is {described(value)}: pass the paths of layers in forward order")


def check_mask(value: Any) -> Problem:
    """A pytree of arrays, or a function that makes one."""
    if callable(value) and not is_model(value):
        return None
    leaves = jax.tree.leaves(value) or [value]
    others = [leaf for leaf in leaves if not is_array(leaf)]
    if not others:
        return None
    return TypeError(f"holds {described(others[0])}: pass arrays, as tdjax.magnitude_prune makes")


def check_share(value: Any) -> Problem:
    """A number that is not traced, or None."""
    if isinstance(value, jax.core.Tracer):
        return TypeError("is traced: pass a number, which says how many weights go")
    if value is None or (isinstance(value, numbers.Real) and not isinstance(value, bool)):
        return None
    if is_array(value) and value.shape == () and jnp.issubdtype(value.dtype, jnp.floating):
        return None
    return TypeError(f"is {described(value)}: pass a number between 0 and 1")
