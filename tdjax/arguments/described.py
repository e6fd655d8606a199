"""What a value is, in the words of messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from tdjax.arguments.models import kind_in_words
from tdjax.moments.collect import LayerMoments
from tdjax.plan.plan import Plan
from tdjax.plan.rules import Rule
from tdjax.plan.wishes import BudgetRule
from tdjax.trace.call import split_arrays


def described(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    for kind, words in (
        (Rule, "one Rule"),
        (BudgetRule, "one BudgetRule"),
        (Plan, "a Plan"),
        (LayerMoments, "the LayerMoments of one layer"),
    ):
        if isinstance(value, kind):
            return words
    model = kind_in_words(value)
    if model is not None:
        return f"{model.words} ({type(value).__name__})"
    if is_array(value):
        return f"an array {value.dtype}{list(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dict with the keys {', '.join(map(str, value)) or '(none)'}"
    if is_shape(value):
        return f"a shape {tuple(value)}"
    name = type(value).__name__
    if isinstance(value, (list, tuple)) and value:
        return f"a {name} of {type(value[0]).__name__}"
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def shapes_text(inputs: Any) -> str:
    """The arrays of a model's inputs as people read them."""
    arrays, _ = split_arrays(inputs)
    return ", ".join(f"{array.dtype}{list(array.shape)}" for array in arrays) or "no array"


def is_array(value: Any) -> bool:
    """Whether a value is an array, or the shape of one."""
    return isinstance(value, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct))


def is_shape(value: Any) -> bool:
    """Whether a value is a shape: integers and nothing else."""
    return isinstance(value, (list, tuple)) and bool(value) and all(type(n) is int for n in value)
