"""Layers of a model between which fewer numbers may pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import flax.linen as nn
from flax import nnx

from tdjax.arguments.called import Method
from tdjax.dispatch.models import on_models, room_of, with_arrays
from tdjax.dispatch.sharing import refuse_time
from tdjax.plan.layers import Inventory
from tdjax.plan.pair import Pair, check_pairs
from tdjax.timings.timings import Timings

Variables = Mapping[str, Any]
# Pairs, or the name of those that the model's program tells.
FOUND = "found"
Pairs = Sequence[Pair] | str


@overload
def paired_layers(
    model: nn.Module, variables: Variables, sample: Any, *, method: Method = ...
) -> tuple[Pair, ...]: ...


@overload
def paired_layers(model: nnx.Module, sample: Any, *, method: Method = ...) -> tuple[Pair, ...]: ...


@on_models
def paired_layers(
    model: Any, variables: Any, sample: Any, *, method: Method = None
) -> tuple[Pair, ...]:
    """The layers of a model between which fewer numbers may pass.

    Such are up (and gate) and down of an MLP, of whose hidden units some are kept, and value and
    output of an attention, of whose heads each may hand on fewer numbers, and its query and key,
    whose scores may be made of fewer: see `Plan.with_pairs` and `tdjax.allocate`. Told by the
    traced program, by what happens to a layer's outputs until another reads them, and that no third
    one does. `paired_layers(model, variables, sample)` for Linen, `paired_layers(model, sample)`
    for NNX.

        >>> import jax.numpy as jnp, tdjax
        >>> from flax import nnx
        >>> model = nnx.MultiHeadAttention(2, 16, rngs=nnx.Rngs(0), decode=False)
        >>> print(*tdjax.paired_layers(model, jnp.ones((1, 4, 16))), sep=", ")
        query * key, value -> out

    Where several heads of queries share one of keys and values, one after the other, pairs have
    `repeats`. Not found are layers between which a parameter of each unit lies, as of a
    normalisation, or a cache of decoding, or dropout at work, and queries and keys with positions
    turned into them.

    Arguments and errors as `tdjax.make_plan`.
    """
    found: tuple[Pair, ...] = (
        room_of(model).inventory(*with_arrays(model, variables), sample, method=method).pairs()
    )
    return found


def pairs_asked(
    function: str,
    inventory: Inventory,
    pairs: Pairs | None,
    costs: Sequence[str],
    timings: Timings | None,
) -> Sequence[Pair] | None:
    """The pairs that a budget may choose; None where none are asked for.

    Arguments:
        function: for messages.
        costs: what a budget is of.

    Raises ValueError for another name, and where time counts, before it is taken.
    """
    if pairs is None:
        return None
    refuse_time(function, "pairs of layers", "pairs", costs, timings)
    if not isinstance(pairs, str):
        check_pairs(pairs)
        every = inventory.pairs()
        for pair in pairs:
            if pair not in every:
                raise ValueError(
                    f"{function}: pairs: the model's program does not say that {pair} is a pair; "
                    f"it says so of {', '.join(map(str, every)) or 'none'}"
                )
        return pairs
    if pairs != FOUND:
        raise ValueError(
            f"{function}: pairs {pairs!r}: pass tdjax.Pair objects, or {FOUND!r} for those that "
            "tdjax.paired_layers finds"
        )
    return inventory.pairs()
