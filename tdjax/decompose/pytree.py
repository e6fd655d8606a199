"""Dataclasses of arrays as pytrees, and how they are printed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, TypeVar

import jax

T = TypeVar("T")


def register(cls: type[T]) -> type[T]:
    """Make a dataclass of arrays a pytree, its fields children.

    Unlike `jax.tree_util.register_dataclass`, it does not call the constructor to rebuild one:
    JAX puts batched arrays, shapes and placeholders into trees, which no annotation foresees. A
    field with `metadata={"static": True}` is hashed with the structure instead.
    """
    static = tuple(f.name for f in fields(cls) if f.metadata.get("static"))  # type: ignore[arg-type]
    names = tuple(f.name for f in fields(cls) if f.name not in static)  # type: ignore[arg-type]

    def children(tree: T) -> tuple[list[tuple[jax.tree_util.GetAttrKey, Any]], tuple[Any, ...]]:
        leaves = [(jax.tree_util.GetAttrKey(name), getattr(tree, name)) for name in names]
        return leaves, tuple(getattr(tree, name) for name in static)

    def rebuild(constants: tuple[Any, ...], values: Iterable[Any]) -> T:
        tree = object.__new__(cls)
        for name, value in (*zip(names, values, strict=True), *zip(static, constants, strict=True)):
            object.__setattr__(tree, name, value)
        return tree

    jax.tree_util.register_pytree_with_keys(cls, children, rebuild)
    every = tuple(f.name for f in fields(cls))  # type: ignore[arg-type]
    cls.__repr__ = lambda tree: described(tree, every)  # type: ignore[method-assign]
    return cls


def described(tree: Any, names: Iterable[str]) -> str:
    """A class and its fields, arrays by dtype and shape: what they hold would fill pages."""
    own = (f"{name}={_brief(getattr(tree, name))}" for name in names)
    return f"{type(tree).__name__}({', '.join(own)})"


def _brief(value: Any) -> str:
    if isinstance(value, tuple | list):
        inside = ", ".join(map(_brief, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        return repr(value)
    if value.shape == () and _is_known(value):
        return f"{value.item():.6g}" if value.dtype.kind == "f" else str(value.item())
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"


def _is_known(array: Any) -> bool:
    """Whether this process can say what an array holds."""
    if isinstance(array, jax.core.Tracer):
        return False
    return bool(array.is_fully_addressable) if isinstance(array, jax.Array) else True
