"""Moments on disk: one npz file, to be used again, on another network's data or another day."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tdjax.decompose.second_moment import SLACK
from tdjax.files import array_digest, one_line, opened_npz, replacing
from tdjax.moments.collect import INDEPENDENT, KRONECKER, LayerMoments

# The fields that are arrays; the others are words.
NAMES = tuple(own.name for own in fields(LayerMoments) if not own.metadata.get("static"))
COUNTS = ("rows", "examples")
# The entry with the SHA-256 of all others; that of an array has a colon in its name.
DIGEST = "sha256"
# The entry with the number of the format. What has no such entry is of the first, which had neither
# it nor words.
FORMAT, NEWEST = "format", 2
WORD = "kronecker"


def save_moments(path: str | Path, moments: Mapping[str, LayerMoments]) -> None:
    """Write moments as one npz file, atomically: a kill leaves the old file or the new one.

    Beside the arrays stands their SHA-256, by which `load_moments` knows them again.

    >>> import jax, tempfile, tdjax
    >>> from flax import nnx
    >>> x = jax.random.normal(jax.random.key(0), (64, 4))
    >>> moments = tdjax.collect_moments(nnx.Linear(4, 2, rngs=nnx.Rngs(0)), [x])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tdjax.save_moments(f"{folder}/moments.npz", moments)
    ...     again = tdjax.load_moments(f"{folder}/moments.npz")
    >>> bool((again[""].inputs == moments[""].inputs).all())
    True

    Arguments:
        path: of the file.
        moments: from `tdjax.collect_moments`.
    """
    arrays = {
        f"{layer}:{name}": np.asarray(getattr(found, name))
        for layer, found in moments.items()
        for name in NAMES
        if getattr(found, name) is not None
    }
    arrays |= {f"{layer}:{WORD}": _bytes(found.kronecker) for layer, found in moments.items()}
    arrays[FORMAT] = np.array(NEWEST)
    with replacing(Path(path)) as file:
        np.savez(file, **{DIGEST: _digest(arrays), **arrays})  # type: ignore[arg-type]


def load_moments(path: str | Path) -> dict[str, LayerMoments]:
    """Read what `save_moments` wrote.

    >>> import jax, tempfile, tdjax
    >>> from flax import nnx
    >>> x = jax.random.normal(jax.random.key(0), (64, 4))
    >>> moments = tdjax.collect_moments(nnx.Linear(4, 2, rngs=nnx.Rngs(0)), [x])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tdjax.save_moments(f"{folder}/moments.npz", moments)
    ...     again = tdjax.load_moments(f"{folder}/moments.npz")
    >>> bool((again[""].inputs == moments[""].inputs).all())
    True

    Raises ValueError that names the file where it is damaged or something else, FileNotFoundError
    where it is missing. What an earlier version wrote has no digest: it is read with a warning.
    """
    try:
        arrays = _arrays(path)
    except FileNotFoundError:
        raise
    # Damaged archives fail in the reader with nearly any type of exception.
    except Exception as error:
        raise ValueError(
            f"{path} is not a file of moments, or it is damaged: {one_line(error)}"
        ) from error
    digest = arrays.pop(DIGEST, None)
    try:
        own_digest = _digest(arrays)
        words = _words(arrays)
        found = _checked(arrays)
        if digest is not None and not np.array_equal(digest, own_digest):
            raise ValueError(
                "its arrays are not those that were saved; remove it, and collect anew"
            )
    except ValueError as error:
        raise ValueError(f"{path} is not a file of moments: {error}") from error
    if digest is None:
        warnings.warn(
            f"{path} was written without a digest, so not all damage to it can be seen; "
            "collect the moments again, or save them anew",
            stacklevel=2,
        )
    return {
        layer: LayerMoments(
            **{name: jnp.asarray(own[name]) if name in own else None for name in NAMES},  # type: ignore[arg-type]
            kronecker=words.get(layer, INDEPENDENT),
        )
        for layer, own in found.items()
    }


def _arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file, which hold no more than its size: they are written as they are."""
    with opened_npz(path) as members:
        if sum(member.size for member in members.values()) > Path(path).stat().st_size:
            raise ValueError("it would be unpacked to more than its size")
        return {name: member.read() for name, member in members.items()}


