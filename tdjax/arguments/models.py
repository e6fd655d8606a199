"""Models among arguments, in the words of messages.

The adapters, which know one from another, stand above this room: whoever loads them says where
their kinds are found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

# What is no model, as most arguments: the adapters need not be loaded to tell.
PLAIN = (dict, list, tuple, str, int, float, bool, type(None))


@runtime_checkable
class ModelKind(Protocol):
    """What messages need to know of a kind of models."""

    @property
    def base(self) -> Any:
        """The class of its models."""

    @property
    def held(self) -> str | None:
        """Name of the argument that their arrays come in; None where they hold them."""

    @property
    def words(self) -> str:
        """What one is, as "an NNX model"; empty where nothing but its use tells it is a model."""

    @property
    def no_params(self) -> str:
        """What is wrong with one where parameters are asked for, and the remedy."""


Kinds = Callable[[], Sequence[ModelKind]]
_sources: list[Kinds] = []


def find_kinds_by(source: Kinds) -> None:
    """Tell the kinds of models by what a function returns, which is called when they are needed."""
    _sources[:] = [source]


def kind_in_words(value: Any) -> ModelKind | None:
    """The kind of a model; None for anything else."""
    if type(value) in PLAIN:
        return None
    kinds = [kind for source in _sources for kind in source() if kind.words]
    return next((kind for kind in kinds if isinstance(value, kind.base)), None)


def is_model(value: Any) -> bool:
    """Whether a value is a model, or parts of one, and nothing that has another meaning."""
    return kind_in_words(value) is not None
