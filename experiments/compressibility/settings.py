"""Everything that the experiment is asked to do, read strictly from its configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from experiments.data import TABLES
from experiments.network.settings import NetworkSettings
from experiments.workdir.fields import check_choices, check_least
from tdjax.pruning.prunable import SCOPES

MAGNITUDE = tuple(f"magnitude {scope}" for scope in reversed(SCOPES))
# Whose share is searched for, and met as nearly as it can be.
SEARCHED = ("tail", "abp-l")
METHODS = (*MAGNITUDE, "abp-m", "sap", *SEARCHED)


@dataclass(frozen=True, kw_only=True)
class Compressibility(NetworkSettings):
    """The whole experiment: methods x shares pruned, on networks trained from several seeds.

    Arguments:
        experiment: "compressibility" measures and reports, "report" only reports.
        runs: networks that are trained, with the seeds `seed`, `seed` + 1, ...
        methods: "magnitude neuron", "magnitude layer" and "magnitude global" compare the weights
            of one neuron, one layer, or all; "abp-m" is `tdjax.adaptive_prune`, "sap"
            `tdjax.pq_prune` by layers, "tail" `tdjax.tail_prune`, "abp-l" `tdjax.lasso_prune`,
            which needs layers that follow each other.
        shares: of all weights, that each method prunes.
        qs: exponents of the indices, and of "abp-m".
        etas: of "abp-m" in its own setting, with `eta_q`; with each of `qs` it also has 0.
        eta_q: see `etas`.
        penalties: of "abp-l" in its own setting.
        layer_steps: layers alone are pruned at so many shares, evenly between 0 and 1.
        tolerance: how much a network may lose when a layer is pruned alone: of accuracy, or, where
            numbers are predicted, the relative rise of the mean squared error.
        published: key into the published figures to show beside, or None.
    """

    experiment: str = "compressibility"
    runs: int = 3
    methods: tuple[str, ...] = METHODS
    shares: tuple[float, ...] = (0.3, 0.5, 0.7, 0.8, 0.9)
    qs: tuple[float, ...] = (0.3, 0.5, 0.7)
    etas: tuple[float, ...] = (0.1, 0.2, 0.3)
    eta_q: float = 0.5
    penalties: tuple[float, ...] = (1e-3, 1e-4, 1e-5)
    layer_steps: int = 49
    tolerance: float = 0.01
    published: str | None = None

    takes_tables: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse values that would make the experiment empty or end it half way."""
        super().__post_init__()
        check_choices("methods", self.methods, METHODS)
        for name in ("shares", "qs", "etas", "penalties"):
            check_choices(name, getattr(self, name))
        for name in ("shares", "qs"):
            if not all(0 < value < 1 for value in getattr(self, name)):
                raise ValueError(f"config field {name!r} must hold numbers between 0 and 1")
        for name in ("etas", "penalties"):
            if not all(0 < value < math.inf for value in getattr(self, name)):
                raise ValueError(f"config field {name!r} must hold finite numbers above 0")
        if not 0 < self.eta_q < 1:
            raise ValueError("config field 'eta_q' must lie between 0 and 1")
        if not 0 < self.tolerance < math.inf:
            raise ValueError("config field 'tolerance' must be finite and above 0")
        check_least(("runs", self.runs, 1), ("layer_steps", self.layer_steps, 1))

    @property
    def predicts_numbers(self) -> bool:
        """Whether the network predicts numbers, and has no accuracy."""
        return self.data.name in TABLES
