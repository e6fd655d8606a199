"""Tensor decomposition of trained Flax networks."""

from tdjax.adapters import (
    allocate,
    collect_moments,
    factorize,
    factorize_sequentially,
    layer_table,
    make_plan,
    reestimate_batch_stats,
)
from tdjax.candidates import evaluate_candidates
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
from tdjax.errors import feature_errors, weight_errors
from tdjax.factorize import factorize_params, reconstruct_params
from tdjax.formats import CP, TT, Format, GroupedLowRank, LowRank, Tucker
from tdjax.layers import Layer
from tdjax.moments import LayerMoments
from tdjax.moments_file import load_moments, save_moments
from tdjax.norms import Covariance, Frobenius, Kronecker, ModeWeighted
from tdjax.optimizers import carry_optimizer_state
from tdjax.plan import Plan, PlannedLayer
from tdjax.rules import Rule
from tdjax.saving import load_factorised, save_factorised

__all__ = [
    "CP",
    "TT",
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
    "Plan",
    "PlannedLayer",
    "Rule",
    "Tucker",
    "allocate",
    "carry_optimizer_state",
    "collect_moments",
    "cp_als",
    "evaluate_candidates",
    "factorize",
    "factorize_params",
    "factorize_sequentially",
    "feature_errors",
    "grouped_svd",
    "hosvd",
    "layer_table",
    "load_factorised",
    "load_moments",
    "make_plan",
    "reconstruct_params",
    "reestimate_batch_stats",
    "save_factorised",
    "save_moments",
    "truncated_svd",
    "tt_als",
    "tt_svd",
    "tucker_als",
    "weight_errors",
]
