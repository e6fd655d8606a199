"""Modules that hold an array of a chain, or compute with one that is made elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array


class FactorArray(nn.Module):
    """One array of a chain that is no thin layer."""

    shape: tuple[int, ...]
    kernel_init: Callable[..., Any]
    param_dtype: Any

    @nn.compact
    def __call__(self) -> Array:
        """The array."""
        return jnp.asarray(self.param("kernel", self.kernel_init, self.shape, self.param_dtype))


class _Given(nn.Module):
    """A layer with a kernel that is made elsewhere, or another layer's.

    Attributes:
        kernel: in place of the parameter.
    """

    kernel: Any = None

    @nn.nowrap
    def param(self, name: str, init_fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As `nn.Module.param`, but for the kernel."""
        return self.kernel if name == "kernel" else super().param(name, init_fn, *args, **kwargs)


class GivenConv(_Given, nn.Conv):
    """`nn.Conv` with such a kernel."""


class GivenDense(_Given, nn.Dense):
    """`nn.Dense` with such a kernel."""
