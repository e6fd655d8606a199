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
from tdjax.params.tree import find, join_path, put
from tdjax.trace.call import call_arguments
from tdjax.trace.mixed import Replacement, mixed

# A variable collection that carries outputs out of a model, and their name in it.
COLLECTION, KEPT = "tdjax_features", "outputs"
# One that carries others into it: of which examples, and call by call.
GIVEN, ROWS, OTHERS = "tdjax_given", "rows", "outputs"


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
            if path is None or join_path(*path) not in self.paths:
                return output
            number = len(module.get_variable(COLLECTION, KEPT, ()))
            module.sow(COLLECTION, KEPT, output)
            if not module.has_variable(GIVEN, ROWS):
                return output
            others, rows = (module.get_variable(GIVEN, name) for name in (OTHERS, ROWS))
            return mixed(output, others[number], rows)

        return intercept


def module_outputs(
    model: nn.Module,
    variables: Mapping[str, Any],
    paths: Sequence[str],
    inputs: Any,
    method: Method = None,
    replaced: Replacement | None = None,
) -> tuple[Any, dict[str, list[Array]]]:
    """What a model returns for one batch, and for each path what the module there made.

    Arguments:
        paths: of modules. One that is called several times gives several outputs, one that is not
            called, or inside a loop, none.
        inputs, method: one batch, and how the model is called on it, see `tdjax.make_plan`.
        replaced: what some modules return in place of what they made.
    """
    args, kwargs = call_arguments(inputs)
    call = partial(call_model, method=method, args=args, kwargs=kwargs)
    # Inside what answers for factorised layers, which calls nothing further in.
    others = {} if replaced is None else replaced.outputs
    keeping = changed(model, Keeping(frozenset((*paths, *others))), first=True)
    if replaced is not None:
        variables = {**variables, GIVEN: _collection(replaced)}
    # Statistics of a training mode may change, and where anything may, `nn.map_variables` of Flax
    # asks that parameters may too.
    outputs, found = keeping.apply(variables, method=call, rngs=streams(), mutable=True)
    kept = found.get(COLLECTION, {})
    return outputs, {path: list((find(kept, path) or {}).get(KEPT, ())) for path in paths}


def _collection(replaced: Replacement) -> dict[str, Any]:
    """A collection that has what is given at the paths of the modules."""
    made: dict[str, Any] = {}
    for path, outputs in replaced.outputs.items():
        put(made, path, {ROWS: replaced.rows, OTHERS: tuple(outputs)})
    return made
