"""How the numbers of a layer are stored: in full, in half precision, or as integers with scales.

Integers have one float32 scale for each entry of an array's last axis, the outputs of a kernel;
those of four bits lie two to a byte along that axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tdjax.hints import known_are
from tdjax.plan.layers import Layer

FLOAT32, BFLOAT16, INT8, INT4 = "float32", "bfloat16", "int8", "int4"
DTYPES = (FLOAT32, BFLOAT16, INT8, INT4)
# The greatest number of each kind of integers; they are symmetric.
LARGEST = {INT8: 127, INT4: 7}
FLOAT_BYTES = 4


def stored_bytes(shape: Sequence[Any], dtype: str | None) -> Any:
    """Bytes of an array of float32 numbers that is stored as `dtype`, its scales included.

    Arguments:
        shape: sizes of its axes; arrays of them for many shapes at once.
        dtype: of `DTYPES`; None for the first.
    """
    *front, last = shape
    rows = math.prod(front)
    if dtype == INT8:
        return rows * last + FLOAT_BYTES * last
    if dtype == INT4:
        return rows * ((last + 1) // 2) + FLOAT_BYTES * last
    return (2 if dtype == BFLOAT16 else FLOAT_BYTES) * rows * last


def check_dtype(dtype: str) -> None:
    """Raise ValueError for a name that is none of `DTYPES`."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: {known_are(dtype, DTYPES)}")


def mixed_problem(dtypes: Mapping[str, str | None]) -> str | None:
    """Why layers that go together cannot be stored as they are planned; None where they can.

    Arguments:
        dtypes: by path.
    """
    (path, first), *others = dtypes.items()
    for other, dtype in others:
        if dtype != first:
            one, two = (f"as {own or 'it is'}" for own in (first, dtype))
            return (
                f"{path!r} is stored {one} and {other!r} {two}: layers that share an input factor, "
                "or are a pair, are stored in the same numbers"
            )
    return None


def dtype_problem(layer: Layer, dtype: str, *, dense: bool, nonzeros: int = 0) -> str | None:
    """Why a layer cannot be stored so; None where it can.

    Arguments:
        dense: whether it is kept dense.
        nonzeros: of its sparse correction.
    """
    try:
        check_dtype(dtype)
    except ValueError as error:
        return str(error)
    if layer.obstacle is not None:
        return layer.obstacle
    if nonzeros:
        return "sparse corrections are stored as they are"
    if dense and layer.is_own:
        return f"{layer.kind}s that are kept dense are stored as they are"
    if dtype in LARGEST and layer.storage.stack not in (None, 0):
        return f"layers that are stacked along axis {layer.storage.stack} are not stored as {dtype}"
    return None
