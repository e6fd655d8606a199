"""The adapter to flax.linen: layer table, plan, and the factorised model."""

import tdjax.linen.stored
from tdjax.linen.batch_stats import keeps_batch_stats, reestimate_batch_stats
from tdjax.linen.model import factorize
from tdjax.linen.modes import training_fields, trains
from tdjax.linen.network import (
    approximated_weights,
    layer_weights,
    module_paths,
    network_of,
    parameter_names,
)
from tdjax.linen.outputs import layer_outputs
from tdjax.linen.removal import remove_dead
from tdjax.linen.sequential import factorize_sequentially
from tdjax.linen.table import inventory, layer_table, leaves, make_plan, trace

__all__ = [
    "approximated_weights",
    "factorize",
    "factorize_sequentially",
    "inventory",
    "keeps_batch_stats",
    "layer_outputs",
    "layer_table",
    "layer_weights",
    "leaves",
    "make_plan",
    "module_paths",
    "network_of",
    "parameter_names",
    "reestimate_batch_stats",
    "remove_dead",
    "trace",
    "training_fields",
    "trains",
]
