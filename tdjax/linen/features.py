"""Outputs of modules anywhere in a Linen model, beside what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
from jaxtyping import Array

from tdjax.arguments.called import Method, call_model
from tdjax.linen.intercept import Interceptor, changed, streams
from tdjax.linen.place import Path, Place
from tdjax.params.tree import find, join_path
from tdjax.trace.call import call_arguments

# A variable collection that carries outputs out of a model, and their name in it.
COLLECTION, KEPT = "tdjax_features", "outputs"


@dataclass(frozen=True)
class Keeping:
    """Modules keep what they return; see `tdjax.linen.intercept.Change`.

    Arguments:
        paths: of the modules.
    """

    paths: frozenset[str]

    def below(self, path: Path) -> None:
        """Nothing is left of it for a module that is called alone."""

    def interceptor(self, place: Place) -> Interceptor:
        """Keeps the results of calls."""

        def intercept(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
            module, output = context.module, next_fun(*args, **kwargs)
            path = place.path_of(module) if context.method_name == "__call__" else None
            if path is not None and join_path(*path) in self.paths:
                module.sow(COLLECTION, KEPT, output)
            return output

        return intercept


def module_outputs(
    model: nn.Module,
    variables: Mapping[str, Any],
    paths: Sequence[str],
    inputs: Any,
    method: Method = None,
) -> tuple[Any, dict[str, list[Array]]]:
    """What a model returns for one batch, and for each path what the module there returned.

    Arguments:
        paths: of modules. One that is called several times gives several outputs, one that is not
            called, or inside a loop, none.
        inputs, method: one batch, and how the model is called on it, see `tdjax.make_plan`.
    """
    args, kwargs = call_arguments(inputs)
    call = partial(call_model, method=method, args=args, kwargs=kwargs)
    # Inside what answers for factorised layers, which calls nothing further in.
    keeping = changed(model, Keeping(frozenset(paths)), first=True)
    # Statistics of a training mode may change, and where anything may, `nn.map_variables` of Flax
    # asks that parameters may too.
    outputs, found = keeping.apply(variables, method=call, rngs=streams(), mutable=True)
    kept = found.get(COLLECTION, {})
    return outputs, {path: list((find(kept, path) or {}).get(KEPT, ())) for path in paths}
