"""The adapter to flax.nnx: layer table, plan, and the factorised model."""

from tdjax.nnx.model import factorize, reconstruct
from tdjax.nnx.table import layer_table, make_plan

__all__ = ["factorize", "layer_table", "make_plan", "reconstruct"]
