"""What the experiment measures: every strategy x budget x norm, on every calibration subset."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from experiments.compress.settings import Compress
from experiments.network.calibrate import Calibration, drawn
from experiments.workdir.journal import SCORES, Fields, Kind, Schema, required
from tdjax.plan.plan import Plan


@dataclass(frozen=True)
class Trial:
    """One compressed network."""

    calibration: Calibration
    strategy: str
    budget: float
    norm: str

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a record that say what was measured."""
        own = {"strategy": self.strategy, "budget": self.budget, "norm": self.norm}
        return {**own, **asdict(self.calibration)}

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
        if norm == "frobenius":
            if strategy != "loss":
                trials.append(Trial(Calibration(), strategy, budget, norm))
        else:
            trials += [Trial(own, strategy, budget, norm) for own in drawn(settings.calibration)]
    return trials


def _plan(name: str, value: Any) -> str:
    text: str = required({name: value}, name, str)
    Plan.from_json(text)
    return text


TRIAL: Fields = {
    "strategy": str,
    "budget": float,
    "norm": str,
    "source": str,
    "images": int,
    "subset": int,
}
SCHEMA: Schema = {
    "baseline": Kind({}, {"params": int, "macs": int, "test": SCORES}),
    "network": Kind(TRIAL, {"plan": _plan, "test": SCORES}),
    "reestimated": Kind(TRIAL, {"test": SCORES}),
    "tuned": Kind(TRIAL, {"test": SCORES}),
    "timed": Kind(TRIAL, dict.fromkeys(("before", "after", "speedup", "least", "most"), float)),
}
