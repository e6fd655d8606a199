"""A function's layers decomposed one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from tdjax.functions.program import Apply
from tdjax.functions.table import trace
from tdjax.moments.feeding import Fed
from tdjax.params.factorize import DenseLayer, with_dense, with_factors
from tdjax.params.leaves import leaf_tree
from tdjax.params.options import Options
from tdjax.params.sequential import TracedModel, sequential
from tdjax.plan.plan import Plan
from tdjax.trace.call import split_arrays


def factorize_sequentially(
    apply: Apply,
    params: Any,
    plan: Plan,
    batches: Iterable[Fed],
    options: Options,
    method: None = None,
    blocks: str | Sequence[str] | None = None,
) -> Any:
    """See `tdjax.factorize_sequentially`."""
    tree = leaf_tree(params)
    mapping = tree.mapping

    def leaves_of(layers: Mapping[str, DenseLayer]) -> list[Any]:
        return split_arrays(tree.filled(with_dense(mapping, plan, layers), plan))[0]

    traced = TracedModel(partial(trace, apply, params), leaves_of, mapping)
    layers = sequential(traced, plan, batches, options, blocks)
    return tree.filled(with_factors(mapping, plan, layers), plan)
