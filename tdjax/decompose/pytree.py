"""Dataclasses of arrays as pytrees."""

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
    return cls
