"""Tensor decomposition of trained Flax networks."""

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
from tdjax.dispatch import (
    allocate,
    collect_moments,
    factorize,
    factorize_sequentially,
    layer_table,
    make_plan,
    reestimate_batch_stats,
    remove_dead,
)
from tdjax.evaluate.candidates import evaluate_candidates
from tdjax.evaluate.errors import feature_errors, weight_errors
from tdjax.moments.collect import LayerMoments
from tdjax.moments.file import load_moments, save_moments
from tdjax.params.factorize import factorize_params, reconstruct_params
from tdjax.params.optimizers import carry_optimizer_state
from tdjax.params.saving import load_factorised, save_factorised
from tdjax.plan.layers import Layer
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.plan.rules import Rule
from tdjax.pruning.backward import lasso_prune
from tdjax.pruning.bounds import pruning_error_bound, tail_size
from tdjax.pruning.indices import effective_number, lq_norm, pq_index, sparsity_index
from tdjax.pruning.lasso import lasso
from tdjax.pruning.magnitude import adaptive_prune, magnitude_prune, pq_prune, tail_prune
from tdjax.pruning.masks import apply_mask, keep_zeros, pruned_share

__all__ = [
    "CP",
    "TT",
    "Coordinates",
    "Covariance",
    "Format",
    "Frobenius",
    "GroupedLowRank",
    "Info",
    "Kronecker",
    "Layer",
    "LayerMoments",
    "LowRank",
    "ModeWeighted",
    "Norm",
    "Plan",
    "PlannedLayer",
    "Rule",
    "Tucker",
    "adaptive_prune",
    "allocate",
    "apply_mask",
    "carry_optimizer_state",
    "collect_moments",
    "cp_als",
    "effective_number",
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
    "pq_index",
    "pq_prune",
    "pruned_share",
    "pruning_error_bound",
    "reconstruct_params",
    "reestimate_batch_stats",
    "remove_dead",
    "save_factorised",
    "save_moments",
    "sparsity_index",
    "tail_prune",
    "tail_size",
    "truncated_svd",
    "tt_als",
    "tt_svd",
    "tucker_als",
    "weight_errors",
]
