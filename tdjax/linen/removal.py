"""A Linen model without its dead neurons: the user's own, some of its layers narrower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax

from tdjax.arguments.called import Method
from tdjax.linen.intercept import Interceptor, changed, changes_of
from tdjax.linen.place import Path, Place, place_of
from tdjax.linen.table import plain, trace
from tdjax.params.tree import join_path
from tdjax.pruning.dead import Network, SmallerModel, remove
from tdjax.trace.names import names_of


def remove_dead(
    model: nn.Module, variables: Mapping[str, Any], sample: Any, method: Method = None
) -> SmallerModel:
    """See `tdjax.remove_dead`."""
    places = {
        (join_path(*names[1:-1]), names[-1]): place
        for place, (path, _) in enumerate(jax.tree.leaves_with_path(plain(variables)))
        if (names := names_of(path))[0] == "params"
    }
    leaves, structure = jax.tree.flatten(variables)

    def smaller(leaves: Sequence[Any], kept: Mapping[str, Any]) -> tuple[nn.Module, Any]:
        widths = tuple((path, len(stay)) for path, stay in kept.items())
        return changed(model, Widths(widths)), jax.tree.unflatten(structure, leaves)

    found = remove(
        Network(trace(model, variables, sample, method), leaves, places),
        lambda *made: trace(*smaller(*made), sample, method),
    )
    return SmallerModel(*smaller(found.leaves, found.kept), found.kept, found.obstacles)


@dataclass(frozen=True)
class Widths:
    """Other numbers of features of some layers; see `tdjax.linen.intercept.Change`.

    Arguments:
        widths: pairs of a layer's path, from the model on, and its features.
    """

    widths: tuple[tuple[str, int], ...]

    @cached_property
    def by_path(self) -> dict[str, int]:
        """The features by path."""
        return dict(self.widths)

    def below(self, path: Path) -> Widths | None:
        """The part for a module of the model; None where no layer in it changes."""
        start = join_path(*path)
        inside = tuple(
            (own.removeprefix(start).removeprefix("/"), width)
            for own, width in self.widths
            if own == start or own.startswith(f"{start}/")
        )
        return Widths(inside) if inside else None

    def interceptor(self, place: Place) -> Interceptor:
        """Gives the layers their numbers of features."""

        def intercept(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
            path = place.path_of(context.module)
            width = None if path is None else self.by_path.get(join_path(*path))
            if width is not None:
                # Of this call's own copy of the module, which Flax has frozen.
                # A model that was made narrower twice keeps the fewer.
                features = min(width, context.module.features)
                object.__setattr__(context.module, "features", features)
            return next_fun(*args, **kwargs)

        return intercept


def width_of(module: Any) -> int | None:
    """The features of a layer of a narrower model that is running; None for those of its own."""
    # Of those around it, the one that was made narrower.
    around = module
    while isinstance(around, nn.Module) and (place := place_of(around)) is not None:
        path = place.path_of(module)
        for change in reversed(changes_of(type(around))):
            if path is not None and isinstance(change, Widths):
                width = change.by_path.get(join_path(*path))
                if width is not None:
                    return width
        around = around.parent
    return None
