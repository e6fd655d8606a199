"""What every experiment on one trained network is asked, read strictly from its configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from experiments.error_study.protocol import DataSettings, FinetuneSettings, ModelSettings
from experiments.network.training import FitSettings
from experiments.workdir.fields import check_choices, check_least

# The network's own training images, as they are or changed.
OWN = ("same", "flipped", "brighter")
OTHERS = (
    "digits",
    "mnist",
    "fashion_mnist",
    "cifar10",
    "cifar100",
    "imagenet",
    "fgvc_aircraft",
)
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
            gradient predicts more than small changes: a confident network's own loss hardly
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
        change: "same" for the test images as they are, "flipped" or "brighter" for copies.
    """

    batch_size: int = 500
    change: str = "same"


@dataclass(frozen=True, kw_only=True)
class SubjectSettings:
    """A network with its data, and how it is looked at.

    Arguments:
        note: a remark that every report repeats, on what the figures rest.
        seed: of everything random.
        weights: npz file of a PyTorch network's arrays; None trains the network.
        reestimate: measure each compressed network with the statistics of its batch normalisation
            estimated anew, too: on its calibration images, or the first of them if it saw none.
        finetune: of compressed networks; no epochs leave it out.
        checkpoint_every: epochs between checkpoints of the training.
    """

    note: str = ""
    seed: int = 0
    data: DataSettings
    inputs: InputSettings = InputSettings()
    model: ModelSettings
    weights: str | None = None
    train: FitSettings
    reestimate: bool = False
    calibration: CalibrationSettings = CalibrationSettings()
    solver: SolverSettings = SolverSettings()
    test: ScoreSettings = ScoreSettings()
    finetune: FinetuneSettings = field(default_factory=lambda: FinetuneSettings(epochs=0))
    checkpoint_every: int = 1

    def __post_init__(self) -> None:
        """Refuse values that would end an experiment half way."""
        calibration = self.calibration
        check_choices("calibration.sources", calibration.sources, (*OWN, *OTHERS))
        check_choices("calibration.images", calibration.images)
        check_choices("calibration.labels", (calibration.labels,), LABELS)
        check_choices("test.change", (self.test.change,), OWN)
        if not 0 < calibration.brightness < 1:
            raise ValueError("config field 'calibration.brightness' must lie between 0 and 1")
        if not 0 < calibration.temperature < math.inf:
            raise ValueError("config field 'calibration.temperature' must be finite and above 0")
        check_least(
            ("calibration.images", min(calibration.images), 1),
            ("calibration.subsets", calibration.subsets, 1),
            ("calibration.batch_size", calibration.batch_size, 1),
            ("solver.max_iters", self.solver.max_iters, 1),
            ("test.batch_size", self.test.batch_size, 1),
            ("checkpoint_every", self.checkpoint_every, 1),
        )
        self.finetune.fit_after(self.train)

    @property
    def finetune_fit(self) -> FitSettings:
        """How a compressed network is trained on."""
        return self.finetune.fit_after(self.train)
