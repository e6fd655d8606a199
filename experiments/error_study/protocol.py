"""Everything that a study is asked to do, read strictly from its configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Annotated, NamedTuple

from experiments.error_study.paper import published_names
from experiments.network.schedule import FitSettings
from experiments.network.settings import (
    DataSettings,
    FinetuneSettings,
    Loss,
    Metric,
    ModelSettings,
    NetworkSettings,
)
from experiments.workdir.fields import FOR_REPORT, FieldError, Settings, before
from experiments.workdir.ranges import (
    SEEDS,
    Choices,
    FileName,
    Natural,
    OneOf,
    Part,
    Range,
    Repeats,
    Seed,
    Share,
    Sweeps,
)
from tdjax.plan.form import METHODS

PHASES = ("before", "after")


@dataclass(frozen=True)
class Choice:
    """One way to compress one layer; `compression` is the share of parameters removed."""

    layer: str
    method: str
    compression: float

    def __str__(self) -> str:
        """Layer, method and compression in one line."""
        return f"{self.layer}, {self.method}, compression {self.compression:g}"


# A choice and which of its runs, in one network.
Run = tuple[Choice, int]


class Key(NamedTuple):
    """One measurement: which of the networks, a choice, and which of its runs there."""

    network: int
    choice: Choice
    run: int

    def __str__(self) -> str:
        """All three in one line."""
        return f"network {self.network}, {self.choice}, run {self.run}"


# Methods whose decomposition is the same every time: runs differ in fine-tuning alone.
DETERMINISTIC = tuple(method for method in METHODS if method != "cp")


@dataclass(frozen=True, kw_only=True)
class DecomposeSettings(Settings):
    """How kernels are decomposed.

    Arguments:
        cp_init: start of CP-ALS, "random" (uniform on [0, 1), as in the paper) or "normal".
        max_iters: sweeps of CP-ALS at most.
        tucker_iters: HOOI sweeps at most; 0 is the HOSVD, as in the paper.
        tol: stop once a sweep changes the relative error by less.
        ranks: "rule", or a key into the published rank tables ("garipovnet", "resnet18").
    """

    cp_init: Annotated[str, OneOf(("random", "normal"))] = "random"
    max_iters: Sweeps = 100
    tucker_iters: Annotated[int, Range(least=0, most=100_000)] = 0
    tol: Part = 1e-8
    ranks: Annotated[str, OneOf(("rule", *published_names("ranks")))] = "rule"


@dataclass(frozen=True, kw_only=True)
class MeasureSettings(Settings):
    """How much is looked at for each measurement.

    Arguments:
        feature_images: training examples over which the feature errors are averaged, and whose
            second moments make the norms of the data.
        drawn: whether these are drawn by the seed, in place of the first ones.
        batch_size: examples at once when candidates are evaluated.
        chunk: candidates at once.
    """

    feature_images: Natural = 1000
    drawn: bool = field(default=True, metadata=before(False))
    batch_size: Natural = 500
    chunk: Natural = 25


@dataclass(frozen=True, kw_only=True)
class Protocol(Settings):
    """A whole study: every network x layer x method x compression x run.

    Arguments:
        experiment: "study" measures and reports, "report" only reports.
        seed: from which all that is random follows.
        loss, metric: of each example, ours by name or of your own as "package.module:function";
            None for cross-entropy and accuracy, see `NetworkSettings`.
        weights: file or folder of the arrays of a network that is trained; None trains it.
        poor_baseline: go on with a network that is no better than chance on the test set.
        layers: the layers that are compressed, one at a time: their module paths, or patterns for
            `re.fullmatch` on these.
        methods: of "cp", "tucker", "tt", "svd".
        compressions: shares of a layer's weights that go away.
        networks: how many networks are trained and measured. The k-th, from 0, is the one that a
            study with the seed `seed + k` has, with all that is random about it.
        runs: independent decompositions and fine-tunings of each choice, in each network.
        deterministic_runs: the same where the decomposition is the same every time, so that runs
            differ in fine-tuning alone; None for as many as `runs`.
        published: key into the published correlations to show beside, or None.
        checkpoint_every: epochs between checkpoints of the baseline's training.
    """

    experiment: Annotated[str, OneOf(("study", "report"))] = "study"
    seed: Seed = 0
    data: DataSettings
    model: ModelSettings
    loss: Loss | None = None
    metric: Metric | None = None
    weights: FileName | None = None
    poor_baseline: bool = field(default=False, metadata=FOR_REPORT)
    train: FitSettings
    layers: Choices[str]
    methods: Choices[Annotated[str, OneOf(METHODS)]] = ("cp", "tucker", "tt")
    compressions: Choices[Share] = (0.1, 0.25, 0.5, 0.75, 0.9)
    networks: Repeats = field(default=1, metadata=before(1))
    runs: Repeats = 5
    deterministic_runs: Repeats | None = None
    decompose: DecomposeSettings = DecomposeSettings()
    measure: MeasureSettings = MeasureSettings()
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    published: Annotated[str, OneOf(published_names("tau"))] | None = field(
        default=None, metadata=FOR_REPORT
    )
    checkpoint_every: Natural = 1

    def __post_init__(self) -> None:
        """Refuse values that would make the study empty or end it half way."""
        super().__post_init__()
        if len(set(self.levels)) < len(self.levels):
            raise FieldError(
                "compressions", f"is {self.compressions}: two of them are equal to six decimals"
            )
        fewer = self.deterministic_runs
        if fewer is not None and fewer > self.runs:
            raise FieldError("deterministic_runs", f"is {fewer}: at most runs, {self.runs}")
        if self.seed + self.networks - 1 > SEEDS:
            problem = f"is {self.seed}: that of network {self.networks} is above {SEEDS}"
            raise FieldError("seed", problem)
        if self.finetune.epochs:
            self.finetune.fit_after(self.train)

    @property
    def network(self) -> NetworkSettings:
        """What the network is made from."""
        return NetworkSettings(
            seed=self.seed,
            data=self.data,
            model=self.model,
            loss=self.loss,
            metric=self.metric,
            weights=self.weights,
            train=self.train,
            finetune=self.finetune,
            checkpoint_every=self.checkpoint_every,
        )

    @property
    def choices(self) -> tuple[Choice, ...]:
        """Every choice, in the order of the report: by layer, then method, then compression."""
        return tuple(Choice(*own) for own in product(self.layers, self.methods, self.levels))

    @property
    def levels(self) -> tuple[float, ...]:
        """The compressions to six decimals: 1 - 0.9 and 0.1 are the same choice."""
        return tuple(round(compression, 6) for compression in self.compressions)

    @property
    def keys(self) -> tuple[Key, ...]:
        """Every run of every choice in every network: by choice, then network, then run."""
        return tuple(
            Key(network, choice, run)
            for choice, network in product(self.choices, range(self.networks))
            for run in range(self.runs_of(choice.method))
        )

    def runs_of(self, method: str) -> int:
        """How many runs a choice of a method has in each network."""
        if method in DETERMINISTIC and self.deterministic_runs is not None:
            return self.deterministic_runs
        return self.runs

    @property
    def phases(self) -> tuple[str, ...]:
        """When performance is measured: without fine-tuning there is no "after"."""
        return PHASES if self.finetune.epochs else PHASES[:1]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The records that hold the performance in each phase."""
        return ("compressed", "finetuned")[: len(self.phases)]

    @property
    def needs_images(self) -> bool:
        """Of its training images alone the study takes `measure.feature_images`."""
        return False
