"""What the experiment measures: every method x share kept x norm, on every calibration subset."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from experiments.data_aware.settings import DataAware
from experiments.network.calibrate import Calibration, drawn
from experiments.network.compressed import (
    CALIBRATION,
    FROBENIUS,
    SEQUENTIAL,
    CompressionTrial,
    compressed_schema,
)
from experiments.workdir.journal import SCORES, Fields, Kind, Schema

TRIAL: Fields = {"method": str, "keep": float, "norm": str, "correct_bias": bool, **CALIBRATION}
_SIZE: Fields = {"method": str, "keep": float, "params": int, "macs": int}
SCHEMA: Schema = {
    "baseline": Kind({}, {"params": int, "macs": int, "test": SCORES, "sizes": [_SIZE]}),
    **compressed_schema(TRIAL),
    "layer": Kind({**TRIAL, "layer": str}, {"test": SCORES}),
}


@dataclass(frozen=True)
class Trial(CompressionTrial):
    """One compressed network, whose layers are also tried one at a time."""

    method: str
    keep: float
    norm: str
    correct_bias: bool

    @property
    def start(self) -> str:
        """The name of its random starts, which all norms have in common."""
        return f"{self.method}, {self.keep:g}, {self.calibration.subset}"


def enumerate_trials(settings: DataAware) -> dict[Calibration, list[Trial]]:
    """Every trial, by the calibration that it shares with others, in the order of the report.

    What sees no data is measured once, but CP, whose starts are random, as often as there are
    subsets; all norms of one subset have the same start.
    """
    calibration = settings.calibration
    trials: dict[Calibration, list[Trial]] = {}
    choices = list(product(settings.methods, settings.keeps, settings.norms, settings.correct_bias))
    for subset in range(calibration.subsets):
        blind = Calibration(subset=subset)
        for method, keep, norm, correct in choices:
            if not sees_data(norm, correct) and (subset == 0 or method == "cp"):
                trials.setdefault(blind, []).append(Trial(blind, method, keep, norm, correct))
    for own in drawn(calibration):
        for method, keep, norm, correct in choices:
            if sees_data(norm, correct):
                trials.setdefault(own, []).append(Trial(own, method, keep, norm, correct))
    return trials


def sees_data(norm: str, correct_bias: bool) -> bool:
    """Whether such a decomposition depends on the calibration images."""
    return norm != FROBENIUS or correct_bias


def is_sequential(trial: Trial) -> bool:
    """Whether its layers depend on one another, so that none can be tried alone."""
    return trial.norm.startswith(SEQUENTIAL)


def is_tuned(settings: DataAware, trial: Trial) -> bool:
    """Whether this network is fine-tuned too."""
    tuned = trial.calibration.subset < settings.finetune_subsets
    return settings.finetune.epochs > 0 and tuned
