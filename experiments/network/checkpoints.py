"""Checkpoints of pytrees of arrays, by orbax: written whole or not at all, newest kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from tdjax.params.saving import CheckpointError

Tree = TypeVar("Tree")


def _manager(folder: Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, create=True, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(folder.resolve(), options=options)


def save(folder: Path, step: int, tree: Any) -> None:
    """Write a pytree of arrays as `folder/<step>`; earlier steps are removed once it is there."""
    with _manager(folder) as manager:
        manager.save(step, args=ocp.args.StandardSave(tree))
        manager.wait_until_finished()


def restore_latest(folder: Path, like: Tree) -> tuple[int, Tree] | None:
    """The newest checkpoint in a folder as (step, tree), or None where there is none.

    Arguments:
        like: a pytree of arrays or shapes of the structure that was saved.

    Raises CheckpointError for one that is damaged or of another structure.
    """
    if not folder.exists():
        return None
    # Named, because orbax otherwise reads the placement from the file and warns that it does.
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        jax.eval_shape(lambda: like),
    )
    with _manager(folder) as manager:
        step = manager.latest_step()
        if step is None:
            return None
        try:
            tree = manager.restore(step, args=ocp.args.StandardRestore(shapes))
        except Exception as error:
            raise CheckpointError(
                f"{folder / str(step)}: the checkpoint is damaged or belongs to another network "
                f"({type(error).__name__}: {error}); remove {folder} to train from scratch"
            ) from error
    # Orbax ties arrays to a device, and programs compiled for arrays that are not tied, as those
    # of an unbroken run, would be compiled again for them.
    return step, jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), tree)
