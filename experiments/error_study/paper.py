"""The published values of Kendall's tau, to set beside measured ones, and the published ranks.

Source: Schuurmans et al., ICLR 2023 (arXiv 2305.05318), computed from the authors' released tables.
"""

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from experiments.error_study.error_names import RELATIVE_WEIGHTS


@dataclass(frozen=True)
class PublishedTau:
    """Mean and standard deviation (ddof=1) of tau over the 5 published runs."""

    mean: float
    std: float


@dataclass(frozen=True)
class PublishedStudy:
    """The values of one network and data set; a value that is not published is None."""

    values: dict[str, Any]

    def tau(self, kind: str, subset: str, phase: str, value: Any) -> PublishedTau | None:
        """The value beside a measured one; what is measured by kind, see `tables.TauTable`."""
        if kind == "compression":
            table, name = "by_keep", str(round(100 * (1 - value)))
        elif kind == "error":
            table, name = "all_choices", value
        elif value == "all":
            table, name = "all_choices", RELATIVE_WEIGHTS
        else:
            table, name = f"{value}_only", None
        found = self.values.get(table, {}).get(f"{subset}/{phase}", {})
        found = found if name is None else found.get(name)
        return PublishedTau(**found) if found else None


def published_study(name: str | None) -> PublishedStudy:
    """The published values for `name`, such as "resnet18/cifar10"; None has no value at all.

    Raises `ValueError` that lists the known names for another one.
    """
    if name is None:
        return PublishedStudy({})
    known = _published("tau")
    if name not in known:
        raise ValueError(
            f"published values of {name!r} are unknown; known are: {', '.join(sorted(known))}"
        )
    return PublishedStudy(known[name])


def published_ranks(name: str) -> dict[str, Any]:
    """The published ranks of a network by layer, such as "garipovnet".

    Raises ValueError that lists the known names for another one.
    """
    known = _published("ranks")
    if name not in known:
        names = ", ".join(("rule", *known))
        raise ValueError(f"config field 'decompose.ranks' is {name!r}: known are {names}")
    return known[name]


def published_names(table: str) -> tuple[str, ...]:
    """What `published_study` ("tau") or `published_ranks` ("ranks") knows."""
    return tuple(sorted(_published(table)))


def _published(name: str) -> dict[str, Any]:
    path = resources.files("experiments.error_study") / "published" / f"{name}.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    known.pop("note")
    return known
