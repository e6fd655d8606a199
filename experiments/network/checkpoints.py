"""Checkpoints of pytrees of arrays, by orbax: written whole or not at all, newest kept."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from tdjax.files import one_line
from tdjax.params.digests import check_newest, check_seal
from tdjax.params.saving import CheckpointError
from tdjax.params.steps import arrays_of, json_of, opened, save_step

Tree = TypeVar("Tree")

ARRAYS, ABOUT = "tree", "digests"
# The arrays of a checkpoint that was written before there were digests.
OLD = "default"


def save(folder: Path, step: int, tree: Any) -> None:
    """Write a pytree of arrays as `folder/<step>`; earlier steps are removed once it is there.

    Beside it stands the digest of each array, by which `restore_latest` knows it again.

    Raises OSError that names the folder where it cannot be written.
    """
    save_step(folder, (ARRAYS, tree), (ABOUT, {}), step)


def exist(folder: Path) -> bool:
    """Whether there is one."""
    return folder.is_dir() and any(found.name.isdecimal() for found in folder.iterdir())


def restore_latest(folder: Path, like: Tree) -> tuple[int, Tree] | None:
    """The newest checkpoint in a folder as (step, tree), or None where there is none.

    Arguments:
        like: a pytree of arrays or shapes of the structure that was saved.

    Raises CheckpointError for one that is damaged, to the bit, or of another structure. One that
    was written before there were digests is read with a warning.
    """
    if not folder.exists():
        return None
    where, shapes = folder, jax.eval_shape(lambda: like)
    try:
        check_newest(folder)
        with opened(folder, (ARRAYS, OLD), ABOUT) as manager:
            step = manager.latest_step()
            if step is None:
                return None
            where = folder / str(step)
            is_old = (where / OLD).is_dir()
            digests = None if is_old else check_seal(json_of(manager, step, ABOUT))["arrays"]
            found = arrays_of(manager, step, OLD if is_old else ARRAYS, shapes, digests)
            tree = jax.tree.map(jnp.asarray, found)
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
    return step, tree
