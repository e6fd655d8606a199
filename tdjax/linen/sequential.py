"""A Linen model's layers decomposed one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from tdjax.linen.table import plain, trace
from tdjax.moments.collect import LayerMoments
from tdjax.params.bias import can_correct
from tdjax.params.factorize import Dense, check_kernels, layer_params, with_dense, with_steps
from tdjax.params.partitioning import unboxed
from tdjax.params.sequential import Model, sequential
from tdjax.params.weighing import output_weights
from tdjax.plan.plan import Plan


def factorize_sequentially(
    model: nn.Module,
    variables: Mapping[str, Any],
    plan: Plan,
    batches: Iterable[Any],
    *,
    moments: Mapping[str, LayerMoments] | None = None,
    correct_bias: bool = False,
    key: Array | None = None,
    **options: Any,
) -> dict[str, Any]:
    """See `tdjax.factorize_sequentially`."""
    params = plain(variables["params"])
    check_kernels(params, plan, key)
    own = {entry.layer.path: layer_params(params, entry.layer.path) for entry in plan.factorised}
    arrays = {
        entry.layer.path: jnp.asarray(unboxed(own[entry.layer.path][entry.layer.storage.name]))
        for entry in plan.factorised
    }
    others = {**plain(variables)}

    def leaves_of(layers: Mapping[str, Dense]) -> list[Any]:
        return jax.tree.leaves({**others, "params": with_dense(params, plan, layers)})

    steps = sequential(
        Model(partial(trace, model, variables), leaves_of, arrays),
        plan,
        batches,
        outputs=output_weights(plan, moments),
        corrected={
            entry.layer.path: correct_bias and can_correct(entry, own[entry.layer.path])
            for entry in plan.factorised
        },
        key=key,
        options=options,
    )
    return with_steps(variables["params"], plan, steps)
