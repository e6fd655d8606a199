"""The adapter to flax.nnx: layer table, plan, the factorised model and its optimiser."""

from tdjax.nnx.model import factorize, reconstruct
from tdjax.nnx.optimizer import carry_optimizer
from tdjax.nnx.table import layer_table, make_plan

__all__ = ["carry_optimizer", "factorize", "layer_table", "make_plan", "reconstruct"]
