"""Tensor decomposition of trained Flax networks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tdjax.arguments.models import find_kinds_by
from tdjax.compilation import enable_compilation_cache
from tdjax.compute.convolve import xla_ways
from tdjax.decompose import (
    Info,
    cp_als,
    grouped_svd,
    hosvd,
    truncated_svd,
    tt_als,
    tt_svd,
    tucker_als,
)
from tdjax.decompose.coordinates import Coordinates, Norm
from tdjax.decompose.formats import CP, TT, Format, GroupedLowRank, LowRank, Tucker
from tdjax.decompose.norms import Covariance, Frobenius, Kronecker, ModeWeighted
from tdjax.hints import did_you_mean
from tdjax.moments.collect import LayerMoments
from tdjax.moments.file import load_moments, save_moments
from tdjax.plan.form import Form
from tdjax.plan.layers import Layer
from tdjax.plan.pair import Pair
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.plan.rules import Rule
from tdjax.plan.wishes import BudgetRule, LossRise
from tdjax.pruning.backward import lasso_prune
from tdjax.pruning.bounds import pruning_error_bound, tail_size
from tdjax.pruning.indices import effective_number, lq_norm, pq_index, sparsity_index
from tdjax.pruning.lasso import lasso
from tdjax.pruning.magnitude import adaptive_prune, magnitude_prune, pq_prune, tail_prune
from tdjax.pruning.masks import apply_mask, keep_zeros, pruned_share
from tdjax.timings.timings import Timings

if TYPE_CHECKING:
    from tdjax import linen as linen
    from tdjax import nnx as nnx
    from tdjax.dispatch import (
        allocate,
        budget_curve,
        collect_moments,
        compress,
        evaluate_candidates,
        factorize,
        factorize_sequentially,
        feature_errors,
        layer_table,
        make_plan,
        measure_rises,
        paired_layers,
        reestimate_batch_stats,
        refine,
        remove_dead,
        shared_inputs,
    )
    from tdjax.dispatch.balancing import balance_factors
    from tdjax.dispatch.saving import load_factorised, save_factorised
    from tdjax.dispatch.storing import dequantize, quantize
    from tdjax.dispatch.timing import time_layers
    from tdjax.evaluate.errors import weight_errors
    from tdjax.params.factorize import factorize_params, reconstruct_params
    from tdjax.params.optimizers import carry_optimizer_state

# pyproject.toml reads it here, without an import.
__version__ = "0.1.0"

__all__ = [
    "CP",
    "TT",
    "BudgetRule",
    "Coordinates",
    "Covariance",
    "Form",
    "Format",
    "Frobenius",
    "GroupedLowRank",
    "Info",
    "Kronecker",
    "Layer",
    "LayerMoments",
    "LossRise",
    "LowRank",
    "ModeWeighted",
    "Norm",
    "Pair",
    "Plan",
    "PlannedLayer",
    "Rule",
    "Timings",
    "Tucker",
    "adaptive_prune",
    "allocate",
    "apply_mask",
    "balance_factors",
    "budget_curve",
    "carry_optimizer_state",
    "collect_moments",
    "compress",
    "cp_als",
    "dequantize",
    "effective_number",
    "enable_compilation_cache",
    "evaluate_candidates",
    "factorize",
    "factorize_params",
    "factorize_sequentially",
    "feature_errors",
    "grouped_svd",
    "hosvd",
    "keep_zeros",
    "lasso",
    "lasso_prune",
    "layer_table",
    "load_factorised",
    "load_moments",
    "lq_norm",
    "magnitude_prune",
    "make_plan",
    "measure_rises",
    "paired_layers",
    "pq_index",
    "pq_prune",
    "pruned_share",
    "pruning_error_bound",
    "quantize",
    "reconstruct_params",
    "reestimate_batch_stats",
    "refine",
    "remove_dead",
    "save_factorised",
    "save_moments",
    "shared_inputs",
    "sparsity_index",
    "tail_prune",
    "tail_size",
    "time_layers",
    "truncated_svd",
    "tt_als",
    "tt_svd",
    "tucker_als",
    "weight_errors",
    "xla_ways",
]

# What knows Flax, Optax or Orbax is loaded when it is first asked for: those who have a model have
# loaded Flax already, those who decompose arrays need not wait for it, and Orbax, which takes
# longest, comes with the first checkpoint. An import hook that is to see these rooms too stays
# installed until they are loaded.
_LATER = {
    "allocate": "tdjax.dispatch",
    "balance_factors": "tdjax.dispatch.balancing",
    "carry_optimizer_state": "tdjax.params.optimizers",
    "budget_curve": "tdjax.dispatch",
    "collect_moments": "tdjax.dispatch",
    "compress": "tdjax.dispatch",
    "dequantize": "tdjax.dispatch.storing",
    "evaluate_candidates": "tdjax.dispatch",
    "factorize": "tdjax.dispatch",
    "factorize_params": "tdjax.params.factorize",
    "factorize_sequentially": "tdjax.dispatch",
    "feature_errors": "tdjax.dispatch",
    "layer_table": "tdjax.dispatch",
    "load_factorised": "tdjax.dispatch.saving",
    "make_plan": "tdjax.dispatch",
    "measure_rises": "tdjax.dispatch",
    "paired_layers": "tdjax.dispatch",
    "quantize": "tdjax.dispatch.storing",
    "reconstruct_params": "tdjax.params.factorize",
    "reestimate_batch_stats": "tdjax.dispatch",
    "refine": "tdjax.dispatch",
    "remove_dead": "tdjax.dispatch",
    "save_factorised": "tdjax.dispatch.saving",
    "shared_inputs": "tdjax.dispatch",
    "time_layers": "tdjax.dispatch.timing",
    "weight_errors": "tdjax.evaluate.errors",
}

find_kinds_by(lambda: import_module("tdjax.dispatch.models").KINDS)

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in ("linen", "nnx"):
            return import_module(f"tdjax.{name}")
        if name not in _LATER:
            near = did_you_mean(name, __all__)
            raise AttributeError(f"module 'tdjax' has no attribute {name!r}{near}")
        globals()[name] = getattr(import_module(_LATER[name]), name)
        return globals()[name]


def __dir__() -> list[str]:
    """What is public: completion shows neither the rooms nor what this file imports."""
    own = (name for name in globals() if name.startswith("__"))
    return sorted({*own, *__all__, "linen", "nnx"})
