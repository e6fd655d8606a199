"""The experiment on decompositions that see the data: which norm keeps the most accuracy."""

from experiments.data_aware.run import run
from experiments.data_aware.settings import DataAware

__all__ = ["DataAware", "run"]
