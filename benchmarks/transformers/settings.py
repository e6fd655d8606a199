"""What the figures of the small networks depend on, and what they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.transformers.runs import Columns, schema_of
from experiments.workdir.record_fields import share


@dataclass(frozen=True)
class Settings:
    """What figures depend on, beside the network and the data, which have a digest.

    Arguments:
        draws: of the loss, for each example.
        epochs: of refinement.
        seed: of draws and refinement.
    """

    draws: int
    epochs: int
    seed: int


SCHEMA = schema_of(Settings, {"cross_entropy": float, "accuracy": share})
PERPLEXITY: Columns = {
    "perplexity": lambda own: f"{math.exp(own['cross_entropy']):.3f}",
    "next byte right": lambda own: f"{own['accuracy']:.1%}",
}
ACCURACY: Columns = {
    "accuracy": lambda own: f"{own['accuracy']:.1%}",
    "cross entropy": lambda own: f"{own['cross_entropy']:.3f}",
}
