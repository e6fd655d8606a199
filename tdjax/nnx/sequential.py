"""An NNX model's layers decomposed one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
from flax import nnx

from tdjax.arguments.called import Method
from tdjax.moments.feeding import Fed
from tdjax.nnx.graph import modules_of, place_of
from tdjax.nnx.model import own_arrays, with_chains
from tdjax.nnx.table import trace
from tdjax.params.bias import shifted
from tdjax.params.factorize import DenseLayer, with_factors
from tdjax.params.options import Options
from tdjax.params.sequential import TracedModel, sequential
from tdjax.plan.plan import Plan

M = TypeVar("M", bound=nnx.Module)


def factorize_sequentially(
    model: M,
    plan: Plan,
    batches: Iterable[Fed],
    options: Options,
    method: Method = None,
    blocks: str | Sequence[str] | None = None,
) -> M:
    """See `tdjax.factorize_sequentially`."""
    params = own_arrays(model, plan, bias=options.correct_bias)

    def leaves_of(layers: Mapping[str, DenseLayer]) -> list[Any]:
        copy = nnx.clone(model)
        found = modules_of(copy)
        for path, (array, shift) in layers.items():
            owner, name = place_of(plan[path].layer)
            getattr(found[owner], name)[...] = array
            if shift is not None:
                bias = found[path].bias
                bias[...] = shifted(bias[...], shift)
        return jax.tree.leaves(nnx.state(copy))

    traced = TracedModel(partial(trace, model, method=method), leaves_of, params)
    layers = sequential(traced, plan, batches, options, blocks)
    return with_chains(model, plan, with_factors(params, plan, layers))
