"""The settings that all experiments on a trained network share, and the checks of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Protocol

from experiments.data import DATASETS
from experiments.network.judge import LOSSES, METRICS, OF_LOSS
from experiments.network.schedule import FitSettings
from experiments.workdir.fields import FOR_REPORT, FieldError, Settings, before
from experiments.workdir.ranges import (
    Choices,
    Epochs,
    FileName,
    Natural,
    OneOf,
    OneOfOrOwn,
    Part,
    Range,
    Rate,
    Repeats,
    Seed,
    Share,
    Sweeps,
)

# The network's own training images, as they are or changed.
OWN = ("same", "flipped", "brighter")
LABELS = ("sampled", "true")
Loss = Annotated[str, OneOfOrOwn(tuple(LOSSES))]
Metric = Annotated[str, OneOfOrOwn(tuple(METRICS))]
# Of what is divided by, and of what that is taken from: pixels then stay finite in float32.
DIVISOR, OFFSET = Range(least=1e-6, most=1e6), Range(least=-1e6, most=1e6)


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """Which data set, and how much of it.

    See `experiments.data.load` and `experiments.data.prepare`; for tables,
    `experiments.data.load_table` and `experiments.data.prepare_table`.

    Arguments:
        name: one of ours; or of your own, an npz file of arrays or "package.module:function" for
            a function that returns them or batches, see `experiments.data.prepare_arrays`.
        arguments: of that function.
        folder: where the published files are; what is embedded needs none.
        validation_share: of the training set, that is held out to choose epochs.
        train_size, validation_size, test_size: examples that are used; None for all.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    folder: FileName | None = None
    validation_share: Share = 0.1
    train_size: Natural | None = None
    validation_size: Natural | None = None
    test_size: Natural | None = None


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """Which network, and with it the arguments of its class.

    For rows of a table and small images "mlp"; for small images "garipovnet" and "resnet18"; for
    CIFAR "resnet20", "resnet56", "resnet110", "vgg16", "densenet22" and "wrn16_8"; for ImageNet
    "resnet18_imagenet", "resnet50", "googlenet". A network of your own is
    "package.module:function", a function with its arguments that returns a Linen or NNX module, or
    a pair of a function (params, inputs) -> outputs and its params.

    Arguments:
        name: one of ours, or "package.module:function" for one of your own.
        arguments: of its class or function.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True)
class InputSettings(Settings):
    """Fixed standardisation: (pixel / 255 - mean) / deviation, for networks that ask for it.

    Arguments:
        mean, deviation: one for each channel; both None for those of the training images.
    """

    mean: tuple[Annotated[float, OFFSET], ...] | None = None
    deviation: tuple[Annotated[float, DIVISOR], ...] | None = None

    def __post_init__(self) -> None:
        """Refuse one without the other."""
        super().__post_init__()
        if (self.mean is None) != (self.deviation is None):
            missing = "mean" if self.mean is None else "deviation"
            raise FieldError(missing, "is None: give mean and deviation, or neither")
        if len(self.mean or ()) != len(self.deviation or ()):
            raise FieldError("deviation", f"is {self.deviation}: as many as of the mean are needed")


@dataclass(frozen=True, kw_only=True)
class CalibrationSettings(Settings):
    """Images from which the moments are collected.

    Arguments:
        sources: "same" for the network's own training examples; "flipped" or "brighter" for changed
            copies of them; or another data set, resized to the network's input.
        folder: where the files of another data set are.
        images: numbers of examples, each tried.
        subsets: subsets drawn of each size, over which figures are averaged.
        batch_size: examples at once.
        labels: "sampled" from the network's own predictions, for which the gradient's moment is
            the Fisher information, or "true".
        temperature: divides the logits, for the labels drawn and for the loss. Above 1 the
            gradient predicts more than small changes: a confident network's own loss hardly
            has one. Without bound it is that of the change of the logits.
        brightness: added to the pixels of "brighter" copies, as a share of their range.
    """

    sources: Choices[Annotated[str, OneOf((*OWN, *DATASETS))]] = ("same",)
    folder: FileName | None = None
    images: Choices[Natural] = (2000,)
    subsets: Repeats = 3
    batch_size: Natural = 250
    labels: Annotated[str, OneOf(LABELS)] = "sampled"
    temperature: Annotated[float, Range(least=1e-3, most=1e6)] = 4.0
    brightness: Share = 0.2


@dataclass(frozen=True, kw_only=True)
class SolverSettings(Settings):
    """How long the iterative decompositions go on.

    Arguments:
        max_iters: sweeps at most.
        tol: stop once a sweep changes the relative error by less.
    """

    max_iters: Sweeps = 100
    tol: Part = 1e-6


@dataclass(frozen=True, kw_only=True)
class ScoreSettings(Settings):
    """What networks are measured on.

    Arguments:
        batch_size: examples at once.
        change: "same" for the test examples as they are, "flipped" or "brighter" for copies.
    """

    batch_size: Natural = 500
    change: Annotated[str, OneOf(OWN)] = "same"


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(Settings):
    """Fine-tuning after compression; its learning rate is the last of the training schedule.

    Arguments:
        epochs: at most; 0 leaves it out.
        patience: epochs without a better one after which it ends; None for none.
        learning_rate: another learning rate.
        repeat: train by the schedule of the training from its start, warm-up, first learning rate
            and boundaries, in place of a learning rate that stays.
    """

    epochs: Epochs = 10
    patience: Natural | None = None
    learning_rate: Rate | None = None
    repeat: bool = False

    def fit_after(self, train: FitSettings) -> FitSettings:
        """How a network trained by `train` is trained on.

        Raises FieldError that names the field for what no training takes.
        """
        before = train.learning_rate if self.repeat else train.last_learning_rate
        try:
            return dataclasses.replace(
                train,
                epochs=self.epochs,
                patience=self.patience,
                learning_rate=before if self.learning_rate is None else self.learning_rate,
                boundaries=train.boundaries if self.repeat else (),
                warmup=train.warmup if self.repeat else 0,
            )
        except FieldError as error:
            raise error.inside("finetune") from None


def _in_words(name: str) -> str:
    return name.rpartition(":")[2].replace("_", " ")


class ExperimentSettings(Protocol):
    """What the settings of every experiment have."""

    @property
    def network(self) -> NetworkSettings:
        """What its network is made from."""

    @property
    def needs_images(self) -> bool:
        """Whether anything is measured that looks at calibration images."""


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(Settings):
    """A network with its data, and how it is looked at.

    Arguments:
        note: a remark that every report repeats, on what the figures rest.
        seed: from which all that is random follows.
        loss, metric: of each example, ours by name (`experiments.network.judge`) or of your own as
            "package.module:function" of outputs and labels; None for cross-entropy and accuracy,
            and for the metric that goes with a loss.
        weights: file or folder of the arrays of a network that is trained, see
            `experiments.network.weights.load_weights`; None trains the network.
        reestimate: measure each compressed network with the statistics of its batch normalisation
            estimated again, too: on its calibration examples, or the first of them if it saw none.
        finetune: of compressed networks; no epochs leave it out.
        checkpoint_every: epochs between checkpoints of the training.
        checkpoint_steps: steps between further ones within an epoch, for epochs of hours; None for
            none.

    `takes_tables` says whether the experiment knows networks that predict numbers from rows of a
    table.
    """

    note: str = field(default="", metadata=FOR_REPORT)
    seed: Seed = 0
    data: DataSettings
    inputs: InputSettings = InputSettings()
    model: ModelSettings
    loss: Loss | None = None
    metric: Metric | None = None
    weights: FileName | None = None
    train: FitSettings
    reestimate: bool = False
    calibration: CalibrationSettings = CalibrationSettings()
    solver: SolverSettings = SolverSettings()
    test: ScoreSettings = ScoreSettings()
    finetune: FinetuneSettings = field(default_factory=lambda: FinetuneSettings(epochs=0))
    checkpoint_every: Natural = 1
    checkpoint_steps: Natural | None = field(default=None, metadata=before(None))

    takes_tables: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse values that would end an experiment half way."""
        super().__post_init__()
        if self.finetune.epochs:
            self.finetune.fit_after(self.train)

    @property
    def predicts_classes(self) -> bool:
        """Whether labels are classes, of which the outputs are logits."""
        return self.loss in (None, "cross_entropy")

    @property
    def metric_name(self) -> str:
        """What reports call the metric."""
        default = "accuracy" if self.loss is None else OF_LOSS.get(self.loss, "metric")
        return _in_words(self.metric or default)

    @property
    def loss_name(self) -> str:
        """What reports call the loss."""
        return "cross-entropy" if self.predicts_classes else _in_words(str(self.loss))

    @property
    def gradient_name(self) -> str:
        """What reports call the loss whose gradient is looked at, or its labels."""
        own = self.calibration
        if self.predicts_classes:
            return f"{own.labels}, temperature {own.temperature:g}"
        return f"true, {self.loss_name}"

    @property
    def finetune_fit(self) -> FitSettings:
        """How a compressed network is trained on."""
        return self.finetune.fit_after(self.train)

    @property
    def network(self) -> NetworkSettings:
        """What the network is made from."""
        return self

    @property
    def needs_images(self) -> bool:
        """Whether anything is measured that looks at calibration images."""
        return True
