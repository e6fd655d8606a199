"""Variables and parameters of a model, as trees of arrays.

Each check returns what is wrong, as in `tdjax.arguments.checks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tdjax.arguments.described import described
from tdjax.arguments.models import is_model, kind_in_words
from tdjax.arguments.numeric import Problem
from tdjax.plan.plan import Plan
from tdjax.trace.call import split_arrays


def check_variables(value: Any) -> Problem:
    """Variables of a Linen model."""
    if is_train_state(value):
        return TypeError(
            "is a TrainState: pass {'params': state.params}, with 'batch_stats' where it has them"
        )
    if not isinstance(value, Mapping):
        return TypeError(f"is {described(value)}: pass what model.init returned")
    if "params" not in value:
        return ValueError(
            f"has no 'params', but {', '.join(map(str, value)) or 'nothing'}: "
            "pass {'params': params}"
        )
    return None


def check_params(value: Any) -> Problem:
    """Parameters of a Linen model, or variables."""
    if is_train_state(value):
        return TypeError("is a TrainState: pass state.params")
    model = kind_in_words(value)
    if model is not None:
        return TypeError(f"is {described(value)}, {model.no_params}")
    if not isinstance(value, Mapping):
        return TypeError(f"is {described(value)}: pass variables['params'], or the variables")
    return None


def check_tree(value: Any) -> Problem:
    """Parameters of a function, or of a Linen model."""
    return None if holds_arrays(value) else check_params(value)


def holds_arrays(value: Any) -> bool:
    """Whether a value is a pytree of arrays, and nothing that has another meaning here."""
    other = isinstance(value, Plan) or is_model(value) or is_train_state(value)
    return not other and bool(split_arrays(value)[0])


def is_train_state(value: Any) -> bool:
    """Whether a value is a state of training, as Flax has them."""
    return hasattr(value, "params") and hasattr(value, "opt_state")
