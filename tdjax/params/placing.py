"""Where arrays go that are read from a checkpoint or were found: where those like theirs lie."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core.meta import Partitioned
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array

from tdjax.params.arrays import INDICES, VALUES, Factors
from tdjax.params.check import factor_shapes
from tdjax.params.corrections import COLLECTION, unpacked
from tdjax.params.leaves import of_leaves, tree_of_plan
from tdjax.params.partitioning import box_factor, is_boxed, unboxed
from tdjax.params.quantised import is_quantised
from tdjax.params.tree import Tree, find, join_path, map_leaves, split_path
from tdjax.plan.layers import LEAF
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.plan.stage import CORRECTION


def placed(array: Any, sharding: Sharding | None) -> Any:
    """An array, maybe in a box, where a sharding says; on the default device for None."""
    if is_boxed(array):
        return array.replace_boxed(placed(unboxed(array), sharding))
    if is_quantised(array):
        return jax.tree.map(lambda own: placed(own, _whole(sharding)), array)
    if sharding is None:
        return jnp.asarray(array)
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    # Each process has the whole array, and fills its own devices; none waits for another.
    values = np.asarray(array)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def _whole(sharding: Sharding | None) -> Sharding | None:
    """Whole on every device: integers and their scales have other axes than their array."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(), memory_kind=sharding.memory_kind)


def sharding_of(leaf: Any) -> Sharding | None:
    """Where an array lies on purpose, or a shape is to; None where nothing says so."""
    leaf = unboxed(leaf)
    leaf = leaf.values if is_quantised(leaf) else leaf
    if isinstance(leaf, jax.Array):
        free = isinstance(leaf, jax.core.Tracer) or not leaf.committed
        return None if free else leaf.sharding
    found = getattr(leaf, "sharding", None)
    if isinstance(found, NamedSharding) and isinstance(found.mesh, AbstractMesh):
        return _on_current_mesh(found)
    return found if isinstance(found, Sharding) else None


def _on_current_mesh(sharding: NamedSharding) -> NamedSharding | None:
    """Where shapes that were made under `jax.set_mesh` are to go; None without that mesh."""
    # Older versions of JAX do not tell.
    get_mesh = getattr(jax.sharding, "get_mesh", None)
    mesh = None if get_mesh is None else get_mesh()
    if mesh is None or mesh.abstract_mesh != sharding.mesh:
        return None
    return NamedSharding(mesh, sharding.spec)


def factor_shardings(kernel: Any, entry: PlannedLayer) -> dict[str, Sharding | None]:
    """Where the factors of a layer lie if its kernel lies somewhere, by name; see `partitioning`.

    Those of a sparse correction are under `CORRECTION`, whole on every device.
    """
    where, shapes = sharding_of(kernel), factor_shapes(entry)
    if not isinstance(where, NamedSharding):
        # Of other kinds only a device is known to hold for arrays of other shapes.
        alone = where if where is not None and len(where.device_set) == 1 else None
        return dict.fromkeys(shapes, alone)

    def on_mesh(*names: Any) -> NamedSharding:
        return NamedSharding(where.mesh, PartitionSpec(*names), memory_kind=where.memory_kind)

    box: Any = Partitioned(kernel, names=tuple(where.spec))
    found: dict[str, Sharding | None] = {CORRECTION: on_mesh()} if entry.nonzeros else {}
    for stage in entry.stages:
        shape = jax.ShapeDtypeStruct(shapes[stage.name], jnp.float32)
        found[stage.name] = on_mesh(*box_factor(box, shape, entry, stage).names)
    return found


def beside_kernel(kernel: Any, factors: Factors, entry: PlannedLayer) -> Factors:
    """Factors that were found on one device, where their kernel lies on purpose.

    Along axes that the kernel is split on they are split too; on a mesh of explicit axes, and in
    another sharding than a mesh's, they lie whole on every device.
    """
    if isinstance(kernel, jax.core.Tracer) or not isinstance(kernel, jax.Array):
        return factors
    places, where = factor_shardings(kernel, entry), sharding_of(kernel)
    if isinstance(where, NamedSharding) and AxisType.Explicit in where.mesh.axis_types:
        places = {}

    def there(name: str, array: Array) -> Array:
        place = places.get(CORRECTION if name in (VALUES, INDICES) else name)
        if place is None or array.sharding == place:
            return whole_beside(kernel, array)
        found: Array = placed(array, place)
        return found

    return {name: there(name, array) for name, array in factors.items()}


