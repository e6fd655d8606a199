"""What the experiment measures: every method at every share, and in its own settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from experiments.compressibility.settings import Compressibility
from experiments.workdir.journal import Fields, Kind, Schema, share

TRIAL: Fields = {
    "method": str,
    "q": (float, None),
    "share": (float, None),
    "value": (float, None),
}
_OF_A_RUN: Fields = {"run": int, **TRIAL}
_TEST: Fields = {"loss": float, "accuracy": (share, None)}
_INDICES: Fields = dict.fromkeys(("q", "sparsity_index", "pq_index", "effective_number"), float)
SCHEMA: Schema = {
    "baseline": Kind({"run": int}, {"params": int, "test": _TEST}),
    "layer": Kind(
        {"run": int, "layer": str},
        {"inputs": int, "neurons": int, "reached": float, "by_q": [_INDICES]},
    ),
    "pruned": Kind(
        _OF_A_RUN, {"pruned": float, "gone": float, "size": int, "left": int, "test": _TEST}
    ),
    "tuned": Kind(_OF_A_RUN, {"test": _TEST}),
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
