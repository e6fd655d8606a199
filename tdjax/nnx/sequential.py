"""An NNX model's layers decomposed one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

import jax
from flax import nnx
from jaxtyping import Array

from tdjax.moments.collect import LayerMoments
from tdjax.nnx.graph import array_of, modules_of
from tdjax.nnx.model import own_arrays, with_factors
from tdjax.nnx.table import trace
from tdjax.params.bias import can_correct, shifted
from tdjax.params.factorize import Dense, check_kernels, layer_params, with_steps
from tdjax.params.sequential import Model, sequential
from tdjax.params.weighing import output_weights
from tdjax.plan.plan import Plan

M = TypeVar("M", bound=nnx.Module)


def factorize_sequentially(
    model: M,
    plan: Plan,
    batches: Iterable[Any],
    *,
    moments: Mapping[str, LayerMoments] | None = None,
    correct_bias: bool = False,
    key: Array | None = None,
    **options: Any,
) -> M:
    """See `tdjax.factorize_sequentially`."""
    params = own_arrays(model, plan, bias=correct_bias)
    check_kernels(params, plan, key)
    modules = modules_of(model)
    arrays = {
        entry.layer.path: array_of(getattr(modules[entry.layer.path], entry.layer.storage.name))
        for entry in plan.factorised
    }

    def leaves_of(layers: Mapping[str, Dense]) -> list[Any]:
        copy = nnx.clone(model)
        found = modules_of(copy)
        for path, (array, shift) in layers.items():
            getattr(found[path], plan[path].layer.storage.name)[...] = array
            if shift is not None:
                bias = found[path].bias
                bias[...] = shifted(bias[...], shift)
        return jax.tree.leaves(nnx.state(copy))

    steps = sequential(
        Model(partial(trace, model), leaves_of, arrays),
        plan,
        batches,
        outputs=output_weights(plan, moments),
        corrected={
            entry.layer.path: correct_bias
            and can_correct(entry, layer_params(params, entry.layer.path))
            for entry in plan.factorised
        },
        key=key,
        options=options,
    )
    return with_factors(model, plan, with_steps(params, plan, steps))
