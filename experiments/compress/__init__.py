"""The experiment on one budget for a whole network: strategies, budgets, norms."""

from experiments.compress.run import run
from experiments.compress.settings import Compress

__all__ = ["Compress", "run"]
