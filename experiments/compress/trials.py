"""What the experiment measures: every strategy x budget x norm, on every calibration subset."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

from experiments.compress.settings import Compress
from experiments.network.calibrate import Calibration, drawn
from experiments.network.compressed import (
    CALIBRATION,
    FROBENIUS,
    CompressionTrial,
    compressed_schema,
)
from experiments.workdir.journal import SCORES, Fields, Kind, Schema, required
from tdjax.plan.plan import Plan


@dataclass(frozen=True)
class Trial(CompressionTrial):
    """One compressed network."""

    strategy: str
    budget: float
    norm: str

    @property
    def name(self) -> str:
        """The name of its checkpoint's folder."""
        seen = self.calibration
        data = f"-{seen.source}-{seen.images}-{seen.subset}" if seen.images else ""
        return f"{self.strategy.replace(' ', '-')}-{self.budget:g}-{self.norm}{data}"


def enumerate_trials(settings: Compress) -> list[Trial]:
    """Every trial, in the order of the report; what sees no data is measured once."""
    trials = []
    for strategy, budget, norm in product(settings.strategies, settings.budgets, settings.norms):
        if norm == FROBENIUS:
            if strategy != "loss":
                trials.append(Trial(Calibration(), strategy, budget, norm))
        else:
            trials += [Trial(own, strategy, budget, norm) for own in drawn(settings.calibration)]
    return trials


def _plan(name: str, value: Any) -> str:
    text: str = required({name: value}, name, str)
    Plan.from_json(text)
    return text


TRIAL: Fields = {"strategy": str, "budget": float, "norm": str, **CALIBRATION}
SCHEMA: Schema = {
    "baseline": Kind({}, {"params": int, "macs": int, "test": SCORES}),
    **compressed_schema(TRIAL, plan=_plan),
    "timed": Kind(TRIAL, dict.fromkeys(("before", "after", "speedup", "least", "most"), float)),
}