def _digest(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """SHA-256 of the names and digests of arrays, as bytes."""
    text = "\n".join(f"{name} {array_digest(array)}" for name, array in arrays.items())
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)


def _bytes(word: str) -> np.ndarray:
    return np.frombuffer(word.encode(), np.uint8)


def _words(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """By layer how its moments are taken together; what is no array of one is taken out.

    Raises ValueError for a format of a later version, and for an unknown word.
    """
    number = arrays.pop(FORMAT, np.array(1))
    if number.shape or not np.issubdtype(number.dtype, np.integer):
        raise ValueError(f"its {FORMAT} is no number")
    if number > NEWEST:
        raise ValueError(
            f"it has format {number}, and this version of tdjax reads up to {NEWEST}: update tdjax"
        )
    known = {str(_bytes(word).tolist()): word for word in KRONECKER}
    found = {}
    for key in [key for key in arrays if key.endswith(f":{WORD}")]:
        layer, _, _ = key.rpartition(":")
        word = known.get(str(arrays.pop(key).tolist()))
        if word is None:
            raise ValueError(f"layer {layer!r}: {WORD} is none of {', '.join(KRONECKER)}")
        found[layer] = word
    return found


def _checked(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The arrays by layer and name, known to be moments."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        layer, _, name = key.rpartition(":")
        found.setdefault(layer, {})[name] = array
    for layer, own in found.items():
        unknown = sorted(own.keys() - set(NAMES))
        lacking = sorted(set(COUNTS) - own.keys())
        if unknown or lacking:
            what = f"holds {', '.join(unknown)}" if unknown else f"lacks {', '.join(lacking)}"
            raise ValueError(f"layer {layer!r} {what}")
        problem = _problem(own)
        if problem is not None:
            raise ValueError(f"layer {layer!r}: {problem}")
    return found


def _problem(own: Mapping[str, np.ndarray]) -> str | None:
    """Why the arrays of a layer cannot be its moments; None where they can."""
    for name, array in own.items():
        # JAX has no long doubles, and no bytes in another order.
        native = array.dtype.newbyteorder("=") == array.dtype and array.dtype.itemsize <= 8
        if not (jnp.issubdtype(array.dtype, jnp.floating) and native):
            return f"{name} has dtype {array.dtype}"
        with np.errstate(over="ignore"):
            read = array.astype(jax.dtypes.canonicalize_dtype(array.dtype))
        if not np.isfinite(read).all():
            beyond = f" beyond {read.dtype}" if np.isfinite(array).all() else ""
            return f"{name} holds {'numbers' if beyond else 'NaN or Inf'}{beyond}"
        if name in COUNTS and (array.shape or array < 0):
            return f"{name} is no count"
    inputs, mean, outputs = (own.get(name) for name in ("inputs", "mean", "outputs"))
    if (inputs is None) != (mean is None) or (inputs is None and outputs is None):
        return "inputs or mean is missing"
    if inputs is not None and mean is not None:
        # Of rows that are looked up, the diagonal.
        if mean.ndim < 2 or inputs.shape not in (mean.shape, (*mean.shape, mean.shape[-1])):
            return f"inputs of shape {inputs.shape} do not belong to a mean of {mean.shape}"
        full = inputs.shape != mean.shape
        if not _is_moment(inputs, full):
            return "inputs is no second moment"
    if outputs is not None:
        if outputs.ndim < 3 or outputs.shape[-1] != outputs.shape[-2]:
            return f"outputs has shape {outputs.shape}"
        if not _is_moment(outputs, True):
            return "outputs is no second moment"
    return None


def _is_moment(moment: np.ndarray, full: bool) -> bool:
    """Whether an array is symmetric and has no negative diagonal, up to rounding."""
    slack = SLACK * abs(moment).max(initial=0)
    if not full:
        return bool((moment >= -slack).all())
    diagonal = np.diagonal(moment, axis1=-2, axis2=-1)
    return bool(
        (diagonal >= -slack).all() and (abs(moment - moment.swapaxes(-1, -2)) <= slack).all()
    )
