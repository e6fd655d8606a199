"""Layers of a model that read the same input, and may share a factor of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import flax.linen as nn
from flax import nnx

from tdjax.allocation.choices import TIME
from tdjax.allocation.limits import LATENCY
from tdjax.arguments.called import Method
from tdjax.dispatch.models import on_models, room_of, with_arrays
from tdjax.plan.layers import Inventory
from tdjax.timings.timings import Timings

Variables = Mapping[str, Any]
Groups = tuple[tuple[str, ...], ...]
# Groups of paths of layers, or the name of those that the model's program tells.
SAME_INPUTS = "inputs"
Shared = Sequence[Sequence[str]] | str


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


def groups_of(
    function: str,
    inventory: Inventory,
    shared: Shared | None,
    costs: Sequence[str],
    timings: Timings | None,
) -> Sequence[Sequence[str]] | None:
    """The groups of layers that may share an input factor; None where none are asked for.

    Arguments:
        function: for messages.
        costs: what a budget is of.

    Raises ValueError for another name, and where time counts, before it is taken.
    """
    if shared is None:
        return None
    refuse_time(function, "layers that share an input factor", "shared", costs, timings)
    if not isinstance(shared, str):
        return shared
    if shared != SAME_INPUTS:
        raise ValueError(
            f"{function}: shared {shared!r}: pass groups of paths, or {SAME_INPUTS!r} for those of "
            "the layers that read the same input"
        )
    return inventory.same_inputs


def refuse_time(
    function: str, what: str, argument: str, costs: Sequence[str], timings: Timings | None
) -> None:
    """Raise ValueError where time counts, before it is taken: that of these layers is not known.

    Arguments:
        what, argument: for messages, the layers, and the argument that asks for them.
        costs: what a budget is of.
    """
    if timings is not None or not {TIME, LATENCY}.isdisjoint(costs):
        raise ValueError(
            f"{function}: the time of {what} is not known: leave out timings and a budget of time, "
            f"or {argument}"
        )
