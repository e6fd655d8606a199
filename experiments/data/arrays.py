"""Arrays of your own as examples: images, vectors or tokens, taken as they are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, Shaped

from experiments.data.errors import DataError
from experiments.data.gather import gathered, is_batched, shown_inputs
from experiments.data.splits import DataSplits, Examples, Inputs, rows, split_indices, take
from experiments.data.tables import first
from tdjax.files import one_line, opened_npz
from tdjax.hints import known_are

PARTS = ("train_inputs", "train_labels", "test_inputs", "test_labels")
OWN_VALIDATION = ("validation_inputs", "validation_labels")


@dataclass(frozen=True, eq=False)
class OwnExamples(Examples):
    """Inputs of any shape in place of images, and classes or other labels; float32 or int32."""

    images: Inputs
    labels: Float32[np.ndarray, "n ..."] | Int32[np.ndarray, "n ..."]

    def __post_init__(self) -> None:
        """Nothing: `prepare_arrays` has checked them, and named what was wrong."""


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of an npz file, named as `prepare_arrays` wants them.

    Raises DataError, in one line that names the file, where it is missing, damaged, or lacks one.
    """
    try:
        with opened_npz(path) as members:
            _check_names(members)
            names = [*PARTS, *(name for name in OWN_VALIDATION if name in members)]
            return {name: members[name].read() for name in names}
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
    *,
    classes: bool = True,
) -> DataSplits:
    """Split off a validation set if none is there, and take subsets if asked.

    Nothing is standardised.

        splits = prepare_arrays(np.load("mine.npz"))

    Arguments:
        arrays: "train_inputs" and "test_inputs" (n, ...) as the network takes them: floats of any
            width (vectors, images, ...) or integers (tokens, pixels), which stay integers; tuples
            of positional or dicts of keyword arguments where it takes several; and
            "train_labels" and "test_labels" (n,), the classes, integers from 0. With
            "validation_inputs" and "validation_labels" nothing is split off. Or batches: "train",
            "test" and perhaps "validation", each an iterable of (inputs, labels), a function that
            returns one, or one such pair.
        validation_share, seed, train_size, validation_size, test_size: see `prepare`.
        classes: whether labels are classes; if not, numbers of any shape (n, ...).

    Returns:
        The sets; inputs float32 or int32, and so labels that are no classes, of which
        `num_classes` is 1. `mean` is 0 and `std` 1.

    Raises ValueError, in one line, for an array that is missing, or of another shape or kind, for
    NaN and Inf, and as `prepare` does.
    """
    if not isinstance(arrays, Mapping):
        raise ValueError(
            f"a mapping of arrays is needed, with {', '.join(PARTS)}, or of batches, with train "
            f"and test, not {type(arrays).__name__}"
        )
    if is_batched(arrays):
        arrays = gathered(arrays)
    _check_names(arrays)
    own = [name in arrays for name in OWN_VALIDATION]
    if any(own) and not all(own):
        raise ValueError(f"{OWN_VALIDATION[0]} and {OWN_VALIDATION[1]} are needed, or neither")
    names = ("train", "validation", "test") if all(own) else ("train", "test")
    parts = {part: _examples(arrays, part, classes=classes) for part in names}
    _check_alike(parts)
    train, test = parts["train"], parts["test"]
    number = _classes(parts) if classes else 1
    sizes = (train_size, validation_size, test_size)
    split = split_classes if classes else split_numbers
    chosen = split([part.labels for part in parts.values()], number, validation_share, seed, sizes)
    sources = (train, parts.get("validation", train), test)
    kept, held_out, tested = (
        OwnExamples(rows(source.images, own), source.labels[own])
        for source, own in zip(sources, chosen, strict=True)
    )
    return DataSplits(kept, held_out, tested, np.zeros(1), np.ones(1), number)


