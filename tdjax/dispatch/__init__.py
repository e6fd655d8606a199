"""One name for all: functions on models of `flax.linen` and `flax.nnx`, and on pure functions."""

from tdjax.dispatch.curves import budget_curve
from tdjax.dispatch.data import collect_moments, reestimate_batch_stats
from tdjax.dispatch.errors import (
    candidate_feature_errors,
    evaluate_candidates,
    feature_errors,
)
from tdjax.dispatch.factors import factorize, factorize_sequentially, remove_dead
from tdjax.dispatch.measuring import measure_rises
from tdjax.dispatch.pairing import paired_layers
from tdjax.dispatch.pipeline import compress
from tdjax.dispatch.planning import allocate, layer_table, make_plan
from tdjax.dispatch.refining import refine
from tdjax.dispatch.sharing import shared_inputs

__all__ = [
    "allocate",
    "budget_curve",
    "candidate_feature_errors",
    "collect_moments",
    "compress",
    "evaluate_candidates",
    "factorize",
    "factorize_sequentially",
    "feature_errors",
    "layer_table",
    "make_plan",
    "measure_rises",
    "paired_layers",
    "reestimate_batch_stats",
    "refine",
    "remove_dead",
    "shared_inputs",
]
