"""The settings of the experiment, read strictly from its configuration, and their trials."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar

from experiments.compressibility.paper import published_names
from experiments.data import TABLES
from experiments.network.curves import CURVE, EPOCH
from experiments.network.settings import NetworkSettings
from experiments.workdir.fields import FOR_REPORT, FieldError
from experiments.workdir.ranges import Choices, OneOf, Range, Repeats, Share
from experiments.workdir.record_fields import Fields, Kind, Schema, natural, numbers, share
from tdjax.pruning.prunable import SCOPES

MAGNITUDE = tuple(f"magnitude {scope}" for scope in reversed(SCOPES))
# Whose share is searched for, and met as nearly as it can be.
SEARCHED = ("tail", "abp-l")
METHODS = (*MAGNITUDE, "abp-m", "sap", *SEARCHED)
Setting = Annotated[float, Range(above=0, most=1e6)]
Exponent = Annotated[float, Range(least=0.01, most=0.99)]


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
        eta_q: exponent of "abp-m" in its own setting, beside `etas`.
        penalties: of "abp-l" in its own setting.
        layer_steps: layers alone are pruned at so many shares, evenly between 0 and 1.
        tolerance: how much a network may lose when a layer is pruned alone: of accuracy, or, where
            numbers are predicted, the relative rise of the mean squared error.
        published: key into the published figures to show beside, or None.
    """

    experiment: Annotated[str, OneOf(("compressibility", "report"))] = "compressibility"
    runs: Repeats = 3
    methods: Choices[Annotated[str, OneOf(METHODS)]] = METHODS
    shares: Choices[Share] = (0.3, 0.5, 0.7, 0.8, 0.9)
    qs: Choices[Exponent] = (0.3, 0.5, 0.7)
    etas: Choices[Setting] = (0.1, 0.2, 0.3)
    eta_q: Exponent = 0.5
    penalties: Choices[Setting] = (1e-3, 1e-4, 1e-5)
    layer_steps: Annotated[int, Range(least=1, most=100_000)] = 49
    tolerance: Setting = 0.01
    published: Annotated[str, OneOf(published_names())] | None = field(
        default=None, metadata=FOR_REPORT
    )

    takes_tables: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse values that would make the experiment empty or end it half way."""
        super().__post_init__()
        for name in ("sources", "images"):
            values = getattr(self.calibration, name)
            if len(values) > 1:
                raise FieldError(f"calibration.{name}", f"is {values}: one is needed here")

    @property
    def predicts_numbers(self) -> bool:
        """Whether the network predicts numbers, and has no accuracy."""
        return self.data.name in TABLES


TRIAL: Fields = {
    "method": str,
    "q": (float, None),
    "share": (float, None),
    "value": (float, None),
}
_OF_A_RUN: Fields = {"run": int, **TRIAL}
_TEST: Fields = {"loss": float, "count": (natural, None), "accuracy": (share, None)}
_INDICES: Fields = {
    **dict.fromkeys(("q", "sparsity_index", "pq_index", "effective_number"), float),
    "effective_quantiles": (numbers, None),
    "looseness": ({"neurons": int, "bound": (numbers, None), "tail": (numbers, None)}, None),
}
SCHEMA: Schema = {
    "baseline": Kind(
        {"run": int},
        {"params": natural, "epoch": (int, None), "chance": (float, None), "test": _TEST},
    ),
    "layer": Kind(
        {"run": int, "layer": str},
        {"inputs": int, "neurons": int, "reached": float, "by_q": [_INDICES]},
    ),
    "pruned": Kind(
        _OF_A_RUN,
        {
            **{"pruned": float, "gone": float, "size": int, "left": natural, "test": _TEST},
            "rivals": (dict.fromkeys(SCOPES, (_TEST, None)), None),
        },
    ),
    "tuned": Kind(_OF_A_RUN, {"epoch": (int, None), "curve": (CURVE, None), "test": _TEST}),
    "epoch": EPOCH,
}

NAMES = {
    "magnitude global": "magnitude, global",
    "magnitude layer": "magnitude, layer",
    "magnitude neuron": "magnitude, neuron",
    "abp-m": "ABP-M",
    "sap": "PQ index, layer",
    "tail": "exact tail",
    "abp-l": "ABP-L",
}


@dataclass(frozen=True)
class Trial:
    """One way to prune a network.

    Arguments:
        method: see `Compressibility`.
        q: exponent of "abp-m"; None for all others.
        share: of all weights that go; None in the method's own setting.
        value: that setting, eta of "abp-m" and "sap", the penalty of "abp-l"; None with a share.
    """

    method: str
    q: float | None
    share: float | None
    value: float | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a record that say what was measured."""
        return asdict(self)

    @property
    def curve(self) -> str:
        """What it has in common with those at other shares, as text."""
        name = NAMES[self.method]
        return name if self.q is None else f"{name}, q {self.q:g}"

    @property
    def name(self) -> str:
        """As text."""
        if self.share is not None:
            return f"{self.curve}, share {self.share:g}"
        symbol = "penalty" if self.method == "abp-l" else "eta"
        return f"{self.curve}, {symbol} {self.value:g}"


def enumerate_trials(settings: Compressibility) -> list[Trial]:
    """Every trial of one network, in the order of the report.

    First every method at every share, then those that choose by themselves how much goes.
    """
    trials = [
        Trial(method, q, share)
        for method in settings.methods
        for q in (settings.qs if method == "abp-m" else (None,))
        for share in settings.shares
    ]
    own = [Trial("abp-l", None, None, penalty) for penalty in settings.penalties]
    own += [Trial("abp-m", q, None, 0.0) for q in settings.qs]
    own += [Trial("abp-m", settings.eta_q, None, eta) for eta in settings.etas]
    own.append(Trial("sap", None, None, 0.0))
    return trials + [trial for trial in own if trial.method in settings.methods]
