"""The settings of the experiment, read strictly from its configuration, and their trials."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any

from experiments.network.calibrate import Calibration, drawn
from experiments.network.compressed import (
    CALIBRATION,
    FROBENIUS,
    CompressionSettings,
    CompressionTrial,
    compressed_schema,
)
from experiments.network.curves import EPOCH
from experiments.workdir.fields import FieldError
from experiments.workdir.ranges import Choices, Count, OneOf, Range, Share
from experiments.workdir.record_fields import SCORES, Fields, Kind, Schema, required
from tdjax.allocation.choices import COUNTED
from tdjax.plan.form import METHODS
from tdjax.plan.plan import Plan

# Those of `tdjax.allocate`, and ALDS with the objective of its authors' code.
STRATEGIES = ("uniform", "energy", "alds", "alds released", "alds+", "alds+ released", "loss")
NORMS = ("frobenius", "covariance", "kronecker")


@dataclass(frozen=True, kw_only=True)
class Compress(CompressionSettings):
    """The whole experiment: strategies x budgets x norms, on a trained network.

    Arguments:
        experiment: "compress" measures and reports, "report" only reports.
        budgets: shares of the whole network kept.
        cost: what they are shares of, "params" or "macs".
        strategies: "uniform", "energy", "alds", "alds+", "loss"; see `tdjax.allocate`. ALDS has
            the paper's objective, "alds released" and "alds+ released" that of its authors' code.
        methods: formats that the strategies choose from; ALDS knows low rank alone.
        norms: in which the layers are then decomposed, "frobenius", "covariance" or "kronecker";
            what "loss" chose is not decomposed in the first.
        sequential: decompose layer after layer where the norm sees data, each making up for what
            the ones before it lost.
        rounds: compress and train on this many times, each time by an equal factor. More than one
            needs fine-tuning.
        timed_images: examples of a batch on which inference is timed; 0 times nothing.
    """

    experiment: Annotated[str, OneOf(("compress", "report"))] = "compress"
    budgets: Choices[Share] = (0.5,)
    cost: Annotated[str, OneOf(COUNTED)] = "params"
    strategies: Choices[Annotated[str, OneOf(STRATEGIES)]] = (
        "uniform",
        "energy",
        "alds released",
        "loss",
    )
    methods: Choices[Annotated[str, OneOf(METHODS)]] = ("svd", "tucker")
    norms: Choices[Annotated[str, OneOf(NORMS)]] = ("frobenius", "kronecker")
    sequential: bool = False
    rounds: Annotated[int, Range(least=1, most=100)] = 1
    timed_images: Count = 0

    def __post_init__(self) -> None:
        """Refuse values that would make the experiment empty or end it half way."""
        super().__post_init__()
        if "loss" in self.strategies and self.norms == ("frobenius",):
            raise FieldError("norms", f"is {self.norms}: strategy 'loss' needs one that sees data")
        if self.rounds > 1 and not self.finetune.epochs:
            raise FieldError("rounds", f"is {self.rounds}: more than one needs finetune.epochs")

    @property
    def needs_images(self) -> bool:
        """Whether anything is measured that looks at calibration images."""
        return self.shows_again or self.norms != ("frobenius",)


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
    "baseline": Kind({}, {"params": int, "macs": int, "chance": (float, None), "test": SCORES}),
    "epoch": EPOCH,
    **compressed_schema(TRIAL, plan=_plan),
    "timed": Kind(TRIAL, dict.fromkeys(("before", "after", "speedup", "least", "most"), float)),
}
