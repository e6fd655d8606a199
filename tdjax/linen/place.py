"""Whose module a running module is: where a model stands in the trees of Flax's scopes.

Paths begin anew in every `apply`, also in one inside another model's call (a teacher, an average of
the weights, a hypernetwork), and roots begin anew in every lifted transformation (`nn.jit`,
`nn.scan`, `nn.remat`) of one and the same model: neither says whose a module is. The counters of
random numbers do: Flax hands the same dicts on to the scopes that a transformation makes, and
compares scopes by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
from flax.core.scope import child_rng_token

Path = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Place:
    """The place of a bound model, from which its own modules are told from those of other models.

    Arguments:
        path: of the model, inside the one that is applied.
        scope: its own; scopes below it are of its modules, whatever their paths say, which
            `nn.share_scope` leaves as they were.
    """

    path: Path
    scope: Any

    @property
    def counters(self) -> Any:
        """Those of random numbers of its scope."""
        return self.scope.rng_counters

    @property
    def key(self) -> int:
        """The same for all scopes of the model, for as long as it is bound."""
        return id(self.counters)

    def path_of(self, module: nn.Module) -> Path | None:
        """The path of a module from the model on; None for a module of another model."""
        return None if module.scope is None else self.path_of_scope(module.scope)

    def path_of_scope(self, scope: Any) -> Path | None:
        """As `path_of`, of the module of a scope."""
        names, above = [], scope
        while above is not None and above is not self.scope:
            names.append(above.name)
            above = above.parent
        if above is not None:
            return tuple(reversed(names))
        path, counters = tuple(scope.path), self.counters
        start = len(self.path)
        if path[:start] != self.path:
            return None
        for name in path[start:]:
            counters = counters.get((child_rng_token, name))
            if counters is None:
                return None
        return path[start:] if counters is scope.rng_counters else None


def place_of(model: nn.Module) -> Place | None:
    """The place of a model; None of one that is not bound."""
    # Read so before its own __init__ has run, too.
    scope = vars(model).get("scope")
    return None if scope is None else Place(tuple(scope.path), scope)
