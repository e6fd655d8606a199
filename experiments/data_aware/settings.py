"""The settings of the experiment, read strictly from its configuration, and their trials."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Annotated

from experiments.network.calibrate import Calibration, drawn
from experiments.network.compressed import (
    CALIBRATION,
    FROBENIUS,
    SEQUENTIAL,
    CompressionSettings,
    CompressionTrial,
    compressed_schema,
)
from experiments.network.curves import EPOCH
from experiments.network.settings import ScoreSettings
from experiments.workdir.fields import FieldError
from experiments.workdir.ranges import Choices, Count, OneOf, Repeats, Share
from experiments.workdir.record_fields import SCORES, Fields, Kind, Schema
from tdjax.plan.form import METHODS

NORMS = (
    FROBENIUS,
    "covariance",
    "kronecker",
    f"{SEQUENTIAL}covariance",
    f"{SEQUENTIAL}kronecker",
)


@dataclass(frozen=True, kw_only=True)
class AwareScoreSettings(ScoreSettings):
    """What networks are measured on.

    Arguments:
        layer_images: test examples for the networks with one layer compressed; None for all, 0
            leaves these networks out.
    """

    layer_images: Count | None = None


@dataclass(frozen=True, kw_only=True)
class DataAware(CompressionSettings):
    """The whole experiment: methods x shares kept x norms, on a trained network.

    Arguments:
        experiment: "data_aware" measures and reports, "report" only reports.
        methods: of "svd", "cp", "tucker", "tt".
        norms: of "frobenius", "covariance", "kronecker", "sequential covariance", "sequential
            kronecker"; the last two decompose layer after layer, see
            `tdjax.factorize_sequentially`, and whole networks only.
        layers: the layers that are decomposed, by patterns for `re.fullmatch` on their paths.
        keeps: shares of its weights that each layer keeps which can shrink.
        correct_bias: without, with, or both.
        finetune_subsets: of how many calibration subsets the networks are fine-tuned.
    """

    experiment: Annotated[str, OneOf(("data_aware", "report"))] = "data_aware"
    methods: Choices[Annotated[str, OneOf(METHODS)]] = ("svd", "cp", "tucker", "tt")
    norms: Choices[Annotated[str, OneOf(NORMS)]] = NORMS[:3]
    layers: Choices[str] = (".*",)
    keeps: Choices[Share] = (0.75, 0.5, 0.25)
    correct_bias: Choices[bool] = (False,)
    test: AwareScoreSettings = AwareScoreSettings()
    finetune_subsets: Repeats = 1

    def __post_init__(self) -> None:
        """Refuse values that would make the experiment empty or end it half way."""
        super().__post_init__()
        if self.finetune_subsets > self.calibration.subsets:
            raise FieldError(
                "finetune_subsets",
                f"is {self.finetune_subsets}: calibration.subsets is {self.calibration.subsets}",
            )

    @property
    def needs_gradients(self) -> bool:
        """Whether any norm weighs outputs by their gradient."""
        return any(norm.endswith("kronecker") for norm in self.norms)

    @property
    def needs_images(self) -> bool:
        """Whether anything is measured that looks at calibration images."""
        return (
            self.shows_again
            or any(self.correct_bias)
            or any(norm != FROBENIUS for norm in self.norms)
        )


TRIAL: Fields = {"method": str, "keep": float, "norm": str, "correct_bias": bool, **CALIBRATION}
_SIZE: Fields = {"method": str, "keep": float, "params": int, "macs": int}
SCHEMA: Schema = {
    "baseline": Kind(
        {}, {"params": int, "macs": int, "chance": (float, None), "test": SCORES, "sizes": [_SIZE]}
    ),
    "epoch": EPOCH,
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
    blind = [Calibration(subset=subset) for subset in range(settings.calibration.subsets)]
    trials: dict[Calibration, list[Trial]] = {}
    choices = list(product(settings.methods, settings.keeps, settings.norms, settings.correct_bias))
    for own in (*blind, *drawn(settings.calibration)):
        for method, keep, norm, correct in choices:
            again = own.subset > 0 and not own.images and method != "cp"
            if sees_data(norm, correct) == (own.images > 0) and not again:
                trials.setdefault(own, []).append(Trial(own, method, keep, norm, correct))
    return trials


def sees_data(norm: str, correct_bias: bool) -> bool:
    """Whether such a decomposition depends on the calibration images."""
    return norm != FROBENIUS or correct_bias
