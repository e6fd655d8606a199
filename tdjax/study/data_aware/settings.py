"""Everything that the experiment is asked to do, read strictly from its configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tdjax.chain import METHODS
from tdjax.study.fields import check_choices, check_least, plain_fields, read_fields
from tdjax.study.protocol import DataSettings, FinetuneSettings, ModelSettings
from tdjax.training import FitSettings

FROBENIUS = "frobenius"
# In front of a norm: layer after layer, each on what the ones before it have become.
SEQUENTIAL = "sequential "
NORMS = (
    FROBENIUS,
    "covariance",
    "kronecker",
    f"{SEQUENTIAL}covariance",
    f"{SEQUENTIAL}kronecker",
)
# The network's own training images, as they are or changed.
OWN = ("same", "flipped", "brighter")
OTHERS = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100")
LABELS = ("sampled", "true")


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """Fixed standardisation: (pixel / 255 - mean) / deviation, for networks that ask for it.

    Arguments:
        mean, deviation: one for each channel; both None for those of the training images.
    """

    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse one without the other, and what cannot be divided by."""
        if (self.mean is None) != (self.deviation is None):
            raise ValueError("mean and deviation: give both or neither")
        mean, deviation = self.mean or (), self.deviation or ()
        if len(mean) != len(deviation) or not all(value > 0 for value in deviation):
            raise ValueError("mean and deviation: as many of both, deviations above 0")


@dataclass(frozen=True, kw_only=True)
class CalibrationSettings:
    """Images from which the moments are collected.

    Arguments:
        sources: "same" for the network's own training images; "flipped" or "brighter" for changed
            copies of them; or another data set, resized to the network's input.
        folder: where the files of another data set are.
        images: numbers of images, each tried.
        subsets: subsets drawn of each size, over which figures are averaged.
        batch_size: images at once.
        labels: "sampled" from the network's own predictions, for which the gradient's moment is
            the Fisher information, or "true".
        temperature: divides the logits, for the labels drawn and for the loss. Above 1 the
            gradient foretells more than small changes: a confident network's own loss hardly
            has one. Without bound it is that of the change of the logits.
        brightness: added to the pixels of "brighter" copies, as a share of their range.
    """

    sources: tuple[str, ...] = ("same",)
    folder: str | None = None
    images: tuple[int, ...] = (2000,)
    subsets: int = 3
    batch_size: int = 250
    labels: str = "sampled"
    temperature: float = 1.0
    brightness: float = 0.2


@dataclass(frozen=True, kw_only=True)
class SolverSettings:
    """Sweeps of the iterative decompositions at most, and the change that ends them."""

    max_iters: int = 100
    tol: float = 1e-6


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """What networks are measured on.

    Arguments:
        batch_size: images at once.
        layer_images: test images for the networks with one layer compressed; None for all, 0
            leaves these networks out.
        change: "same" for the test images as they are, "flipped" or "brighter" for copies.
    """

    batch_size: int = 500
    layer_images: int | None = None
    change: str = "same"


@dataclass(frozen=True, kw_only=True)
class DataAware:
    """The whole experiment: methods x shares kept x norms, on a trained network.

    Arguments:
        experiment: "data_aware" measures and reports, "report" only reports.
        note: a remark that every report repeats, on what the figures rest.
        weights: npz file of a PyTorch network's arrays; None trains the network.
        methods: of "svd", "cp", "tucker", "tt".
        norms: of "frobenius", "covariance", "kronecker", "sequential covariance", "sequential
            kronecker"; the last two decompose layer after layer, see
            `tdjax.factorize_sequentially`, and whole networks only.
        keeps: shares of its weights that each layer keeps which can shrink.
        correct_bias: without, with, or both.
        reestimate: measure each whole network with the statistics of its batch normalisation
            estimated anew, too: on its calibration images, or the first of them if it saw none.
        finetune_subsets: of how many calibration subsets the networks are fine-tuned.
        checkpoint_every: epochs between checkpoints of the baseline's training.
    """

    experiment: str = "data_aware"
    note: str = ""
    seed: int = 0
    data: DataSettings
    inputs: InputSettings = InputSettings()
    model: ModelSettings
    weights: str | None = None
    train: FitSettings
    methods: tuple[str, ...] = ("svd", "cp", "tucker", "tt")
    norms: tuple[str, ...] = NORMS[:3]
    keeps: tuple[float, ...] = (0.75, 0.5, 0.25)
    correct_bias: tuple[bool, ...] = (False,)
    reestimate: bool = False
    calibration: CalibrationSettings = CalibrationSettings()
    solver: SolverSettings = SolverSettings()
    test: ScoreSettings = ScoreSettings()
    finetune: FinetuneSettings = field(default_factory=lambda: FinetuneSettings(epochs=0))
    finetune_subsets: int = 1
    checkpoint_every: int = 1

    def __post_init__(self) -> None:
        """Refuse values that would make the experiment empty or end it half way."""
        calibration, test = self.calibration, self.test
        check_choices("methods", self.methods, METHODS)
        check_choices("norms", self.norms, NORMS)
        check_choices("keeps", self.keeps)
        check_choices("correct_bias", self.correct_bias)
        check_choices("calibration.sources", calibration.sources, (*OWN, *OTHERS))
        check_choices("calibration.images", calibration.images)
        check_choices("calibration.labels", (calibration.labels,), LABELS)
        check_choices("test.change", (test.change,), OWN)
        if not all(0 < keep < 1 for keep in self.keeps):
            raise ValueError("config field 'keeps' must hold shares between 0 and 1")
        if not 0 < calibration.brightness < 1:
            raise ValueError("config field 'calibration.brightness' must lie between 0 and 1")
        if not 0 < calibration.temperature < math.inf:
            raise ValueError("config field 'calibration.temperature' must be finite and above 0")
        check_least(
            ("calibration.images", min(calibration.images), 1),
            ("calibration.subsets", calibration.subsets, 1),
            ("calibration.batch_size", calibration.batch_size, 1),
            ("solver.max_iters", self.solver.max_iters, 1),
            ("test.batch_size", test.batch_size, 1),
            ("test.layer_images", test.layer_images or 0, 0),
            ("finetune_subsets", self.finetune_subsets, 1),
            ("checkpoint_every", self.checkpoint_every, 1),
        )
        self.finetune.fit_after(self.train)

    @property
    def finetune_fit(self) -> FitSettings:
        """How a compressed network is trained on."""
        return self.finetune.fit_after(self.train)

    @property
    def needs_gradients(self) -> bool:
        """Whether any norm weighs outputs by their gradient."""
        return any(norm.endswith("kronecker") for norm in self.norms)

    @property
    def needs_images(self) -> bool:
        """Whether anything is measured that looks at calibration images."""
        return (
            self.reestimate
            or any(self.correct_bias)
            or any(norm != FROBENIUS for norm in self.norms)
        )


def settings_from_dict(raw: Mapping[str, Any]) -> DataAware:
    """The experiment of a configuration as nested mappings, such as `ConfigDict.to_dict()`.

    Raises ValueError that names the field for one that is unknown, missing, of a wrong type or
    out of range.
    """
    return read_fields(DataAware, raw)


def settings_to_dict(settings: DataAware) -> dict[str, Any]:
    """The experiment as plain JSON values, all defaults written out."""
    return plain_fields(settings)
