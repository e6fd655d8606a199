"""Text that every machine has, as bytes: the modules of Python's own library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from benchmarks.sentences.text import split_modules

Bytes = UInt8[np.ndarray, " n"]
Ids = Int[np.ndarray, "b t"]


class Texts(NamedTuple):
    """ASCII text, and other, from other modules, to judge by."""

    seen: Bytes
    held_out: Bytes


def read_texts(seed: int, library: str | Path | None = None) -> Texts:
    """All modules of a library, None for Python's own, a fifth of them held out by a seed."""
    modules = split_modules(np.random.default_rng(seed), library)
    found = (b"".join(_ascii(file) for file in files) for files in modules)
    return Texts(*(np.frombuffer(text, np.uint8) for text in found))


def windows(text: Bytes, length: int, starts: Int[np.ndarray, " b"]) -> tuple[Ids, Ids]:
    """Pieces of a text (b, length), and the same moved by one byte: what comes after each."""
    rows = text[starts[:, None] + np.arange(length + 1)].astype(np.int32)
    return rows[:, :-1], rows[:, 1:]


def drawn_windows(text: Bytes, length: int, number: int, seed: int) -> tuple[Ids, Ids]:
    """Pieces at random that do not overlap. Raises ValueError where the text is too short."""
    places = (len(text) - 1) // length
    if places < number:
        raise ValueError(f"{len(text)} bytes; {number} pieces of {length} are asked for")
    chosen = np.random.default_rng(seed).permutation(places)[:number]
    return windows(text, length, length * chosen)


def batches(
    text: Bytes, length: int, number: int, size: int, seed: int
) -> Iterator[tuple[Ids, Ids]]:
    """So many batches of so many pieces at random, for training."""
    drawn = np.random.default_rng(seed)
    for _ in range(number):
        yield windows(text, length, drawn.integers(0, len(text) - length, size))


def _ascii(path: Path) -> bytes:
    return path.read_bytes().decode("ascii", "ignore").encode()
