"""Digests of what a checkpoint holds: a bit that flips on a disk must not come back as a weight."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tdjax.files import array_digest, write_atomically

# The digests of the files of a checkpoint, beside them.
FILES = "digests.json"
# Of each array of a pytree, by its path: dtype, shape and digest; None for an empty mapping.
Digests = Mapping[str, Any]


def digests_of(tree: Any) -> dict[str, Any]:
    """What JSON keeps of each array of a pytree, by its path, so that it can be known again."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_empty)
    return {
        jax.tree_util.keystr(path): plain and {**plain, "sha256": array_digest(np.asarray(leaf))}
        for path, leaf in leaves
        for plain in (_plainly(leaf),)
    }


def check_shapes(tree: Any, expected: Digests) -> None:
    """Check that the arrays of a pytree, or shapes in their place, are those of some digests.

    Raises ValueError that names the first array that is missing, one too many, or has another
    shape or dtype.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_empty)
    found = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    for path in found.keys() ^ expected.keys():
        problem = "was saved and is missing" if path in expected else "was not saved"
        raise ValueError(f"array {path} {problem}")
    for path, leaf in found.items():
        shown, known = _told(_plainly(leaf)), _told(expected[path])
        if shown != known:
            raise ValueError(f"array {path} is {shown}, not what was saved, {known}")


def check_arrays(tree: Any, expected: Digests) -> None:
    """Check that the arrays of a pytree are those of some digests, bit for bit.

    Raises ValueError that names the first that is not.
    """
    check_shapes(tree, expected)
    for path, found in digests_of(tree).items():
        if found != expected[path]:
            raise ValueError(f"array {path} is not what was saved: its digest differs")


def tree_digest(tree: Any) -> str:
    """The SHA-256 of the arrays of a pytree with their paths, in hexadecimal digits."""
    return _digest(digests_of(tree))


def sealed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a JSON object and their digest beside them, for `check_seal`."""
    return {**fields, "sha256": _digest(fields)}


def check_seal(raw: Any) -> dict[str, Any]:
    """The fields of what `sealed` made. Raises ValueError where they are others."""
    if not isinstance(raw, Mapping) or "sha256" not in raw:
        raise ValueError("its digest is missing")
    fields = {name: value for name, value in raw.items() if name != "sha256"}
    if raw["sha256"] != _digest(fields):
        raise ValueError("it is not what was saved: its digest differs")
    return fields


def seal_files(folder: Path) -> None:
    """Write the digest of each file of a folder beside them, for `check_files`."""
    digests = {
        found.relative_to(folder).as_posix(): _file_digest(found)
        for found in sorted(folder.rglob("*"))
        if found.is_file() and found.name != FILES
    }
    write_atomically(folder / FILES, json.dumps(sealed({"files": digests})))


def check_newest(folder: Path) -> None:
    """`check_files` of the newest checkpoint in a folder of them, before orbax looks at it.

    Raises ValueError for what is no file and no folder beside it, too.
    """
    _check_kinds(folder.iterdir())
    steps = [found for found in folder.iterdir() if found.name.isdecimal()]
    if steps:
        check_files(max(steps, key=lambda found: int(found.name)))


def check_files(folder: Path) -> None:
    """Check that the files of a folder are those that `seal_files` saw, where it came to that.

    Before anything reads them: what reads a damaged file may fail in a hundred lines.

    Raises ValueError that names the file that is missing or another, and what is no file at all:
    reading a pipe would wait for ever.
    """
    _check_kinds(folder.rglob("*"))
    listed = folder / FILES
    # A kill after the save left none; the digests of the arrays are there all the same.
    if not listed.exists():
        return
    try:
        known = check_seal(json.loads(listed.read_text("utf-8")))["files"]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{listed} is damaged: {error}") from error
    for name, digest in known.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing")
        if _file_digest(folder / name) != digest:
            raise ValueError(f"{folder / name} is not what was saved: its digest differs")


def _check_kinds(paths: Iterable[Path]) -> None:
    for found in paths:
        if not (found.is_file() or found.is_dir()):
            raise ValueError(f"{found} is neither a file nor a folder")


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _is_empty(leaf: Any) -> bool:
    return isinstance(leaf, Mapping) and not leaf


def _plainly(leaf: Any) -> dict[str, Any] | None:
    if _is_empty(leaf):
        return None
    return {"dtype": str(leaf.dtype), "shape": list(leaf.shape)}


def _told(known: Any) -> str:
    return "empty" if known is None else f"{known['dtype']} {tuple(known['shape'])}"
