"""Scopes of Flax that tell when an array is asked for by name.

`get_variable` and `has_variable` leave nothing in a traced program where the array's numbers are
not used, and find nothing where factors are in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from flax.core.scope import Scope

from tdjax.linen.place import Path, Place

# Gets the path of a module from the model on, and the name of one of its parameters.
Ask = Callable[[Path, str], None]


class _Watched(Scope):
    """A scope, and all that are made below it."""

    tdjax_asks: tuple[tuple[Place, Ask], ...] = ()

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
        return super().get_variable(col, name, default)

    def _tell(self, col: str, name: str) -> None:
        if col == "params":
            for place, ask in self.tdjax_asks:
                path = place.path_of_scope(self)
                if path is not None:
                    ask(path, name)


def watch(module: nn.Module, place: Place, ask: Ask) -> None:
    """Let a running module of a model, and those that it makes, tell what parameters are asked for.

    Arguments:
        place: of the model.
        ask: is told; the same function is told once.
    """
    scope: Any = module.scope
    told = getattr(scope, "tdjax_asks", ())
    if all(other is not ask for _, other in told):
        scope.__class__ = _Watched
        scope.tdjax_asks = (*told, (place, ask))