def split_classes(
    labels: Sequence[np.ndarray],
    number: int,
    share: float,
    seed: int,
    sizes: tuple[int | None, int | None, int | None],
) -> Sequence[np.ndarray]:
    """Which examples are in the three sets, by class shares; see `split_indices`.

    Arguments:
        labels: of the training, perhaps the validation, and the test examples.
    """
    if len(labels) == 2:
        return split_indices(labels[0], labels[1], number, share, seed, sizes)
    named = zip(labels, sizes, ("train", "validation", "test"), strict=True)
    return [
        take(own, np.arange(len(own)), size, seed=seed, num_classes=number, split=name)
        for own, size, name in named
    ]


def split_numbers(
    labels: Sequence[np.ndarray],
    number: int,
    share: float,
    seed: int,
    sizes: tuple[int | None, int | None, int | None],
) -> Sequence[np.ndarray]:
    """The same where there are no classes: at random."""
    train, *own, test = (np.arange(len(one)) for one in labels)
    if not own:
        if not 0.0 < share < 1.0:
            raise ValueError(f"validation_share is {share}: between 0 and 1 is needed")
        mixed = np.random.default_rng(seed).permutation(train)
        held_out, train = np.split(mixed, [round(share * len(mixed))])
        own = [held_out]
    names = ("train", "validation", "test")
    return [
        first(rows, size, name)
        for rows, size, name in zip((train, *own, test), sizes, names, strict=True)
    ]


def _check_alike(parts: Mapping[str, OwnExamples]) -> None:
    """Refuse parts whose inputs or labels are not of one kind."""
    train = parts["train"]
    for name, part in parts.items():
        for end, ours, theirs in (
            ("inputs", train.images, part.images),
            ("labels", train.labels, part.labels),
        ):
            for what in ("shape", "dtype"):
                a, b = shown_inputs(ours, what), shown_inputs(theirs, what)
                if a != b:
                    raise ValueError(f"train_{end} have {what} {a}, {name}_{end} {b}")


def _classes(parts: Mapping[str, OwnExamples]) -> int:
    """The number of classes. Raises ValueError for more than there are examples."""
    number = int(max(part.labels.max() for part in parts.values())) + 1
    if number > len(parts["train"].labels):
        raise ValueError(f"{number} classes, of labels up to {number - 1}, are more than examples")
    return number


def _check_names(found: Mapping[str, Any]) -> None:
    for name in PARTS:
        if name not in found:
            raise ValueError(f"there is no {name!r}: {known_are(name, found)}")


def _examples(arrays: Mapping[str, Any], part: str, *, classes: bool) -> OwnExamples:
    inputs = _inputs(arrays[f"{part}_inputs"], f"{part}_inputs")
    labels = _numbers(arrays[f"{part}_labels"], f"{part}_labels")
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(inputs)}
    if len(sizes) != 1:
        shapes = jax.tree.map(lambda leaf: leaf.shape, inputs)
        raise ValueError(f"{part}_inputs have shapes {shapes}: equally many examples are needed")
    (size,) = sizes
    if not classes:
        if labels.shape[:1] != size:
            raise ValueError(
                f"{part}_labels have shape {labels.shape}, for {size[0]} {part}_inputs"
            )
    elif labels.shape != size or labels.dtype != np.int32 or labels.min() < 0:
        raise ValueError(
            f"{part}_labels are {labels.dtype} {labels.shape}, from {labels.min(initial=0)}; "
            f"classes are needed, integers from 0, of shape {size}"
        )
    return OwnExamples(inputs, labels)


def _inputs(found: Any, name: str) -> Inputs:
    """Inputs in float32 or int32, several in tuples and dicts."""
    if isinstance(found, Mapping):
        return {key: _inputs(own, f"{name}[{key!r}]") for key, own in found.items()}
    if isinstance(found, tuple):
        return tuple(_inputs(own, f"{name}[{place}]") for place, own in enumerate(found))
    array = _numbers(found, name)
    # Of several inputs one may be a number for each example.
    if array.ndim < (1 if name.endswith("]") else 2) or not array.size:
        raise ValueError(f"{name} have shape {array.shape}; (n, ...) is needed")
    return array


def _numbers(found: Any, name: str) -> Shaped[np.ndarray, ...]:
    """An array in float32 or int32. Raises ValueError for what neither holds."""
    array = np.asarray(found)
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
