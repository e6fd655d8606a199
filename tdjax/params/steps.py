"""Steps of checkpoints by orbax: arrays and what is known of them, which no flipped bit passes.

Each array has a digest in the JSON beside the arrays, and each file one in a file beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from tdjax.files import writing
from tdjax.params.digests import (
    Digests,
    check_arrays,
    check_shapes,
    digests_of,
    seal_files,
    sealed,
)

Tree = TypeVar("Tree")


def opened(
    folder: Path, arrays: tuple[str, ...], about: str, *, create: bool = False
) -> ocp.CheckpointManager:
    """A folder of steps, the newest kept, to be used as a context.

    Arguments:
        arrays: names under which a step may hold arrays.
        about: the name of the JSON beside them.
        create: make the folder.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, create=create, enable_async_checkpointing=False
    )
    # Named, for a manager that is to read before it has written.
    handlers = {
        **{name: ocp.StandardCheckpointHandler() for name in arrays},
        about: ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(folder.resolve(), options=options, item_handlers=handlers)


def save_step(
    folder: Path,
    arrays: tuple[str, Any],
    about: tuple[str, Mapping[str, Any]],
    step: int | None = None,
) -> None:
    """Write a step; those before it are removed once it is there.

    Arguments:
        folder: made if it is not there.
        arrays: a pytree of arrays, and before it the name that it gets.
        about: JSON fields, and before them their name; "arrays" is added, the digests of these.
        step: its number, above those that are there; None for the next.

    Raises OSError that names the folder where it cannot be written.
    """
    (name, tree), (beside, fields) = arrays, about
    with writing(folder):
        with opened(folder, (name,), beside, create=True) as manager:
            latest = manager.latest_step()
            number = (0 if latest is None else latest + 1) if step is None else step
            items = {
                name: ocp.args.StandardSave(tree),
                beside: ocp.args.JsonSave(sealed({**fields, "arrays": digests_of(tree)})),
            }
            manager.save(number, args=ocp.args.Composite(**items))
            manager.wait_until_finished()
        seal_files(folder / str(number))


def json_of(manager: ocp.CheckpointManager, step: int, about: str) -> Any:
    """The JSON of a step, as it is there: for `tdjax.params.digests.check_seal`."""
    return manager.restore(step, args=ocp.args.Composite(**{about: ocp.args.JsonRestore()}))[about]


def arrays_of(
    manager: ocp.CheckpointManager, step: int, name: str, like: Tree, digests: Digests | None
) -> Tree:
    """The arrays of a step, known to be those that were saved; on no device in particular.

    Arguments:
        like: a pytree of arrays or shapes, as they are on disk.
        digests: what is known of the arrays; None where nothing is.

    Raises ValueError where they are others, and whatever else a damaged step leads to.
    """
    # Named, because orbax otherwise reads the placement from the file and warns that it does.
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), like
    )
    if digests is not None:
        check_shapes(shapes, digests)
    arguments = ocp.args.Composite(**{name: ocp.args.StandardRestore(shapes)})
    found = manager.restore(step, args=arguments)[name]
    # Orbax ties arrays to a device, and programs compiled for arrays that are not tied, as those
    # of an unbroken run, would be compiled again for them.
    tree: Tree = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), found)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for (path, leaf), shape in zip(leaves, jax.tree.leaves(shapes), strict=True):
        if leaf.dtype != shape.dtype:
            where = jax.tree_util.keystr(path)
            raise ValueError(f"{where} is {shape.dtype}: enable jax_enable_x64 to read it exactly")
    if digests is not None:
        check_arrays(tree, digests)
    return tree