def whole_beside(other: Any, array: Array) -> Array:
    """An array whole on every device on which another lies on purpose."""
    where = None if isinstance(array, jax.core.Tracer) else sharding_of(other)
    if where is None or array.sharding.device_set == where.device_set:
        return array
    if len(where.device_set) == 1:
        whole: Sharding = where
    elif isinstance(where, NamedSharding):
        whole = NamedSharding(where.mesh, PartitionSpec())
    else:
        devices = sorted(where.device_set, key=attrgetter("id"))
        whole = NamedSharding(Mesh(np.array(devices), ("devices",)), PartitionSpec())
    found: Array = placed(array, whole)
    return found


def shardings_like(like: Any, shapes: Tree, plan: Plan) -> dict[str, Any]:
    """Where the arrays of a checkpoint go, as nested mappings; None for the default device.

    Arguments:
        like: parameters or variables of a plan's model, or a function's parameters, dense or
            factorised: arrays, or shapes with a sharding.
        shapes: what was saved, parameters or variables, of a function as mappings.

    Raises ValueError for a `like` that lacks one of the arrays, or has another shape for it.
    """
    own, whole = _alike(like, shapes, plan), not of_leaves(plan) and _is_whole(shapes, plan)
    derived = _of_factors(own, plan, whole=whole)

    def place(path: str, leaf: Any) -> Sharding | None:
        if path in derived:
            return derived[path]
        found = _at(own, path)
        if found is None:
            raise ValueError(f"load_factorised: like has no {path!r}, which was saved")
        shape, wanted = unboxed(leaf).shape, tuple(unboxed(found).shape)
        if shape != wanted:
            raise ValueError(
                f"load_factorised: {path!r} was saved with shape {shape}, but that of like is "
                f"{wanted}"
            )
        return sharding_of(found)

    return map_leaves(place, shapes)


def _alike(like: Any, shapes: Tree, plan: Plan) -> Tree:
    """The arrays that a checkpoint's go by, in mappings as its own are."""
    if of_leaves(plan):
        return tree_of_plan(like, plan).mapping
    whole, has_whole = _is_whole(shapes, plan), _is_whole(like, plan)
    if whole == has_whole:
        return like
    return {"params": like} if whole else like["params"]


def _is_whole(tree: Tree, plan: Plan) -> bool:
    """Whether a tree is a dict of variables, not parameters alone."""
    return unpacked(tree, plan).variables is not None


def _of_factors(own: Tree, plan: Plan, *, whole: bool) -> dict[str, Sharding | None]:
    """By path, where the factors of layers go that are dense in what they go by.

    Arguments:
        whole: whether the parameters lie in a dict of variables.
    """
    found: dict[str, Sharding | None] = {}
    front, indices = ("params", COLLECTION) if whole else ("", "")
    for entry in plan.factorised:
        path, storage = entry.layer.path, entry.layer.storage
        kernel = (find(own, join_path(front, path)) or {}).get(storage.name)
        if kernel is None:
            continue
        shape = tuple(unboxed(kernel).shape)
        if shape != storage.whole_shape:
            raise ValueError(
                f"load_factorised: layer {path!r} of like has a {storage.name} of shape {shape}, "
                f"but the plan was made for {storage.whole_shape}"
            )
        places = factor_shardings(kernel, entry)
        if entry.nonzeros:
            sparse = places.pop(CORRECTION)
            found[join_path(front, path, CORRECTION, VALUES)] = sparse
            found[join_path(indices, path, CORRECTION, INDICES)] = sparse
        found |= {join_path(front, path, name, "kernel"): at for name, at in places.items()}
    return found


def _at(tree: Any, path: str) -> Any:
    """The array at a path; None where there is none."""
    for name in split_path(path):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    own = tree.get(LEAF) if isinstance(tree, Mapping) else tree
    return None if isinstance(own, Mapping) else own
