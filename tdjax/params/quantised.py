"""An array of integers and one of scales in the place of one of floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

ARRAYS = ("values", "scale")


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False)
class Quantised:
    """An array of float32 numbers as integers times scales.

    Its parts are arrays, or what JAX puts in their place.

    Arguments:
        values: (*front, T) int8; or (*front, ceil(T / 2)) uint8, two numbers of four bits to a
            byte, the first one in the lower half. In NNX models also bfloat16.
        scale: (*ones, T) float32; of a stack with its axis in front. None beside bfloat16.
    """

    values: Any
    scale: Any

    def tree_flatten_with_keys(self) -> tuple[Any, None]:
        """For JAX."""
        return [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in ARRAYS], None

    @classmethod
    def tree_unflatten(cls, _: None, arrays: Any) -> Quantised:
        """For JAX."""
        return cls(*arrays)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that it stands for."""
        if self.scale is None:
            return tuple(self.values.shape)
        return (*self.values.shape[:-1], self.scale.shape[-1])

    @property
    def ndim(self) -> int:
        """Number of axes of that array."""
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """Numbers of that array."""
        return jnp.dtype(jnp.float32)

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return sum(int(leaf.nbytes) for leaf in jax.tree.leaves(self))

    def to_array(self) -> Float[Array, "*_"]:
        """The array that it stands for."""
        if self.scale is None:
            return jnp.asarray(self.values).astype(jnp.float32)
        return integers(self).astype(jnp.float32) * self.scale

    def __jax_array__(self) -> Float[Array, "*_"]:
        """That array, as functions of JAX ask for it."""
        return self.to_array()

    def __getitem__(self, index: Any) -> Float[Array, "*_"]:
        """A part of that array, as a variable of NNX asks for it."""
        return self.to_array()[index]


def integers(stored: Quantised) -> Integer[Array, "*_"]:
    """The integers themselves, one to a byte, (*front, T) int8."""
    values, last = jnp.asarray(stored.values), stored.scale.shape[-1]
    if values.dtype != jnp.uint8:
        return values
    halves = jnp.stack([values & 15, values >> 4], axis=-1).astype(jnp.int8)
    whole = halves.reshape(*values.shape[:-1], -1)[..., :last]
    return whole - 16 * (whole > 7).astype(jnp.int8)


def array_of(leaf: Any) -> Any:
    """The array that a leaf stands for; other leaves as they are."""
    return leaf.to_array() if isinstance(leaf, Quantised) else leaf


def is_quantised(leaf: Any) -> bool:
    """Whether a leaf is stored as integers."""
    return isinstance(leaf, Quantised)
