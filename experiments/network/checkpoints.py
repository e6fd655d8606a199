"""Checkpoints of pytrees of arrays, by orbax: written whole or not at all, newest kept."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from tdjax.files import one_line, writing
from tdjax.params.digests import (
    check_arrays,
    check_newest,
    check_seal,
    check_shapes,
    digests_of,
    seal_files,
    sealed,
)
from tdjax.params.saving import CheckpointError

Tree = TypeVar("Tree")

# The item of a checkpoint that was written before there were digests.
OLD = "default"


def _manager(folder: Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, create=True, enable_async_checkpointing=False
    )
    # Named, for a manager that is to read before it has written.
    handlers = {
        "tree": ocp.StandardCheckpointHandler(),
        "digests": ocp.JsonCheckpointHandler(),
        OLD: ocp.StandardCheckpointHandler(),
    }
    return ocp.CheckpointManager(folder.resolve(), options=options, item_handlers=handlers)


def save(folder: Path, step: int, tree: Any) -> None:
    """Write a pytree of arrays as `folder/<step>`; earlier steps are removed once it is there.

    Beside it stands the digest of each array, by which `restore_latest` knows it again.

    Raises OSError that names the folder where it cannot be written.
    """
    with writing(folder), _manager(folder) as manager:
        manager.save(
            step,
            args=ocp.args.Composite(
                tree=ocp.args.StandardSave(tree),
                digests=ocp.args.JsonSave(sealed({"arrays": digests_of(tree)})),
            ),
        )
        manager.wait_until_finished()
    seal_files(folder / str(step))


def restore_latest(folder: Path, like: Tree) -> tuple[int, Tree] | None:
    """The newest checkpoint in a folder as (step, tree), or None where there is none.

    Arguments:
        like: a pytree of arrays or shapes of the structure that was saved.

    Raises CheckpointError for one that is damaged, to the bit, or of another structure. One that
    was written before there were digests is read with a warning.
    """
    if not folder.exists():
        return None
    where = folder
    try:
        check_newest(folder)
        with _manager(folder) as manager:
            step = manager.latest_step()
            if step is None:
                return None
            where = folder / str(step)
            is_old = (where / OLD).is_dir()
            tree = _restored(manager, step, _placed(like), is_old=is_old)
    except Exception as error:
        raise CheckpointError(
            f"{where}: the checkpoint is damaged or belongs to another network "
            f"({type(error).__name__}: {one_line(error)}); remove {folder} to train from scratch"
        ) from error
    if is_old:
        warnings.warn(
            f"{where} was written without digests, so damage to it cannot be seen; "
            f"remove {folder} to train from scratch",
            stacklevel=2,
        )
    # Orbax ties arrays to a device, and programs compiled for arrays that are not tied, as those
    # of an unbroken run, would be compiled again for them.
    return step, jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), tree)


def _placed(like: Tree) -> Tree:
    """The shapes of a pytree, on the default device."""
    # Named, because orbax otherwise reads the placement from the file and warns that it does.
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes: Tree = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        jax.eval_shape(lambda: like),
    )
    return shapes


def _restored(manager: ocp.CheckpointManager, step: int, shapes: Tree, *, is_old: bool) -> Tree:
    """The arrays of one step, known to be those that were saved; raises whatever else leads to."""
    arguments = ocp.args.StandardRestore(shapes)
    if is_old:
        return manager.restore(step, args=ocp.args.Composite(**{OLD: arguments}))[OLD]
    found = manager.restore(step, args=ocp.args.Composite(digests=ocp.args.JsonRestore()))
    digests = check_seal(found.digests)["arrays"]
    check_shapes(shapes, digests)
    tree = manager.restore(step, args=ocp.args.Composite(tree=arguments)).tree
    check_arrays(tree, digests)
    return tree
