"""What modules return mixed with what others return in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool


class Replacement(NamedTuple):
    """Outputs for some examples of a batch, in place of those that modules make themselves.

    Arguments:
        rows: (batch,), of these examples.
        outputs: by the path of a module, call by call.
    """

    rows: Bool[Array, " b"]
    outputs: Mapping[str, Sequence[Any]]


def mixed(own: Any, other: Any, rows: Bool[Array, " b"]) -> Any:
    """Outputs with those of other origin for some examples, in all arrays that begin with these."""

    def chosen(own: Any, other: Any) -> Any:
        if getattr(own, "shape", ())[:1] != rows.shape:
            return own
        return jnp.where(rows.reshape(-1, *(1,) * (own.ndim - 1)), other.astype(own.dtype), own)

    return jax.tree.map(chosen, own, other)
