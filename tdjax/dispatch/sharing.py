"""Layers of a model that read the same input, and may share a factor of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

import flax.linen as nn
from flax import nnx

from tdjax.arguments.called import Method
from tdjax.dispatch.models import on_models, room_of, with_arrays

Variables = Mapping[str, Any]
Groups = tuple[tuple[str, ...], ...]


@overload
def shared_inputs(
    model: nn.Module, variables: Variables, sample: Any, *, method: Method = ...
) -> Groups: ...


@overload
def shared_inputs(model: nnx.Module, sample: Any, *, method: Method = ...) -> Groups: ...


@on_models
def shared_inputs(model: Any, variables: Any, sample: Any, *, method: Method = None) -> Groups:
    """Paths of the layers that read the same input, two or more together.

    Such are query, key and value of an attention, gate and up of an MLP: matrices that may share
    one input factor, see `Plan.with_shared` and `tdjax.allocate`. Told by the traced program: their
    inputs are one and the same value in every call. `shared_inputs(model, variables, sample)` for
    Linen, `shared_inputs(model, sample)` for NNX.

        >>> import jax.numpy as jnp, tdjax
        >>> from flax import nnx
        >>> model = nnx.MultiHeadAttention(2, 16, rngs=nnx.Rngs(0), decode=False)
        >>> tdjax.shared_inputs(model, jnp.ones((1, 4, 16)))
        (('query', 'key', 'value'),)

    Arguments and errors as `tdjax.make_plan`.
    """
    found: Groups = (
        room_of(model).inventory(*with_arrays(model, variables), sample, method=method).same_inputs
    )
    return found
