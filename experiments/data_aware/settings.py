"""Everything that the experiment is asked to do, read strictly from its configuration."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.network.compressed import FROBENIUS, SEQUENTIAL
from experiments.network.settings import NetworkSettings, ScoreSettings
from experiments.workdir.fields import check_choices, check_least
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
        layer_images: test images for the networks with one layer compressed; None for all, 0
            leaves these networks out.
    """

    layer_images: int | None = None


@dataclass(frozen=True, kw_only=True)
class DataAware(NetworkSettings):
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

    experiment: str = "data_aware"
    methods: tuple[str, ...] = ("svd", "cp", "tucker", "tt")
    norms: tuple[str, ...] = NORMS[:3]
    layers: tuple[str, ...] = (".*",)
    keeps: tuple[float, ...] = (0.75, 0.5, 0.25)
    correct_bias: tuple[bool, ...] = (False,)
    test: AwareScoreSettings = AwareScoreSettings()
    finetune_subsets: int = 1

    def __post_init__(self) -> None:
        """Refuse values that would make the experiment empty or end it half way."""
        super().__post_init__()
        check_choices("methods", self.methods, METHODS)
        check_choices("norms", self.norms, NORMS)
        check_choices("layers", self.layers)
        check_choices("keeps", self.keeps)
        check_choices("correct_bias", self.correct_bias)
        if not all(0 < keep < 1 for keep in self.keeps):
            raise ValueError("config field 'keeps' must hold shares between 0 and 1")
        check_least(
            ("test.layer_images", self.test.layer_images or 0, 0),
            ("finetune_subsets", self.finetune_subsets, 1),
        )

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
