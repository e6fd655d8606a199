"""Moments on disk: one npz file, to be used again, on another network's data or another day."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from tdjax.files import replacing
from tdjax.moments.collect import LayerMoments

NAMES = tuple(field.name for field in fields(LayerMoments))


def save_moments(path: str | Path, moments: Mapping[str, LayerMoments]) -> None:
    """Write moments as one npz file, atomically: a kill leaves the old file or the new one.

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
    with replacing(Path(path)) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_moments(path: str | Path) -> dict[str, LayerMoments]:
    """Read what `save_moments` wrote.

    Raises ValueError that names the file where it is damaged or something else, FileNotFoundError
    where it is missing.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            for key in file.files:
                layer, _, name = key.rpartition(":")
                found.setdefault(layer, {})[name] = file[key]
    except (zipfile.BadZipFile, ValueError, EOFError, AttributeError) as error:
        raise ValueError(f"{path} is not a file of moments, or it is damaged: {error}") from error
    for layer, arrays in found.items():
        unknown = sorted(arrays.keys() - set(NAMES))
        lacking = sorted({"rows", "examples"} - arrays.keys())
        if unknown or lacking:
            what = f"holds {', '.join(unknown)}" if unknown else f"lacks {', '.join(lacking)}"
            raise ValueError(f"{path} is not a file of moments: layer {layer!r} {what}")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError(f"{path}: layer {layer!r} holds NaN or Inf")
    return {
        layer: LayerMoments(
            **{name: jnp.asarray(arrays[name]) if name in arrays else None for name in NAMES}  # type: ignore[arg-type]
        )
        for layer, arrays in found.items()
    }
