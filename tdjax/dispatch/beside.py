"""A factorised network beside the dense one that it is refined by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
from flax import nnx

import tdjax.nnx
from tdjax.arguments.called import Method
from tdjax.arguments.described import described
from tdjax.decompose.dealing import in_this_process
from tdjax.dispatch.balancing import check_modules
from tdjax.dispatch.models import kind_of, room_of, with_arrays
from tdjax.dispatch.storing import check_in_full
from tdjax.moments.feeding import Fed
from tdjax.params.check import check_params
from tdjax.params.corrections import unpacked
from tdjax.plan.plan import Plan
from tdjax.processes import everywhere
from tdjax.refinement.pair import Pair
from tdjax.trace.call import split_arrays


class Small(NamedTuple):
    """A factorised model, and its arrays beside it or None.

    Arguments:
        result: from what its network takes as variables to what was given, with other arrays.
    """

    model: Any
    variables: Any
    result: Callable[[Any], Any]


def small_network(model: Any, variables: Any, factors: Any, plan: Plan) -> Small:
    """The factorised model. Raises TypeError or ValueError for factors that do not fit it."""
    if not plan.factorised:
        raise ValueError("refine: the plan keeps all layers dense: there are no factors to refine")
    check_in_full("refine", plan)
    kind = kind_of(model)
    if kind.held is None:
        if not isinstance(factors, nnx.Module):
            raise TypeError(
                f"refine: factors is {described(factors)}: pass the model that "
                "tdjax.factorize(model, plan) returned"
            )
        check_modules(factors, plan)
        return Small(factors, None, partial(tdjax.nnx.with_leaves, factors))
    check_params(factors, plan)
    small = kind.room.factorize(model, plan)
    if kind.held == "params":
        _, static = split_arrays(factors)
        return Small(small, factors, static.join)
    if unpacked(factors, plan).variables is None:
        return Small(small, {**variables, "params": factors}, lambda found: found["params"])
    return Small(
        small, {**variables, **factors}, lambda found: {name: found[name] for name in factors}
    )


def pair_of(
    model: Any,
    variables: Any,
    small: Small,
    plan: Plan,
    method: Method,
    batches: Iterable[Fed] | None,
) -> Pair:
    """The two networks, in the terms of their adapter.

    Arguments:
        batches: by which batch statistics are estimated again; None to leave them.
    """
    room = room_of(model)
    dense, own = with_arrays(model, variables), with_arrays(small.model, small.variables)
    renewed = None
    if batches is not None:
        if not room.keeps_batch_stats(*own):
            raise ValueError('refine: the model has no batch statistics: pass batch_stats="frozen"')
        renewed = partial(_renewed, small, batches, method)
    return Pair(
        plan, room.network_of(*dense, method=method), room.network_of(*own, method=method),
        room.parameter_names(*own), room.module_paths(*dense), renewed,
    )  # fmt: skip


def _renewed(small: Small, batches: Iterable[Fed], method: Method, found: Any) -> Any:
    """What a network takes as variables, with batch statistics estimated again."""
    room = room_of(small.model)
    if small.variables is not None:
        return room.reestimate_batch_stats(small.model, found, batches, method=method)
    again = room.reestimate_batch_stats(small.result(found), batches, method=method)
    return room.network_of(again)[1]


def on_all_devices(pair: Pair) -> Pair:
    """Two networks whose arrays lie on the devices of all processes."""
    (dense, own), (small, factors), renewed = pair.dense, pair.small, pair.renewed

    def again(found: Any) -> Any:
        assert renewed is not None
        return everywhere(renewed(jax.tree.map(in_this_process, found)))

    return replace(
        pair,
        dense=(dense, everywhere(own)),
        small=(small, everywhere(factors)),
        renewed=None if renewed is None else again,
    )
