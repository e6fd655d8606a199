"""How much memory moments take, known from shapes before any work."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from tdjax.moments.rows import Rows
from tdjax.moments.sums import summed_calls
from tdjax.trace.trace import Trace

# Of many layers that are too large, the largest say enough.
SHOWN = 3


class Size(NamedTuple):
    """Bytes of one layer.

    Arguments:
        sums: of a batch, in the parts that batches are added in.
        moments: of what is made of them.
    """

    sums: int
    moments: int


def sizes_of(trace: Trace, layers: Sequence[str], *, gradients: bool) -> dict[str, Size]:
    """The sizes of some layers' moments, by path.

    Arguments:
        gradients: whether those of the gradient are summed too.
    """
    found = dict.fromkeys(layers, Size(0, 0))
    for number, call in summed_calls(trace, set(layers)).items():
        made = trace.calls[number]
        assert made.call is not None
        ends = [_size(call.rows, made.call.inputs)]
        if gradients and call.outputs is not None:
            ends.append(_size(call.outputs, made.call.output))
        before, copies = found[call.path], made.layer.copies
        found[call.path] = Size(
            before.sums + copies * sum(end.sums for end in ends),
            # Those of several calls are added.
            max(before.moments, copies * sum(end.moments for end in ends)),
        )
    return found


def check_sizes(function: str, sizes: Mapping[str, Size], memory: int) -> None:
    """Refuse moments that cannot be held, with a ValueError that names the layers.

    A layer's own have to fit `memory`, those of all together the machine.
    """
    largest = sorted(sizes, key=lambda path: -sizes[path].moments)
    total, limit = sum(size.moments for size in sizes.values()), _limit()
    if sizes[largest[0]].moments <= memory and (limit is None or total <= limit):
        return
    named = ", ".join(f"{path!r} {_text(sizes[path].moments)}" for path in largest[:SHOWN])
    there = f"memory= allows {_text(memory)} for one layer"
    machine = "" if limit is None else f", the machine has {_text(limit)} for all"
    raise ValueError(
        f"{function}: the moments would take {_text(total)}, most of it {named}; {there}{machine}: "
        "leave the largest out with paths=, raise memory= if there is room, or put a pool or a "
        "narrower layer in front of a layer with so many inputs"
    )


def passes_within(sizes: Mapping[str, Size], memory: int) -> list[set[str]]:
    """Layers whose sums are held at once, so that they stay within `memory` bytes."""
    passes: list[set[str]] = []
    left = 0
    for path, (size, _) in sizes.items():
        # Twice: those of a batch, and those so far.
        if not passes or left < 2 * size:
            passes.append(set())
            left = memory
        passes[-1].add(path)
        left -= 2 * size
    return passes


def _size(rows: Rows, x: Any) -> Size:
    sums = jax.eval_shape(rows.sums, x)
    return Size(_bytes(sums), _bytes(jax.eval_shape(rows.assembled, sums[0])))


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _limit() -> int | None:
    """Memory of the device that the sums are made on, as far as it is known."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
        known = hasattr(os, "sysconf") and all(name in os.sysconf_names for name in names)
        return os.sysconf(names[0]) * os.sysconf(names[1]) if known else None
    return (device.memory_stats() or {}).get("bytes_limit")


def _text(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**28 else f"{size:,} bytes"
