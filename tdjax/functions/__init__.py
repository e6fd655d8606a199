"""The adapter to pure functions of parameters and inputs: layer table, plan, the factorised one."""

from tdjax.functions.model import FactorisedFunction, factorize
from tdjax.functions.network import (
    approximated_weights,
    layer_weights,
    module_paths,
    network_of,
    parameter_names,
)
from tdjax.functions.sequential import factorize_sequentially
from tdjax.functions.table import (
    inventory,
    keeps_batch_stats,
    layer_table,
    leaves,
    make_plan,
    trace,
)

__all__ = [
    "FactorisedFunction",
    "approximated_weights",
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
    "trace",
]
