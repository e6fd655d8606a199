"""Pickles of CIFAR-10's Python version, read without running what they name."""

import io
import pickle
import pickletools
from typing import Any

import numpy as np
from jaxtyping import UInt8

_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")


class _PickledDtype:
    # Stands in for numpy.dtype: the published files hold unsigned bytes and nothing else.
    def __init__(self, code: Any, *_flags: Any) -> None:
        if code not in (b"u1", "u1"):
            raise pickle.UnpicklingError(f"it holds an array of dtype {code!r} in place of uint8")

    def __setstate__(self, state: Any) -> None:
        pass


class PickledArray:
    """Stands in for numpy.ndarray, whose state setter trusts the shape and dtype it is given."""

    array: UInt8[np.ndarray, "..."]

    def __setstate__(self, state: Any) -> None:
        """Take the array from what numpy pickles of one."""
        _version, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _PickledDtype) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("it holds an array that is no plain array of bytes")
        self.array = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_arguments: Any) -> PickledArray:
    return PickledArray()


def _encode(text: Any, encoding: Any) -> bytes:
    # How Python 3 writes bytes in the protocol of the published files.
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("it encodes text otherwise than as latin1")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): _PickledDtype,
    ("_codecs", "encode"): _encode,
}


def load_batch(content: bytes) -> Any:
    """What a pickle of lists, dicts, strings, numbers and uint8 arrays holds.

    Raises `pickle.UnpicklingError` for anything else that it names, and nearly any type of
    exception where it is damaged.
    """
    for opcode, argument, _ in pickletools.genops(content):
        # The unpickler makes room for all places before the one that is named.
        if opcode.name in _PUTS and int(argument or 0) > len(content):
            raise pickle.UnpicklingError(f"it puts an object at place {argument}")
    return BatchUnpickler(io.BytesIO(content), encoding="bytes").load()


class BatchUnpickler(pickle.Unpickler):
    """Loads lists, dicts, strings, numbers and uint8 arrays, the latter as `PickledArray`.

    Raises `pickle.UnpicklingError` for anything else that a pickle names.
    """

    def find_class(self, module: str, name: str, /) -> Any:
        """What stands in for the class or function; nothing is imported."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs")
        return _ALLOWED[module, name]
