"""Arrays in files of weights: npz, safetensors, Orbax; none is read before all of them fit."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from tdjax.files import Member, one_line, open_regular, opened_npz

FileOf = str | os.PathLike[str]
Members = Mapping[str, Member]
# By their names in safetensors files.
DTYPES: Mapping[str, Any] = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16},
    **{"I64": np.int64, "I32": np.int32, "U32": np.uint32, "U8": np.uint8, "BOOL": np.bool_},
}


class WeightsError(ValueError):
    """A file of weights that is missing, damaged or another network's; the message names it."""


@contextmanager
def opened_weights(path: FileOf) -> Iterator[Members]:
    """The arrays of a file of weights by name, none of them read yet.

    Arguments:
        path: an Orbax folder, a file that ends in .safetensors, or an npz file.

    Raises WeightsError for whatever goes wrong, here or where an array is read.
    """
    kind, members = _reader(path)
    try:
        with members as found:
            yield found
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    # Damaged archives fail in the reader with nearly any type of exception.
    except Exception as error:
        known = "" if _is_known(path) else "; weights are .npz, .safetensors, or an Orbax folder"
        raise WeightsError(
            f"{path}: not a whole {kind} of plain arrays ({type(error).__name__}: "
            f"{one_line(error)}){known}"
        ) from error


def read_arrays(
    path: FileOf,
    members: Members,
    expected: Mapping[str, Any],
    ignored: Collection[str] = (),
    note: str = "",
) -> dict[str, np.ndarray]:
    """The arrays of these names, as numbers of the kind that is expected.

    Arguments:
        members: of the file, see `opened_weights`.
        expected: by name what has the shape and the dtype.
        ignored: names of further arrays that the file may hold.
        note: on the names, for messages.

    Raises WeightsError for an array that is missing, too many, of another shape, of integers where
    fractions are expected or the other way round, or with NaN or Inf.
    """
    lacking = set(expected) - set(members)
    more = set(members) - set(expected) - set(ignored)
    if lacking:
        held = f"; it holds {_listed(more)} in their place" if more else ""
        raise WeightsError(f"{path}: lacks {_listed(lacking)}{held}{note}")
    if more:
        raise WeightsError(f"{path}: holds, and the model has no place for, {_listed(more)}")
    for name, like in expected.items():
        member, is_floating = members[name], jnp.issubdtype(like.dtype, jnp.floating)
        if jnp.issubdtype(member.dtype, jnp.floating) != is_floating:
            kind = "floating point" if is_floating else np.dtype(like.dtype)
            raise WeightsError(f"{path}: {name} has dtype {member.dtype}; expected {kind}")
        if member.shape != like.shape:
            raise WeightsError(
                f"{path}: {name} has shape {member.shape}; the model needs {like.shape}"
            )
    return {
        name: _cast(path, name, members[name].read(), expected[name].dtype)
        for name in sorted(expected)
    }


def _cast(path: FileOf, name: str, array: np.ndarray, dtype: Any) -> np.ndarray:
    # What is too large for the model's dtype becomes Inf, and is refused as such.
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    is_floating = jnp.issubdtype(dtype, jnp.floating)
    bad = np.count_nonzero(~np.isfinite(cast)) if is_floating else 0
    if bad:
        raise WeightsError(
            f"{path}: {name} holds {bad} values that are NaN, Inf or beyond {np.dtype(dtype)}"
        )
    return cast


def _listed(names: set[str], most: int = 5) -> str:
    first = ", ".join(sorted(names)[:most])
    return first if len(names) <= most else f"{first} and {len(names) - most} more"


def _is_known(path: FileOf) -> bool:
    """Whether a name tells what it is of."""
    return os.path.isdir(path) or os.fspath(path).endswith((".npz", ".safetensors"))


def _reader(path: FileOf) -> tuple[str, AbstractContextManager[Members]]:
    if os.path.isdir(path):
        return "Orbax checkpoint", _opened_orbax(path)
    if os.fspath(path).endswith(".safetensors"):
        return "safetensors file", _opened_safetensors(path)
    return "npz file", opened_npz(path)


@contextmanager
def _opened_safetensors(path: FileOf) -> Iterator[Members]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise WeightsError(
            f"{path}: the package safetensors is needed to read it: pip install safetensors"
        ) from error
    open_regular(path).close()
    with safe_open(os.fspath(path), framework="np") as file:
        yield {name: _tensor(path, file, name) for name in file.keys()}  # noqa: SIM118


def _tensor(path: FileOf, file: Any, name: str) -> Member:
    about = file.get_slice(name)
    kind = about.get_dtype()
    if kind not in DTYPES:
        known = ", ".join(DTYPES)
        raise WeightsError(f"{path}: {name} has dtype {kind}; those that can be read are {known}")
    dtype = np.dtype(DTYPES[kind])
    return Member(tuple(about.get_shape()), dtype, partial(file.get_tensor, name))


@contextmanager
def _opened_orbax(path: FileOf) -> Iterator[Members]:
    folder = os.path.abspath(path)
    if not os.path.exists(os.path.join(folder, "_METADATA")):
        raise WeightsError(
            f"{path}: cannot be read: it is no regular file, and no Orbax checkpoint, which has a "
            "file _METADATA; of a CheckpointManager's folder name the item inside of a step, such "
            "as 7/default"
        )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        about: Any = reader.metadata(folder)
        about = getattr(about, "item_metadata", about)
        tree = getattr(about, "tree", about)
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        found = reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=plain))
    arrays = {name_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(found)}
    yield {
        name: Member(leaf.shape, leaf.dtype, partial(np.asarray, leaf))
        for name, leaf in arrays.items()
    }


def name_of(path: tuple[Any, ...]) -> str:
    """The keys on the way to an array of a pytree, joined by '/'."""
    return "/".join(keys_of(path))


def keys_of(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The keys on the way to an array of nested mappings."""
    # A box around an array adds an entry of another kind to its path.
    return tuple(str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey))
