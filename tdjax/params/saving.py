"""A factorised network on disk: its parameters and its plan, read back without a model.

By orbax, so other tools can read the parameters: `<folder>/<n>/params`, and beside them
`<folder>/<n>/plan`. A new save is a new `<n>`, which appears under its name once it is whole, and
the one before is removed after that: a kill at any moment leaves the old network or the new one.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from tdjax.arguments.checks import check_mapping, checked
from tdjax.files import one_line
from tdjax.params.check import check_params
from tdjax.params.corrections import unpacked
from tdjax.params.digests import check_newest, check_seal
from tdjax.params.leaves import array_names, as_mappings, of_leaves
from tdjax.params.partitioning import is_boxed, unboxed
from tdjax.params.placing import placed, shardings_like
from tdjax.params.quantised import ARRAYS as QUANTISED
from tdjax.params.quantised import Quantised, is_quantised
from tdjax.params.steps import arrays_of, json_of, opened, save_step
from tdjax.params.stored import is_around
from tdjax.params.tree import (
    Tree,
    copied,
    find,
    join_path,
    layer_params,
    map_leaves,
    mappings,
    put,
    remove,
    split_path,
)
from tdjax.plan.dtypes import LARGEST
from tdjax.plan.plan import Plan
from tdjax.processes import together

FORMAT_VERSION = 2
# The names of what a step holds.
ARRAYS, ABOUT = "params", "plan"
# What the first version wrote, which knew no digests.
OLD_VERSION, OLD_FIELDS = 1, {"version", "plan", "boxes"}
# Metadata around an array that is saved with it: by name, as a checkpoint may name no class.
BOXES = {"Partitioned": nn.Partitioned, "LogicallyPartitioned": nn.LogicallyPartitioned}


class CheckpointError(RuntimeError):
    """A checkpoint that is there but cannot be read; the message names it and the remedy."""


@checked(params="tree")
def save_factorised(folder: str | os.PathLike[str], params: Any, plan: Plan) -> None:
    """Write factorised parameters and their plan as one, in place of what was saved there before.

    A kill at any moment leaves either the old network or the new one. Of several processes
    (`jax.distributed`), which all call it, the first one writes.

    Arguments:
        folder: made if it is not there; it belongs to this network alone.
        params: nested mapping of arrays of any dtype, as `tdjax.factorize_params` gives it, or
            a whole dict of variables with such a "params", which sparse corrections need. Axis
            names around an array (`nn.Partitioned`, `nn.LogicallyPartitioned`) are saved with it,
            a mesh and rules are not. With the plan of a function any pytree, which is saved as
            mappings.
        plan: the plan that the parameters were factorised by.

    Raises ValueError for parameters that do not fit the plan, for a pytree of anything but
    mappings and arrays, and for a folder that holds anything else, which is not touched.
    """
    path = Path(folder).resolve()
    if of_leaves(plan):
        params = as_mappings(params, plan)
    check_mapping("save_factorised", params)
    check_params(params, plan)
    arrays = map_leaves(_bare, params)
    together("save_factorised", lambda: _check_free(path))
    about = {"version": FORMAT_VERSION, "plan": json.loads(plan.to_json()), "boxes": _boxes(params)}
    save_step(path, (ARRAYS, arrays), (ABOUT, about))


def load_factorised(
    folder: str | os.PathLike[str], *, like: Any = None
) -> tuple[dict[str, Any], Plan]:
    """Read what `save_factorised` wrote as (params, plan); neither model nor kernels are needed.

    Every array comes back bit for bit; mappings come back as dicts. What was saved has a digest of
    each array and of the plan, so that no flipped bit and no edit passes. What an earlier version
    saved has none: it is read with a warning.

    Arguments:
        like: where the arrays go, see `tdjax.params.placing.shardings_like`; None for the default
            device.

    Raises CheckpointError where nothing was saved, and for what is damaged or does not fit
    together; the message names the folder, and for parameters that do not fit the plan the layer
    with the expected and the found shape. ValueError for a `like` that does not fit.
    """
    tree, plan = read_factorised(folder)
    return on_devices(tree, plan, like), plan


def on_devices(tree: Tree, plan: Plan, like: Any = None) -> dict[str, Any]:
    """Arrays that `read_factorised` read, as JAX's; see `load_factorised`."""
    if like is None:
        return map_leaves(lambda _, leaf: placed(leaf, None), tree)
    return jax.tree.map(placed, tree, shardings_like(like, tree, plan), is_leaf=is_around)


