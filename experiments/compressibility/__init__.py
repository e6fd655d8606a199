"""The experiment on l_q compressibility: how far networks can be pruned, and what predicts it."""

from experiments.compressibility.run import run
from experiments.compressibility.settings import Compressibility

__all__ = ["Compressibility", "run"]
