"""How training went, epoch by epoch: records of the journal, and parts of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.network.schedule import FitSettings
from experiments.network.training import Scores, Trained
from experiments.workdir.record_fields import Fields, Kind, natural, numbers, share

# An epoch of the training of a network before compression.
EPOCH = Kind(
    {"network": int, "epoch": natural},
    {
        "learning_rate": float,
        "train_loss": float,
        "validation_loss": float,
        "validation_accuracy": (share, None),
    },
)
# Of a compressed network that was trained: one number an epoch; "start" is the validation loss
# before the first. Records of earlier versions have none.
CURVE: Fields = {
    "train_loss": numbers,
    "validation_loss": numbers,
    "validation_accuracy": (numbers, None),
    "start": (float, None),
}


def epoch_record(
    after: Trained, settings: FitSettings, steps_per_epoch: int, network: int
) -> dict[str, Any]:
    """The line of `metrics.jsonl` about the last epoch of one run.

    Arguments:
        network: which of those that are trained.
    """
    epoch = int(after.fit.epoch[0])
    rate = settings.learning_rate_of(epoch, steps_per_epoch)
    figures = _figures(after.loss, after.scores, 0)
    return {
        "kind": "epoch", "network": network, "epoch": epoch, "learning_rate": rate, **figures
    }  # fmt: skip


def curve_of(epochs: Sequence[tuple[np.ndarray, Scores]], run: int) -> dict[str, Any]:
    """The curve of one run in a record.

    Arguments:
        epochs: the mean training loss and the validation scores of each, all runs side by side.
    """
    figures = [_figures(*epoch, run) for epoch in epochs]
    return {name: [one[name] for one in figures] for name in (figures[0] if figures else ())}


def _figures(loss: Float[np.ndarray, " runs"], scores: Scores, run: int) -> dict[str, float]:
    found = {
        "train_loss": float(loss[run]),
        "validation_loss": float(scores.cross_entropy[run]),
    }
    accuracy = float(scores.accuracy[run])
    # Where numbers are predicted there is none.
    return found if math.isnan(accuracy) else {**found, "validation_accuracy": accuracy}
