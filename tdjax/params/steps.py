"""Steps of checkpoints by orbax: arrays and what is known of them, which no flipped bit passes.

Each array has a digest in the JSON beside the arrays, and each file one in a file beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from tdjax.decompose.inputs import as_numpy
from tdjax.files import writing
from tdjax.params.digests import (
    Digests,
    check_arrays,
    check_shapes,
    digests_of,
    seal_files,
    sealed,
)
from tdjax.processes import together

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
    processes = _this_process_alone()
    if create:
        folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=1,
        create=False,
        enable_async_checkpointing=False,
        multiprocessing_options=processes,
    )
    # Named, for a manager that is to read before it has written.
    handlers = {
        **{
            name: ocp.StandardCheckpointHandler(multiprocessing_options=processes)
            for name in arrays
        },
        about: ocp.JsonCheckpointHandler(multiprocessing_options=processes),
    }
    return ocp.CheckpointManager(folder.resolve(), options=options, item_handlers=handlers)


def _this_process_alone() -> ocp.options.MultiprocessingOptions:
    """Of several processes one writes and each reads for itself: none waits for another."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )


def save_step(
    folder: Path,
    arrays: tuple[str, Any],
    about: tuple[str, Mapping[str, Any]],
    step: int | None = None,
) -> None:
    """Write a step; those before it are removed once it is there.

    Of several processes, all of which call it, the first one writes what it has.

    Arguments:
        folder: made if it is not there.
        arrays: a pytree of arrays, and before it the name that it gets.
        about: JSON fields, and before them their name; "arrays" is added, the digests of these.
        step: its number, above those that are there; None for the next.

    Raises OSError that names the folder where it cannot be written.
    """
    name, tree = arrays
    if jax.process_count() > 1:
        tree = jax.tree.map(as_numpy, tree)

    def write() -> None:
        if jax.process_index() == 0:
            _write(folder, (name, tree), about, step)

    together(f"the checkpoint in {folder}", write)


def _write(
    folder: Path, arrays: tuple[str, Any], about: tuple[str, Mapping[str, Any]], step: int | None
) -> None:
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
    """The arrays of a step, known to be those that were saved, as NumPy arrays on no device.

    Arguments:
        like: a pytree of arrays or shapes, as they are on disk.
        digests: what is known of the arrays; None where nothing is.

    Raises ValueError where they are others, or would not be exact among JAX's arrays, and whatever
    else a damaged step leads to.
    """
    if digests is not None:
        check_shapes(like, digests)
    for path, leaf in jax.tree_util.tree_leaves_with_path(like):
        if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
            where = jax.tree_util.keystr(path)
            raise ValueError(f"{where} is {leaf.dtype}: enable jax_enable_x64 to read it exactly")
    # What orbax is to fill: arrays of NumPy, or it puts all of them on a device.
    shapes = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), like)
    arguments = ocp.args.Composite(**{name: ocp.args.StandardRestore(shapes)})
    tree: Tree = manager.restore(step, args=arguments)[name]
    if digests is not None:
        check_arrays(tree, digests)
    return tree
