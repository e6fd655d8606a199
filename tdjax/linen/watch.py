"""Scopes of Flax that tell when an array is asked for by name, and may hand out another.

`get_variable` and `has_variable` leave nothing in a traced program where the array's numbers are
not used, and find nothing where factors are in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
from flax.core.scope import Scope

from tdjax.linen.place import Path, Place


def as_it_is(path: Path, name: str, value: Any) -> Any:
    """What was found."""
    return value


@dataclass(frozen=True, eq=False)
class Watching:
    """Who hears of it.

    Arguments:
        ask: is told the path of a module from the model on, and the name of one of its parameters.
        read: of these and what was found the value that is handed out.
    """

    ask: Callable[[Path, str], None]
    read: Callable[[Path, str, Any], Any] = as_it_is


class _Watched(Scope):
    """A scope, and all that are made below it."""

    tdjax_asks: tuple[tuple[Place, Watching], ...] = ()

    def push(self, *args: Any, **kwargs: Any) -> Scope:
        return self._watched(super().push(*args, **kwargs))

    def rewound(self, *args: Any, **kwargs: Any) -> Scope:
        # What a module has after its call.
        return self._watched(super().rewound(*args, **kwargs))

    def _watched(self, scope: Any) -> Any:
        scope.__class__ = _Watched
        scope.tdjax_asks = self.tdjax_asks
        return scope

    def has_variable(self, col: str, name: str) -> bool:
        self._tell(col, name)
        return super().has_variable(col, name)

    def get_variable(self, col: str, name: str, default: Any = None) -> Any:
        self._tell(col, name)
        value = super().get_variable(col, name, default)
        for path, watching in self._watching(col):
            value = watching.read(path, name, value)
        return value

    def _tell(self, col: str, name: str) -> None:
        for path, watching in self._watching(col):
            watching.ask(path, name)

    def _watching(self, col: str) -> Iterator[tuple[Path, Watching]]:
        for place, watching in self.tdjax_asks if col == "params" else ():
            path = place.path_of_scope(self)
            if path is not None:
                yield path, watching


def watch(module: nn.Module, place: Place, watching: Watching) -> None:
    """Let a running module of a model, and those that it makes, tell what parameters are asked for.

    Arguments:
        place: of the model.
        watching: is told; the same one is told once.
    """
    scope: Any = module.scope
    told = getattr(scope, "tdjax_asks", ())
    if all(other is not watching for _, other in told):
        scope.__class__ = _Watched
        scope.tdjax_asks = (*told, (place, watching))
