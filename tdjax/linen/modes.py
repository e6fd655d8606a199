"""Whether a Linen model is made for training, as its fields say."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn

from tdjax.arguments.called import Method
from tdjax.linen.table import trace

# What fields of modules have for training.
SWITCHES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}
# Programs are told apart by their text, in which functions stand with their places in memory.
PLACES = re.compile("0x[0-9a-f]+")


def training_fields(model: nn.Module) -> dict[str, bool]:
    """The fields that say training, of a model and of the modules in its fields.

    Their values by their paths from the model on, as {"training": True}.
    """
    return _in_use(model)[1]


def trains(
    model: nn.Module, variables: Mapping[str, Any], batch: Any, method: Method = None
) -> bool:
    """Whether a model computes otherwise than with those fields the other way round.

    Arguments:
        batch: the model's input, or a tuple (input, rest).

    False too for what the model cannot be called with, of which others tell.
    """
    used, _ = _in_use(model)
    rest = batch[:1] if isinstance(batch, tuple) else ()
    for inputs in (batch, *rest):
        try:
            programs = [trace(own, variables, inputs, method).jaxpr for own in (model, used)]
        except (TypeError, ValueError):
            continue
        one, other = (PLACES.sub("", str(program)) for program in programs)
        return one != other
    return False


def _in_use(model: nn.Module) -> tuple[nn.Module, dict[str, bool]]:
    """A model with all its switches as in use, and those that were not."""
    found: dict[str, bool] = {}
    return _changed({}, found, model, ""), found


def _changed(made: dict[int, Any], found: dict[str, bool], value: Any, path: str) -> Any:
    """A field's value with all switches in it as in use; itself where it has none.

    Arguments:
        made: what has become of modules, by their identity: one in two fields stays one.
        found: filled in: the switches that were not.
    """
    again = partial(_changed, made, found)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        own = [again(entry, f"{path}[{place}]") for place, entry in enumerate(value)]
        same = all(one is other for one, other in zip(own, value, strict=True))
        return value if same else type(value)(own)
    if not isinstance(value, nn.Module):
        return value
    if id(value) not in made:
        updates: dict[str, Any] = {}
        for field in dataclasses.fields(value):
            if field.name in ("parent", "name") or not field.init:
                continue
            held: Any = getattr(value, field.name, None)
            at = f"{path}.{field.name}" if path else field.name
            if held is not None and held is SWITCHES.get(field.name):
                found[at] = bool(held)
                updates[field.name] = not held
            elif (own := again(held, at)) is not held:
                updates[field.name] = own
        made[id(value)] = value.clone(**updates) if updates else value
    return made[id(value)]
