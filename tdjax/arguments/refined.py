"""What `tdjax.refine` is handed: what is matched, how, by which optimiser.

Each check returns what is wrong, as in `tdjax.arguments.checks`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tdjax.arguments.described import described, is_array
from tdjax.arguments.numeric import Problem, whole
from tdjax.arguments.pruned import check_paths
from tdjax.plan.plan import Plan


def check_factors(value: Any) -> Problem:
    """Factorised parameters, variables, or an NNX model."""
    if isinstance(value, Plan):
        return TypeError("is a Plan, which comes behind them: pass what factorize_params returned")
    if hasattr(value, "params") and hasattr(value, "opt_state"):
        return TypeError("is a TrainState: pass state.params")
    if is_array(value) or value is None or isinstance(value, str):
        return TypeError(
            f"is {described(value)}: pass what tdjax.factorize_params returned, of NNX the "
            "factorised model"
        )
    return None


def check_loss(value: Any) -> Problem:
    """The name of a loss, a function, or None."""
    if value is None or isinstance(value, str) or callable(value):
        return None
    return TypeError(
        f'is {described(value)}: pass "mse", "kl", or a function of the outputs (small, dense)'
    )


def check_features(value: Any) -> Problem:
    """Patterns, or numbers by pattern; None for none."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        return check_paths(value)
    problem = check_paths(list(value))
    weights = (positive(weight) for weight in value.values())
    return problem or next((own for own in weights if own is not None), None)


def check_blocks(value: Any) -> Problem:
    """Patterns, "auto" among them, or None."""
    return None if value is None else check_paths(value)


def check_trained(value: Any) -> Problem:
    """Names; which there are is known elsewhere."""
    if isinstance(value, str):
        return TypeError(f"is a str: pass a sequence, ({value!r},)")
    if not isinstance(value, Iterable) or not all(isinstance(own, str) for own in value):
        return TypeError(f'is {described(value)}: pass names, as ("factors", "biases")')
    return None


def check_optimizer(value: Any) -> Problem:
    """A transformation of gradients, or None."""
    if value is None or (hasattr(value, "init") and hasattr(value, "update")):
        return None
    return TypeError(f"is {described(value)}: pass a transformation of optax, as optax.sgd(0.01)")


def check_held_out(value: Any) -> Problem:
    """A share, or batches."""
    if isinstance(value, bool) or value is None or is_array(value) or isinstance(value, Mapping):
        return TypeError(f"is {described(value)}: pass a share, as 0.1, or a list of batches")
    if isinstance(value, numbers.Real):
        within = 0 <= float(value) < 1
        return None if within else ValueError(f"is {value}: pass a share from 0 on, below 1")
    if isinstance(value, str) or not isinstance(value, Iterable):
        return TypeError(f"is {described(value)}: pass a share, as 0.1, or a list of batches")
    return None


def check_refine(value: Any) -> Problem:
    """Whether to refine, or the options for it."""
    if isinstance(value, (bool, Mapping)):
        return None
    return TypeError(f'is {described(value)}: pass True, False or options, as {{"epochs": 20}}')


def positive(value: Any) -> Problem:
    """A number above 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return TypeError(f"is {described(value)}: pass a number above 0")
    if not math.isfinite(value) or value <= 0:
        return ValueError(f"is {value}: pass a number above 0")
    return None


def share(value: Any) -> Problem:
    """A number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return TypeError(f"is {described(value)}: pass a share, from 0 to 1")
    if not 0 <= value <= 1:
        return ValueError(f"is {value}: pass a share, from 0 to 1")
    return None


def or_none(check: Callable[[Any], Problem]) -> Callable[[Any], Problem]:
    """A check that None passes."""
    return lambda value: None if value is None else check(value)


CHECKS: Mapping[str, Callable[[Any], Problem]] = {
    "refine.factors": check_factors,
    "refine.loss": check_loss,
    "refine.temperature": positive,
    "refine.features": check_features,
    "refine.trained": check_trained,
    "refine.optimizer": check_optimizer,
    "refine.learning_rate": or_none(positive),
    "refine.epochs": whole(0),
    "refine.batch_size": whole(1),
    "refine.held_out": check_held_out,
    "refine.patience": or_none(whole(1)),
    "refine.blocks": check_blocks,
    "refine.block_epochs": whole(0),
    "refine.mix": share,
    "compress.refine": check_refine,
    "balance_factors.factors": check_factors,
}
