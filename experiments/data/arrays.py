"""Arrays of your own as examples: images, vectors or tokens, taken as they are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, Shaped

from experiments.data.errors import DataError
from experiments.data.splits import DataSplits, Examples, split_indices
from tdjax.files import one_line, opened_npz
from tdjax.hints import known_are

PARTS = ("train_inputs", "train_labels", "test_inputs", "test_labels")


@dataclass(frozen=True, eq=False)
class OwnExamples(Examples):
    """Inputs of any shape in place of images, float32 or int32 (n, ...), and classes int32 (n,)."""

    images: Float32[np.ndarray, "n ..."] | Int32[np.ndarray, "n ..."]
    labels: Int32[np.ndarray, n]

    def __post_init__(self) -> None:
        """Nothing: `prepare_arrays` has checked them, and named what was wrong."""


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of an npz file, named as `prepare_arrays` wants them.

    Raises DataError, in one line that names the file, where it is missing, damaged, or lacks one.
    """
    try:
        with opened_npz(path) as members:
            _check_names(members)
            return {name: members[name].read() for name in PARTS}
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    # Damaged archives fail in the reader with nearly any type of exception.
    except Exception as error:
        raise DataError(f"{path}: no npz file of examples: {one_line(error)}") from error


def prepare_arrays(
    arrays: Mapping[str, Any],
    validation_share: float = 0.1,
    seed: int = 0,
    train_size: int | None = None,
    validation_size: int | None = None,
    test_size: int | None = None,
) -> DataSplits:
    """Split off a validation set, and take subsets if asked; nothing is standardised.

        splits = prepare_arrays(np.load("mine.npz"))

    Arguments:
        arrays: "train_inputs" and "test_inputs" (n, ...) as the network takes them: floats of any
            width (vectors, images, ...) or integers (tokens, pixels), which stay integers; and
            "train_labels" and "test_labels" (n,), the classes, integers from 0.
        validation_share, seed, train_size, validation_size, test_size: see `prepare`.

    Returns:
        The sets; inputs float32 or int32, labels int32. `mean` is 0 and `std` 1.

    Raises ValueError, in one line, for an array that is missing, or of another shape or kind, for
    NaN and Inf, and as `prepare` does.
    """
    if not isinstance(arrays, Mapping):
        raise ValueError(
            f"a mapping of arrays is needed, with {', '.join(PARTS)}, not {type(arrays).__name__}"
        )
    _check_names(arrays)
    parts = {part: _examples(arrays, part) for part in ("train", "test")}
    train, test = parts["train"], parts["test"]
    for what, ours, theirs in (
        ("shape", train.images.shape[1:], test.images.shape[1:]),
        ("dtype", train.images.dtype, test.images.dtype),
    ):
        if ours != theirs:
            raise ValueError(f"train_inputs have {what} {ours}, test_inputs {theirs}")
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    if classes > len(train.labels):
        raise ValueError(
            f"{classes} classes, of labels up to {classes - 1}, are more than examples"
        )
    sizes = (train_size, validation_size, test_size)
    chosen = split_indices(train.labels, test.labels, classes, validation_share, seed, sizes)
    kept, held_out, tested = (
        OwnExamples(source.images[own], source.labels[own])
        for source, own in zip((train, train, test), chosen, strict=True)
    )
    channels = train.images.shape[-1]
    return DataSplits(kept, held_out, tested, np.zeros(channels), np.ones(channels), classes)


def _check_names(found: Mapping[str, Any]) -> None:
    for name in PARTS:
        if name not in found:
            raise ValueError(f"there is no {name!r}: {known_are(name, found)}")


def _examples(arrays: Mapping[str, Any], part: str) -> OwnExamples:
    inputs = _numbers(arrays, f"{part}_inputs")
    labels = _numbers(arrays, f"{part}_labels")
    if inputs.ndim < 2 or not inputs.size:
        raise ValueError(f"{part}_inputs have shape {inputs.shape}; (n, ...) is needed")
    if labels.shape != inputs.shape[:1] or labels.dtype != np.int32 or labels.min() < 0:
        raise ValueError(
            f"{part}_labels are {labels.dtype} {labels.shape}, from {labels.min(initial=0)}; "
            f"classes are needed, integers from 0, of shape {inputs.shape[:1]}"
        )
    return OwnExamples(inputs, labels)


def _numbers(arrays: Mapping[str, Any], name: str) -> Shaped[np.ndarray, ...]:
    """An array in float32 or int32. Raises ValueError for what neither holds."""
    array = np.asarray(arrays[name])
    is_floating = jnp.issubdtype(array.dtype, jnp.floating)
    if not is_floating and array.dtype.kind not in "iub":
        raise ValueError(f"{name} have dtype {array.dtype}; floats or integers are needed")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(np.float32 if is_floating else np.int32)
    bad = np.count_nonzero(~np.isfinite(cast) if is_floating else cast != array)
    if bad:
        what = "NaN, Inf or beyond float32" if is_floating else "beyond int32"
        raise ValueError(f"{name} hold {bad} values that are {what}")
    return cast
