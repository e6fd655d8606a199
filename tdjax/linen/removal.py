"""A Linen model without its dead neurons: the user's own, some of its layers narrower."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from tdjax.linen.intercept import Interceptor, intercepted_class, rebuilt
from tdjax.linen.table import plain, trace
from tdjax.params.tree import join_path
from tdjax.pruning.dead import Network, SmallerModel, remove
from tdjax.pruning.prunable import names_of


def remove_dead(model: nn.Module, variables: Mapping[str, Any], sample: Any) -> SmallerModel:
    """See `tdjax.remove_dead`."""
    places = {
        (join_path(*names[1:-1]), names[-1]): place
        for place, (path, _) in enumerate(jax.tree.leaves_with_path(plain(variables)))
        if (names := names_of(path))[0] == "params"
    }
    leaves, structure = jax.tree.flatten(variables)

    def smaller(leaves: Sequence[Any], kept: Mapping[str, Any]) -> tuple[nn.Module, Any]:
        widths = tuple((path, len(stay)) for path, stay in kept.items())
        cls: Any = _narrower_class(type(model), widths)  # type: ignore[arg-type]
        return rebuilt(model, cls), jax.tree.unflatten(structure, leaves)

    found = remove(
        Network(trace(model, variables, sample), leaves, places),
        lambda *made: trace(*smaller(*made), sample),
    )
    return SmallerModel(*smaller(found.leaves, found.kept), found.kept, found.obstacles)


@functools.lru_cache(maxsize=512)
def _narrower_class(cls: type[nn.Module], widths: tuple[tuple[str, int], ...]) -> type[nn.Module]:
    """A subclass with other numbers of features; cached, so that jit caches hold."""
    made: Any = intercepted_class(cls, functools.partial(_interceptor, dict(widths)))
    made._widths = {**getattr(cls, "_widths", {}), **dict(widths)}
    return made


def width_of(module: Any) -> int | None:
    """The features of a layer of a narrower model that is running; None for those of its own."""
    # Of those around it, the one that was made narrower.
    around, path = module, module.path
    while isinstance(around, nn.Module) and around.scope is not None:
        widths = getattr(type(around), "_widths", {})
        width = widths.get(join_path(*path[len(around.path) :]))
        if width is not None:
            return width
        around = around.parent
    return None


def _interceptor(widths: Mapping[str, int], prefix: tuple[str, ...]) -> Interceptor:
    def intercept(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, path = context.module, context.module.path
        within = path[: len(prefix)] == prefix
        width = widths.get(join_path(*path[len(prefix) :])) if within else None
        if width is not None:
            # Of this call's own copy of the module, which Flax has frozen.
            object.__setattr__(module, "features", width)
        return next_fun(*args, **kwargs)

    return intercept
