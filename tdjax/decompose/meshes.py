"""Arrays that lie on a mesh of explicit axes, which `jax.make_mesh` makes where it is not told.

There every operation must say how its result lies. What is computed here is computed on arrays
that lie whole on every device, as on a mesh of automatic axes, and so do the results, on the same
mesh of explicit axes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Function = TypeVar("Function", bound=Callable[..., Any])


def on_any_mesh(function: Function, *, split: bool = False) -> Function:
    """A function of pytrees that takes arrays on meshes of explicit axes too.

    All arrays of its result then lie whole on each device.

    Arguments:
        split: leave the arrays split as they are, and to XLA to lay out what comes of them.
    """

    @functools.wraps(function)
    def answer(*args: Any, **kwargs: Any) -> Any:
        leaves = jax.tree.leaves((args, kwargs), is_leaf=_is_iterator)
        if all(_explicit_mesh(leaf) is None for leaf in leaves):
            return function(*args, **kwargs)
        return _on_automatic_axes(function, args, kwargs, split)

    return answer  # type: ignore[return-value]


def _is_iterator(value: Any) -> bool:
    """Whether a value can be read but once, as batches may be."""
    return isinstance(value, Iterator)


def without_explicit_axes(tree: Any) -> Any:
    """A pytree whose arrays lie as they do, but on meshes of automatic axes."""
    return jax.tree.map(lambda leaf: _automatic(leaf) if _explicit_mesh(leaf) else leaf, tree)


def _on_automatic_axes(function: Callable[..., Any], args: Any, kwargs: Any, split: bool) -> Any:
    leaves, structure = jax.tree.flatten((args, kwargs), is_leaf=_is_iterator)
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
        given = explicit if split else [jax.sharding.reshard(leaf, whole) for leaf in explicit]
        return jax.sharding.auto_axes(call, axes=_explicit_axes(mesh), out_sharding=whole)(given)
    mesh = explicit[0].sharding.mesh
    with in_mesh(_automatic_mesh(mesh)):
        found = call([_automatic(leaf, split) for leaf in explicit])
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
        lambda leaf: jax.device_put(leaf, whole) if isinstance(leaf, jax.Array) else leaf, found
    )


def _explicit_mesh(leaf: Any) -> Any:
    """The mesh of an array that lies along explicit axes, else None."""
    if not isinstance(leaf, jax.Array):
        return None
    mesh = getattr(jax.typeof(leaf).sharding, "mesh", None)
    return mesh if mesh is not None and not mesh.empty and _explicit_axes(mesh) else None


def _explicit_axes(mesh: Any) -> tuple[str, ...]:
    pairs = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in pairs if kind == AxisType.Explicit)


def _automatic(leaf: jax.Array, split: bool = True) -> jax.Array:
    sharding = leaf.sharding
    assert isinstance(sharding, NamedSharding)
    spec = sharding.spec if split else PartitionSpec()
    return jax.device_put(leaf, NamedSharding(_automatic_mesh(sharding.mesh), spec))


@functools.cache
def _automatic_mesh(mesh: Mesh) -> Mesh:
    types = (AxisType.Auto,) * len(mesh.axis_names)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=types)


def in_mesh(mesh: Mesh) -> AbstractContextManager[Any]:
    """In which arrays on the mesh may meet others, whatever mesh is set outside."""
    set_mesh: Any = getattr(jax, "set_mesh", None)
    if set_mesh is None:
        # Of versions before jax.set_mesh.
        set_mesh = getattr(jax.sharding, "use_mesh")  # noqa: B009
    context: AbstractContextManager[Any] = set_mesh(mesh)
    return context
