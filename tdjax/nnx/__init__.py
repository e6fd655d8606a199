"""The adapter to flax.nnx: layer table, plan, the factorised model and its optimiser."""

from tdjax.nnx.batch_stats import keeps_batch_stats, reestimate_batch_stats
from tdjax.nnx.model import factorize, reconstruct
from tdjax.nnx.modes import training_modules
from tdjax.nnx.network import (
    approximated_weights,
    layer_weights,
    module_paths,
    network_of,
    parameter_names,
    with_leaves,
)
from tdjax.nnx.optimizer import carry_optimizer
from tdjax.nnx.removal import remove_dead
from tdjax.nnx.sequential import factorize_sequentially
from tdjax.nnx.stored import with_kernels
from tdjax.nnx.table import inventory, layer_table, leaves, make_plan, trace

__all__ = [
    "approximated_weights",
    "carry_optimizer",
    "factorize",
    "factorize_sequentially",
    "inventory",
    "keeps_batch_stats",
    "layer_table",
    "layer_weights",
    "leaves",
    "make_plan",
    "module_paths",
    "network_of",
    "parameter_names",
    "reconstruct",
    "reestimate_batch_stats",
    "remove_dead",
    "trace",
    "training_modules",
    "with_kernels",
    "with_leaves",
]
