"""The published values of Kendall's tau, to set beside measured ones.

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

    def by_compression(self, subset: str, phase: str, compression: float) -> PublishedTau | None:
        """Over layers and methods at one compression (Relative Weights)."""
        keep = str(round(100 * (1 - compression)))
        return _tau(self.values.get("by_keep", {}).get(f"{subset}/{phase}", {}).get(keep))

    def by_error(self, subset: str, phase: str, error: str) -> PublishedTau | None:
        """Over all choices that keep at most half, for one of the six errors."""
        return _tau(self.values.get("all_choices", {}).get(f"{subset}/{phase}", {}).get(error))

    def by_scope(self, subset: str, phase: str, scope: str) -> PublishedTau | None:
        """Over layers only, methods only, or all choices (Relative Weights)."""
        if scope == "all":
            return self.by_error(subset, phase, RELATIVE_WEIGHTS)
        return _tau(self.values.get(f"{scope}_only", {}).get(f"{subset}/{phase}"))


def _tau(value: dict[str, float] | None) -> PublishedTau | None:
    return None if value is None else PublishedTau(float(value["mean"]), float(value["std"]))


def published_study(name: str | None) -> PublishedStudy:
    """The published values for `name`, such as "resnet18/cifar10"; None has no value at all.

    Raises `ValueError` that lists the known names for another one.
    """
    if name is None:
        return PublishedStudy({})
    path = resources.files("experiments.error_study") / "published" / "tau.json"
    known = json.loads(path.read_text(encoding="utf-8"))
    known.pop("note")
    if name not in known:
        raise ValueError(
            f"published values of {name!r} are unknown; known are: {', '.join(sorted(known))}"
        )
    return PublishedStudy(known[name])
