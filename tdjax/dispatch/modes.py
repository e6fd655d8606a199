"""The mode in which a model is measured: that of its use, or what it is not is told of."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax

# What a model's own call may have for its mode, and what stands for training.
TRAINING = {"train": True, "training": True, "is_training": True, "deterministic": False}
# Modules that a text names, at most.
NAMED = 3
# Whether a function that runs models is at work, which has told of the mode.
_running: ContextVar[bool] = ContextVar("_running", default=False)


def is_told() -> bool:
    """Whether this is inside a function that has told of the mode."""
    return _running.get()


@contextmanager
def told() -> Iterator[None]:
    """While it lasts, the functions that are called by another one tell nothing."""
    token = _running.set(True)
    try:
        yield
    finally:
        _running.reset(token)


def warn_of_modules(function: str, modules: Mapping[str, str], stacklevel: int) -> None:
    """Warn of modules that are in training mode, by path with what says so."""
    if modules:
        named = ", ".join(f"{path!r} ({text})" for path, text in list(modules.items())[:NAMED])
        more = f" and {len(modules) - NAMED} more" if len(modules) > NAMED else ""
        warnings.warn(
            f"{function}: the model is in training mode: {named}{more}: call model.eval() first, "
            "for what the model does in use",
            stacklevel=stacklevel + 1,
        )


def warn_of_fields(function: str, fields: Mapping[str, bool], stacklevel: int) -> None:
    """Warn of a Linen model that is made for training, by its fields with their values."""
    named = ", ".join(f"{path}={value}" for path, value in list(fields.items())[:NAMED])
    more = f" and {len(fields) - NAMED} more" if len(fields) > NAMED else ""
    warnings.warn(
        f"{function}: the model is in training mode: it is made with {named}{more}: pass one that "
        "is made for use, with the same variables, for what it does then",
        stacklevel=stacklevel + 1,
    )


def training_flag(caller: Callable[..., Any]) -> tuple[str, str] | None:
    """The flag that trains a model which is not told otherwise, and the name of its input."""
    try:
        parameters = inspect.signature(caller).parameters
    except (TypeError, ValueError):
        return None
    for name, own in parameters.items():
        if own.default is TRAINING.get(name, own.empty) and own.default is not own.empty:
            return name, next(iter(parameters))
    return None


def warn_of_flag(function: str, flag: tuple[str, str], batch: Any, stacklevel: int) -> None:
    """Warn of a model that trains as no batch has a flag; `batch` is the first."""
    if any(isinstance(leaf, bool) for leaf in jax.tree.leaves(batch)):
        return
    name, first = flag
    value = TRAINING[name]
    warnings.warn(
        f"{function}: the model is in training mode: its call has {name}={value} where the batch "
        f'says nothing: pass {{"{first}": ..., "{name}": {not value}}}, for what it does in use',
        stacklevel=stacklevel + 1,
    )
