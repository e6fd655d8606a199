"""Outputs of modules anywhere in an NNX model, beside what it returns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx
from jaxtyping import Array

from tdjax.nnx.graph import array_of, become, with_calls

# Under this name, and a number, a module keeps its outputs: variables leave transformations.
KEPT = "tdjax_features_"


def keep_outputs(modules: Sequence[nnx.Module]) -> None:
    """Let modules keep what they return, in place."""
    for module in modules:
        cls: Any = type(module)
        become(module, _keeping(cls))


def kept_outputs(module: nnx.Module) -> list[Array]:
    """What a module kept, call by call."""
    numbers = [name.removeprefix(KEPT) for name in vars(module) if name.startswith(KEPT)]
    return [array_of(getattr(module, KEPT + k)) for k in sorted(numbers, key=int)]


def _kept(cls: type, method: str) -> Callable[..., Any]:
    """A method of a class that also keeps what it returns."""
    answer = getattr(cls, method)

    @functools.wraps(answer)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = answer(self, *args, **kwargs)
        setattr(self, f"{KEPT}{len(kept_outputs(self))}", nnx.Intermediate(output))
        return output

    return call


@functools.lru_cache(maxsize=1024)
def _keeping(cls: type) -> type:
    return with_calls(cls, _kept)
