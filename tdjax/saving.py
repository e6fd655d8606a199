"""A factorised network on disk: its parameters and its plan, read back without a model.

By orbax, so other tools can read the parameters: `<folder>/<n>/params`, and beside them
`<folder>/<n>/plan`. A new save is a new `<n>`, which appears under its name once it is whole, and
the one before is removed after that: a kill at any moment leaves the old network or the new one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from tdjax.boxes import is_boxed, unboxed
from tdjax.checkpoints import CheckpointError
from tdjax.factorize import Params, layer_params
from tdjax.plan import Plan, PlannedLayer

FORMAT_VERSION = 1
# Metadata around an array that is saved with it: by name, as a checkpoint may name no class.
BOXES = {"Partitioned": nn.Partitioned, "LogicallyPartitioned": nn.LogicallyPartitioned}
# Of more layers that do not fit, the first say enough.
SHOWN = 5

Names = tuple[str, ...]
Shape = tuple[int, ...]


def save_factorised(folder: str | os.PathLike[str], params: Params, plan: Plan) -> None:
    """Write factorised parameters and their plan as one, in place of what was saved there before.

    A kill at any moment leaves either the old network or the new one.

    Arguments:
        folder: made if it is not there; it belongs to this network alone.
        params: nested mapping of arrays of any dtype, as `tdjax.factorize_params` gives it, or
            a whole dict of variables with such a "params". Axis names around an array
            (`nn.Partitioned`, `nn.LogicallyPartitioned`) are saved with it, a mesh and rules
            are not.
        plan: the plan that the parameters were factorised by.

    Raises ValueError for parameters that do not fit the plan, for a pytree of anything but
    mappings and arrays, and for a folder that holds something else, which is not touched.
    """
    path = Path(folder).resolve()
    check_params(params, plan)
    boxes: list[dict[str, Any]] = []
    arrays = _arrays(params, (), boxes)
    _check_free(path)
    about = {"version": FORMAT_VERSION, "plan": json.loads(plan.to_json()), "boxes": boxes}
    with _manager(path, create=True) as manager:
        latest = manager.latest_step()
        manager.save(
            0 if latest is None else latest + 1,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(arrays), plan=ocp.args.JsonSave(about)
            ),
        )
        manager.wait_until_finished()


def load_factorised(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], Plan]:
    """Read what `save_factorised` wrote as (params, plan); neither model nor kernels are needed.

    Every array comes back bit for bit, on the default device; mappings come back as dicts.

    Raises CheckpointError where nothing was saved, and for what is damaged or does not fit
    together; the message names the folder, and for parameters that do not fit the plan the layer
    with the expected and the found shape.
    """
    path = Path(folder).resolve()
    if not path.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder; save_factorised writes one")
    with _manager(path, create=False) as manager:
        step = manager.latest_step()
        if step is None:
            raise CheckpointError(f"{folder}: no factorised network was saved here")
        try:
            return _restored(manager, step)
        except Exception as error:
            raise CheckpointError(
                f"{path / str(step)}: this is no readable factorised network "
                f"({type(error).__name__}: {error}); if it is damaged, save it anew"
            ) from error


def check_params(params: Params, plan: Plan) -> None:
    """Check that parameters are those of a plan's factorised model.

    Every factorised layer must have the kernels of exactly its stages, every other layer its
    dense array, with the shapes of the plan, and no other layer may be there. Biases,
    normalisation and other small parameters are not in a plan, and not checked.

    Arguments:
        params: nested mapping of arrays or shapes, or a dict of variables with such a "params".
        plan: from `tdjax.make_plan`.

    Raises ValueError that names each layer that does not fit, what the plan expects there and
    what was found.
    """
    params = _without_collections(params, plan)
    found = [problem for entry in plan.layers for problem in _problems(params, entry)]
    known = {tuple(filter(None, entry.layer.path.split("/"))) for entry in plan.layers}
    for entry in plan.factorised:
        # Whatever a factorised layer has below it was looked at with the layer.
        known |= {(*_names(entry), name) for name in _factors(params, entry)}
    for path in _weight_owners(params):
        if path not in known:
            found.append(f"layer {'/'.join(path)!r} is not in the plan")
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise ValueError(
            f"the parameters are not those of the plan: {'; '.join(found[:SHOWN])}{more}"
        )


def factor_shapes(entry: PlannedLayer) -> dict[str, Shape]:
    """Shapes of the kernels of a layer's stages, with the axis of a stack, by stage name."""
    storage = entry.layer.storage
    if storage.stack is None:
        return {stage.name: stage.kernel_shape for stage in entry.stages}
    axis = storage.stack
    return {
        stage.name: (*stage.kernel_shape[:axis], storage.copies, *stage.kernel_shape[axis:])
        for stage in entry.stages
    }


def _without_collections(params: Params, plan: Plan) -> Params:
    """The parameters of a dict of variables; parameters are passed on."""
    own = params.get("params")
    # A model may have a layer of that name.
    named = any(_names(entry)[:1] == ("params",) for entry in plan.layers)
    return own if isinstance(own, Mapping) and not named else params


