"""Everything that a study is asked to do, read strictly from its configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

from experiments.network.schedule import FitSettings
from experiments.network.settings import (
    DataSettings,
    FinetuneSettings,
    ModelSettings,
    NetworkSettings,
)
from experiments.workdir.fields import check_choices, check_least

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


# A choice and which of its runs.
Key = tuple[Choice, int]


@dataclass(frozen=True, kw_only=True)
class DecomposeSettings:
    """How kernels are decomposed.

    Arguments:
        cp_init: start of CP-ALS, "random" (uniform on [0, 1), as in the paper) or "normal".
        max_iters: sweeps of CP-ALS at most.
        tucker_iters: HOOI sweeps at most; 0 is the HOSVD.
        tol: stop once a sweep changes the relative error by less.
        ranks: "rule", or a key into the published rank tables ("garipovnet", "resnet18").
    """

    cp_init: str = "random"
    max_iters: int = 100
    tucker_iters: int = 100
    tol: float = 1e-8
    ranks: str = "rule"


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """How much is looked at for each measurement.

    Arguments:
        feature_images: training images over which the feature errors are averaged, and whose
            second moments make the norms of the data.
        batch_size: images at once when candidates are evaluated.
        chunk: candidates at once.
    """

    feature_images: int = 1000
    batch_size: int = 500
    chunk: int = 25


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A whole study: every layer x method x compression x run.

    Arguments:
        experiment: "study" measures and reports, "report" only reports.
        seed: of everything random.
        layers: module paths of the layers that are compressed, one at a time.
        methods: of "cp", "tucker", "tt", "svd".
        compressions: shares of a layer's weights that go away.
        runs: independent decompositions and fine-tunings of each choice.
        published: key into the published correlations to show beside, or None.
        checkpoint_every: epochs between checkpoints of the baseline's training.
    """

    experiment: str = "study"
    seed: int = 0
    data: DataSettings
    model: ModelSettings
    train: FitSettings
    layers: tuple[str, ...]
    methods: tuple[str, ...] = ("cp", "tucker", "tt")
    compressions: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9)
    runs: int = 5
    decompose: DecomposeSettings = DecomposeSettings()
    measure: MeasureSettings = MeasureSettings()
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    published: str | None = None
    checkpoint_every: int = 1

    def __post_init__(self) -> None:
        """Refuse values that would make the study empty."""
        for name in ("layers", "methods", "compressions"):
            check_choices(name, getattr(self, name))
        if not all(0 < compression < 1 for compression in self.compressions):
            raise ValueError("config field 'compressions' must hold shares between 0 and 1")
        if self.decompose.cp_init not in ("random", "normal"):
            raise ValueError(
                f"config field 'decompose.cp_init' is {self.decompose.cp_init!r}: "
                "known are random, normal"
            )
        check_least(
            ("runs", self.runs, 1),
            ("checkpoint_every", self.checkpoint_every, 1),
            ("decompose.max_iters", self.decompose.max_iters, 1),
            ("decompose.tucker_iters", self.decompose.tucker_iters, 0),
            ("measure.feature_images", self.measure.feature_images, 1),
            ("measure.batch_size", self.measure.batch_size, 1),
            ("measure.chunk", self.measure.chunk, 1),
        )
        self.finetune.fit_after(self.train)

    @property
    def network(self) -> NetworkSettings:
        """What the network is made from."""
        return NetworkSettings(
            seed=self.seed,
            data=self.data,
            model=self.model,
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
        """Every run of every choice."""
        return tuple(product(self.choices, range(self.runs)))

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
