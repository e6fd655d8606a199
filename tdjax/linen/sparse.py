"""Linen layers whose kernel is sparse: its nonzeros are parameters, their places are not.

Flax's own layers do the arithmetic, on the kernel with the nonzeros in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tdjax.decompose.sparse import scattered
from tdjax.params.arrays import INDICES, VALUES
from tdjax.params.corrections import COLLECTION
from tdjax.params.tree import join_path


class Sparse(nn.Module):
    """What all of them share: where a layer asks for its kernel, it gets one made of nonzeros.

    Attributes:
        nonzeros: their number.
    """

    nonzeros: int = 0

    @nn.nowrap
    def param(self, name: str, init_fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As `nn.Module.param`; of a kernel the values alone are parameters."""
        if name != "kernel":
            return super().param(name, init_fn, *args, **kwargs)
        shape, dtype = args
        size = math.prod(shape)
        values = super().param(VALUES, nn.initializers.zeros, (self.nonzeros,), dtype)
        if not self.has_variable(COLLECTION, INDICES) and not (
            self.is_initializing() and self.is_mutable_collection(COLLECTION)
        ):
            raise ValueError(
                f"layer {join_path(*self.path[:-1])!r} has a sparse correction, but the collection "
                f"{COLLECTION!r} has no indices for it: apply the model to all variables that "
                "factorize_params gave, and let every nn.scan, nn.vmap or nn.RNN around the layer "
                f"carry {COLLECTION!r} as it does 'params'"
            )
        # Until there is a kernel to choose them from, spread evenly.
        places = (np.arange(self.nonzeros) * size // self.nonzeros).astype(np.int32)
        indices = self.variable(COLLECTION, INDICES, lambda: jnp.asarray(places)).value
        # Of NumPy where they come from a file.
        return scattered(jnp.asarray(values), jnp.asarray(indices), shape)


class SparseTable(Sparse):
    """A sparse array by itself.

    Attributes:
        shape, param_dtype: of the array.
    """

    shape: tuple[int, ...] = ()
    param_dtype: Any = None

    @nn.compact
    def __call__(self) -> Array:
        """The array."""
        return self.param("kernel", nn.initializers.zeros, self.shape, self.param_dtype)


def _sparse(cls: type) -> Any:
    """A subclass of one of Flax's layers that differs in its kernel alone."""
    about = {"__module__": __name__, "__doc__": f"`nn.{cls.__name__}` with a sparse kernel."}
    return type(f"Sparse{cls.__name__}", (Sparse, cls), about)


SparseConv, SparseDense = _sparse(nn.Conv), _sparse(nn.Dense)
