"""The study: how well does the approximation error predict the compressed network's performance?"""

from experiments.error_study.protocol import Protocol
from experiments.error_study.run import run

__all__ = ["Protocol", "run"]
