"""Whether an NNX model is in the mode in which it is trained."""

from __future__ import annotations

from typing import Any

from flax import nnx

from tdjax.nnx.graph import modules_of

# The attributes that `train` turns off, and `eval` on.
SWITCHES = ("deterministic", "use_running_average")
# Of dropout that drops nothing.
RATES = ("rate", "dropout_rate")


def training_modules(model: nnx.Module) -> dict[str, str]:
    """The modules in training mode: for each path its kind and what says so."""
    return {
        path: f"{type(module).__name__}, {name}=False"
        for path, module in modules_of(model).items()
        for name in SWITCHES
        if getattr(module, name, None) is False and not _drops_nothing(module)
    }


def _drops_nothing(module: Any) -> bool:
    """Whether a module has rates of dropout, which are all 0."""
    rates = [getattr(module, name) for name in RATES if hasattr(module, name)]
    return bool(rates) and not any(rates)
