"""The adapter to flax.linen: layer table, plan, and the factorised model."""

from tdjax.linen.model import factorize
from tdjax.linen.outputs import layer_outputs
from tdjax.linen.table import layer_table, make_plan

__all__ = ["factorize", "layer_outputs", "layer_table", "make_plan"]