def _problems(params: Params, entry: PlannedLayer) -> Iterator[str]:
    layer, name = entry.layer, f"layer {entry.layer.path!r}"
    own = _own(params, entry)
    if own is None:
        yield f"{name} is missing"
        return
    factors = _factors(params, entry)
    if entry.method is None:
        if layer.obstacle is not None:
            # Of a module that no method takes the plan knows one array, not its name.
            if layer.kernel_shape not in [_shape(leaf) for leaf in own.values()]:
                yield f"{name} has no array of shape {layer.kernel_shape}"
            return
        weight, expected = layer.storage.name, layer.storage.whole_shape
        if weight not in own:
            there = f"factors {', '.join(factors)}" if factors else _listed(own)
            yield f"{name} is dense in the plan: expected {weight} {expected}, found {there}"
        elif _shape(own[weight]) != expected:
            yield f"{name}: expected {weight} of shape {expected}, found {_shape(own[weight])}"
        return
    if layer.storage.name in own:
        yield (
            f"{name} is factorised in the plan ({entry.method}), "
            f"found a dense {layer.storage.name} of shape {_shape(own[layer.storage.name])}"
        )
    stages = factor_shapes(entry)
    for stage, expected in stages.items():
        if stage not in factors:
            there = ", ".join(factors) or "none"
            yield f"{name}: expected factor {stage} of shape {expected}, found factors: {there}"
        elif factors[stage] != expected:
            yield f"{name}: expected factor {stage} of shape {expected}, found {factors[stage]}"
    for extra in factors.keys() - stages.keys():
        yield f"{name}: no factor {extra} expected, found one of shape {factors[extra]}"


def _factors(params: Params, entry: PlannedLayer) -> dict[str, Shape | None]:
    """Shapes of the kernels below a layer, by name; a layer of Flax has nothing else there."""
    own = _own(params, entry)
    if own is None or entry.layer.obstacle is not None:
        return {}
    return {
        name: _shape(below["kernel"])
        for name, below in own.items()
        if isinstance(below, Mapping) and "kernel" in below
    }


def _own(params: Params, entry: PlannedLayer) -> Params | None:
    """The parameters of a layer; None where there are none at its path."""
    own: Any = params
    for name in _names(entry):
        if not isinstance(own, Mapping) or name not in own:
            return None
        own = own[name]
    return own if isinstance(own, Mapping) else None


def _names(entry: PlannedLayer) -> Names:
    return tuple(filter(None, entry.layer.path.split("/")))


def _shape(leaf: Any) -> Shape | None:
    shape = getattr(unboxed(leaf), "shape", None)
    return None if shape is None else tuple(shape)


def _listed(own: Params) -> str:
    return ", ".join(own) or "nothing"


def _weight_owners(params: Mapping[Any, Any], path: tuple[Any, ...] = ()) -> Iterator[Names]:
    """Paths of the mappings that hold an array of two axes or more, which a plan lists."""
    if any(
        not isinstance(leaf, Mapping) and len(_shape(leaf) or ()) > 1 for leaf in params.values()
    ):
        yield path
    for name, below in params.items():
        if isinstance(below, Mapping):
            yield from _weight_owners(below, (*path, name))


def _arrays(tree: Any, path: Names, boxes: list[dict[str, Any]]) -> Any:
    """The tree as dicts of bare arrays; what was around an array is noted in `boxes`."""
    where = "/".join(path)
    if isinstance(tree, Mapping):
        wrong = [name for name in tree if not isinstance(name, str)]
        if wrong:
            raise ValueError(f"{where or 'params'}: the key {wrong[0]!r} is not a string")
        return {name: _arrays(below, (*path, name), boxes) for name, below in tree.items()}
    if is_boxed(tree):
        kind = type(tree).__name__
        if BOXES.get(kind) is not type(tree):
            raise ValueError(f"{where}: {kind} is unknown; known are {', '.join(BOXES)}")
        boxes.append({"path": path, "kind": kind, "names": tree.names})
        tree = unboxed(tree)
    if not isinstance(tree, (jax.Array, np.ndarray, np.generic)) or jnp.issubdtype(
        tree.dtype, jax.dtypes.extended
    ):
        raise ValueError(
            f"{where}: {type(tree).__name__} cannot be saved, only mappings and numeric arrays"
        )
    return tree


def _restored(manager: ocp.CheckpointManager, step: int) -> tuple[dict[str, Any], Plan]:
    """Read one step; raises whatever a damaged one leads to."""
    about = manager.restore(step, args=ocp.args.Composite(plan=ocp.args.JsonRestore())).plan
    if about["version"] != FORMAT_VERSION:
        raise ValueError(f"version {about['version']!r}, this library reads {FORMAT_VERSION}")
    plan = Plan.from_json(json.dumps(about["plan"]))
    # Shapes as they are on disk, not as a plan would have them.
    found = manager.item_metadata(step).params.tree
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), found
    )
    check_params(shapes, plan)
    arguments = ocp.args.Composite(params=ocp.args.StandardRestore(shapes))
    arrays = manager.restore(step, args=arguments).params
    # Not tied to a device, as `tdjax.checkpoints` gives them.
    params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), arrays)
    for (path, leaf), shape in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shapes), strict=True
    ):
        if leaf.dtype != shape.dtype:
            where = jax.tree_util.keystr(path)
            raise ValueError(f"{where} is {shape.dtype}: enable jax_enable_x64 to read it exactly")
    for box in about["boxes"]:
        *above, name = box["path"]
        own = layer_params(params, "/".join(above))
        own[name] = BOXES[box["kind"]](own[name], _tuples(box["names"]))  # type: ignore[index]
    return params, plan


def _tuples(names: Any) -> Any:
    """Names of axes as they were before they were JSON."""
    return tuple(map(_tuples, names)) if isinstance(names, list) else names


def _manager(path: Path, *, create: bool) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, create=create, enable_async_checkpointing=False
    )
    # Named, for a manager that is to read before it has written.
    handlers = {"params": ocp.StandardCheckpointHandler(), "plan": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(path, options=options, item_handlers=handlers)


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
    if len(steps) < len(present) or (newest is not None and not (newest / "plan").is_dir()):
        raise ValueError(f"{path} holds something else than a factorised network; use a new folder")
