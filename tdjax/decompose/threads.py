"""Layers side by side: a thread for each core, in which NumPy's linear algebra has one thread.

On small matrices the threads of one LAPACK call wait for each other longer than they compute, and
far longer where other programs run; calls for different layers wait for none.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax

Item = TypeVar("Item")
Found = TypeVar("Found")

# The names that builds of OpenBLAS give its functions, around what they do.
NAMES = tuple(
    (f"{front}openblas_", f"_num_threads{end}")
    for front in ("scipy_", "")
    for end in ("64_", "", "_64")
)


@contextmanager
def one_thread() -> Iterator[None]:
    """In which NumPy's linear algebra has one thread, as is best for small matrices."""
    with _held():
        yield


def side_by_side(
    function: Callable[[Item], Found],
    items: Sequence[Item],
    by_numpy: Callable[[Item], bool] = lambda _: True,
    size: Callable[[Item], int] = lambda _: 0,
) -> list[Found]:
    """[function(item) for item in items], of several items at once where that is faster.

    It is in turn where JAX is configured for this thread alone, as by `jax.enable_x64`, and where
    the threads of NumPy's linear algebra cannot be held.

    Arguments:
        by_numpy: of which items; programs of JAX have all cores to themselves, and are run in turn.
        size: of an item; the largest come first, lest one of them is left alone at the end.
    """
    places = [place for place, item in enumerate(items) if by_numpy(item)]
    places.sort(key=lambda place: -size(items[place]))
    workers = min(_cores(), len(places))
    if workers < 2 or not _libraries():
        return list(map(function, items))
    with ThreadPoolExecutor(workers) as pool:
        if pool.submit(configuration).result() != configuration():
            return list(map(function, items))
        with _held():
            some = pool.map(function, (items[place] for place in places))
            found = dict(zip(places, some, strict=True))
    return [found[place] if place in found else function(item) for place, item in enumerate(items)]


def _cores() -> int:
    """Those that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def configuration() -> tuple[Any, ...]:
    """How JAX is configured for the thread that asks."""
    names = [name for name in jax.config.values if name.startswith("jax_")]
    return (*(getattr(jax.config, name, None) for name in names), jax.sharding.get_abstract_mesh())


class _Library:
    """One OpenBLAS of this process: how many threads it has, and setting that."""

    def __init__(self, library: ctypes.CDLL, front: str, end: str) -> None:
        self.get: Callable[[], int] = getattr(library, f"{front}get{end}")
        self.set: Callable[[int], Any] = getattr(library, f"{front}set{end}")


@functools.cache
def _libraries() -> tuple[_Library, ...]:
    """Those that NumPy and SciPy compute with; none where they have other libraries."""
    # Its linear algebra is that of JAX's programs for CPUs, which load it when it is first needed.
    importlib.import_module("scipy.linalg")
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return ()
    found = []
    for path in dict.fromkeys(line.split(maxsplit=5)[-1] for line in lines if "openblas" in line):
        library = ctypes.CDLL(path)
        known = (pair for pair in NAMES if hasattr(library, f"{pair[0]}set{pair[1]}"))
        found += [_Library(library, *pair) for pair in known][:1]
    return tuple(found)


_lock = threading.Lock()
_before: list[int] = []
_holders = 0


@contextmanager
def _held() -> Iterator[None]:
    """Each of the libraries with one thread."""
    global _holders
    with _lock:
        if _holders == 0:
            _before[:] = [library.get() for library in _libraries()]
            for library in _libraries():
                library.set(1)
        _holders += 1
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if _holders == 0:
                for library, number in zip(_libraries(), _before, strict=True):
                    library.set(number)
