"""A Linen model's layers decomposed one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from tdjax.arguments.called import Method
from tdjax.linen.table import plain, trace
from tdjax.moments.feeding import Fed
from tdjax.params.factorize import DenseLayer, with_dense, with_factors
from tdjax.params.options import Options
from tdjax.params.sequential import TracedModel, sequential
from tdjax.plan.plan import Plan


def factorize_sequentially(
    model: nn.Module,
    variables: Mapping[str, Any],
    plan: Plan,
    batches: Iterable[Fed],
    options: Options,
    method: Method = None,
    blocks: str | Sequence[str] | None = None,
) -> dict[str, Any]:
    """See `tdjax.factorize_sequentially`."""
    whole = {**plain(variables)}
    params = whole["params"]

    def leaves_of(layers: Mapping[str, DenseLayer]) -> list[Any]:
        return jax.tree.leaves({**whole, "params": with_dense(params, plan, layers)})

    traced = TracedModel(partial(trace, model, variables, method=method), leaves_of, params)
    layers = sequential(traced, plan, batches, options, blocks)
    return with_factors(variables["params"], plan, layers)