def read_factorised(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], Plan]:
    """`load_factorised` with arrays of NumPy, which are on no device."""
    path = Path(folder).resolve()
    if not path.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder; save_factorised writes one")
    where = path
    try:
        check_newest(path)
        with opened(path, (ARRAYS,), ABOUT) as manager:
            step = manager.latest_step()
            if step is not None:
                where = path / str(step)
                about = _about(manager, step, where)
                found = _restored(manager, step, about)
    except Exception as error:
        raise CheckpointError(
            f"{where}: this is no readable factorised network "
            f"({type(error).__name__}: {one_line(error)}); if it is damaged, save it anew"
        ) from error
    if step is None:
        raise CheckpointError(f"{folder}: no factorised network was saved here")
    if about["version"] == OLD_VERSION:
        warnings.warn(
            f"{where} was saved without digests, so damage to its arrays cannot be seen; "
            "save it anew",
            stacklevel=3,
        )
    return found


def _bare(path: str, leaf: Any) -> Any:
    """The array of a leaf, without what is around it."""
    if is_quantised(leaf):
        return {name: getattr(leaf, name) for name in QUANTISED}
    kind, array = type(leaf).__name__, unboxed(leaf)
    if is_boxed(leaf) and BOXES.get(kind) is not type(leaf):
        raise ValueError(f"{path}: {kind} is unknown; known are {', '.join(BOXES)}")
    if not isinstance(array, (jax.Array, np.ndarray, np.generic)) or jnp.issubdtype(
        array.dtype, jax.dtypes.extended
    ):
        raise ValueError(
            f"{path}: {type(array).__name__} cannot be saved, only mappings and numeric arrays"
        )
    return array


def _boxes(params: Tree) -> list[dict[str, Any]]:
    """What is around the arrays, as JSON keeps it."""
    return [
        {"path": [*split_path(path), name], "kind": type(leaf).__name__, "names": leaf.names}
        for path, own in mappings(params)
        for name, leaf in own.items()
        if is_boxed(leaf)
    ]


def _restored(
    manager: ocp.CheckpointManager, step: int, about: dict[str, Any]
) -> tuple[dict[str, Any], Plan]:
    """Read one step; raises whatever a damaged one leads to."""
    plan = Plan.from_json(json.dumps(about["plan"]))
    # Shapes as they are on disk, not as a plan would have them.
    found = manager.item_metadata(step)[ARRAYS].tree
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), found)
    # Before the arrays are read; the indices of sparse corrections are looked at after.
    check_params(_joined(shapes, plan), plan)
    params = arrays_of(manager, step, ARRAYS, shapes, about.get("arrays"))
    params = _joined(params, plan)
    check_params(params, plan)
    for box in about["boxes"]:
        *above, name = box["path"]
        own = layer_params(params, join_path(*above))
        boxed: Any = BOXES[box["kind"]](own[name], _tuples(box["names"]))
        put(params, join_path(*above), {name: boxed})
    return params, plan


def _joined(tree: Tree, plan: Plan) -> dict[str, Any]:
    """Arrays as they were before what is stored as integers was taken apart."""
    result = copied(tree)
    whole = not of_leaves(plan) and unpacked(tree, plan).variables is not None
    for entry in plan.layers:
        if entry.dtype not in LARGEST:
            continue
        stages: list[tuple[str, ...]] = [(stage.name, "kernel") for stage in entry.stages]
        for names in stages or [array_names(entry.layer)[len(split_path(entry.layer.path)) :]]:
            path = join_path(*["params"] * whole, *split_path(entry.layer.path), *names)
            own = find(tree, path)
            if own is None or own.keys() != set(QUANTISED):
                # The check of the parameters tells.
                continue
            *above, name = split_path(path)
            remove(result, path)
            put(result, join_path(*above), {name: Quantised(**own)})
    return result


def _about(manager: ocp.CheckpointManager, step: int, path: Path) -> dict[str, Any]:
    """What is beside the arrays, as it was saved."""
    raw = json_of(manager, step, ABOUT)
    if not isinstance(raw, dict):
        raise ValueError(f"{path / ABOUT} holds no fields")
    version = raw.get("version")
    if version == OLD_VERSION and type(version) is int and raw.keys() == OLD_FIELDS:
        return raw
    if version != FORMAT_VERSION:
        raise ValueError(f"version {version!r}, this library reads {FORMAT_VERSION}")
    try:
        return check_seal(raw)
    except ValueError as error:
        raise ValueError(f"{path / ABOUT}: {error}") from error


def _tuples(names: Any) -> Any:
    """Names of axes as they were before they were JSON."""
    return tuple(map(_tuples, names)) if isinstance(names, list) else names


def _check_free(path: Path) -> None:
    """Refuse a folder whose content a save would remove, or be mixed up with."""
    if not path.exists():
        return
    if not path.is_dir():
        raise ValueError(f"{path} is a file; give a folder")
    # What a killed save left is not in the way.
    present = [found for found in path.iterdir() if ".orbax-checkpoint-tmp" not in found.name]
    steps = [found for found in present if found.name.isdecimal()]
    newest = max(steps, key=lambda found: int(found.name), default=None)
    if len(steps) < len(present) or (newest is not None and not (newest / ABOUT).is_dir()):
        raise ValueError(f"{path} holds something else than a factorised network; use a new folder")
