"""Arrays that lie on a mesh of explicit axes, which `jax.make_mesh` makes where it is not told.

There every operation must say how its result lies. What is computed here is left to XLA to lay
out, as on a mesh of automatic axes; the results lie whole on every device of the same mesh.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Function = TypeVar("Function", bound=Callable[..., Any])


def on_any_mesh(function: Function) -> Function:
    """A function of pytrees of arrays that takes them on meshes of explicit axes too.

    All arrays of its result, which holds nothing else, then lie whole on each device.
    """

    @functools.wraps(function)
    def answer(*args: Any, **kwargs: Any) -> Any:
        if all(_explicit_mesh(leaf) is None for leaf in jax.tree.leaves((args, kwargs))):
            return function(*args, **kwargs)
        return _laid_out_by_xla(function, args, kwargs)

    return answer  # type: ignore[return-value]


def without_explicit_axes(tree: Any) -> Any:
    """A pytree whose arrays lie as they do, but on meshes of automatic axes."""
    return jax.tree.map(lambda leaf: _automatic(leaf) if _explicit_mesh(leaf) else leaf, tree)


def _laid_out_by_xla(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    leaves, structure = jax.tree.flatten((args, kwargs))
    places = [k for k, leaf in enumerate(leaves) if _explicit_mesh(leaf) is not None]
    explicit = [leaves[k] for k in places]

    def call(arrays: list[Any]) -> Any:
        known = dict(zip(places, arrays, strict=True))
        given, named = jax.tree.unflatten(
            structure, [known.get(k, leaf) for k, leaf in enumerate(leaves)]
        )
        return function(*given, **named)

    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        mesh = _explicit_mesh(explicit[0])
        whole = NamedSharding(mesh, PartitionSpec())
        return jax.sharding.auto_axes(call, axes=_explicit_axes(mesh), out_sharding=whole)(explicit)
    mesh = explicit[0].sharding.mesh
    with _context(_automatic_mesh(mesh)):
        found = call([_automatic(leaf) for leaf in explicit])
    return jax.device_put(found, NamedSharding(mesh, PartitionSpec()))


def _explicit_mesh(leaf: Any) -> Any:
    """The mesh of an array that lies along explicit axes, else None."""
    if not isinstance(leaf, jax.Array):
        return None
    mesh = getattr(jax.typeof(leaf).sharding, "mesh", None)
    return mesh if mesh is not None and not mesh.empty and _explicit_axes(mesh) else None


def _explicit_axes(mesh: Any) -> tuple[str, ...]:
    pairs = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in pairs if kind == AxisType.Explicit)


def _automatic(leaf: jax.Array) -> jax.Array:
    sharding = leaf.sharding
    assert isinstance(sharding, NamedSharding)
    return jax.device_put(leaf, NamedSharding(_automatic_mesh(sharding.mesh), sharding.spec))


@functools.cache
def _automatic_mesh(mesh: Mesh) -> Mesh:
    types = (AxisType.Auto,) * len(mesh.axis_names)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=types)


def _context(mesh: Mesh) -> AbstractContextManager[Any]:
    """In which arrays on the mesh may meet others, whatever mesh is set outside."""
    set_mesh: Any = getattr(jax, "set_mesh", None)
    if set_mesh is None:
        # Of versions before jax.set_mesh.
        set_mesh = getattr(jax.sharding, "use_mesh")  # noqa: B009
    context: AbstractContextManager[Any] = set_mesh(mesh)
    return context
