"""Outputs of modules anywhere in an NNX model, beside what it returns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import nnx
from jaxtyping import Array

from tdjax.nnx.graph import array_of, become, with_calls
from tdjax.trace.mixed import mixed

# Under this name, and a number, a module keeps its outputs: variables leave transformations.
KEPT = "tdjax_features_"
# Under these, of which examples it returns others, and, with a number, the others.
ROWS, OTHERS = "tdjax_given_rows", "tdjax_given_"


def keep_outputs(modules: Sequence[nnx.Module]) -> None:
    """Let modules keep what they return, in place."""
    for module in modules:
        cls: Any = type(module)
        become(module, _keeping(cls))


def give_outputs(others: Mapping[nnx.Module, Sequence[Any]], rows: Array) -> None:
    """Let modules that keep what they make return others for some examples, in place.

    Arguments:
        others: call by call.
        rows: (batch,), whether an example is one of them.
    """
    for module, outputs in others.items():
        setattr(module, ROWS, nnx.Intermediate(rows))
        for number, output in enumerate(outputs):
            setattr(module, f"{OTHERS}{number}", nnx.Intermediate(output))


def kept_outputs(module: nnx.Module) -> list[Array]:
    """What a module kept, call by call."""
    numbers = [name.removeprefix(KEPT) for name in vars(module) if name.startswith(KEPT)]
    return [array_of(getattr(module, KEPT + k)) for k in sorted(numbers, key=int)]


def _kept(cls: type, method: str) -> Callable[..., Any]:
    """A method of a class that also keeps what it makes."""
    answer = getattr(cls, method)

    @functools.wraps(answer)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        output, number = answer(self, *args, **kwargs), len(kept_outputs(self))
        setattr(self, f"{KEPT}{number}", nnx.Intermediate(output))
        if not hasattr(self, ROWS):
            return output
        other, rows = getattr(self, f"{OTHERS}{number}"), getattr(self, ROWS)
        return mixed(output, array_of(other), array_of(rows))

    return call


@functools.lru_cache(maxsize=1024)
def _keeping(cls: type) -> type:
    return with_calls(cls, _kept)
