"""Rises of the loss that were measured, and what they say of those that were predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

# What is believed at most: a measured rise so many times the prediction, or its part.
MOST = 10.0
# The slope of a corrected rise is taken between the rise divided by this and times this.
REACH = 1.5

Rises = Float[np.ndarray, " k"]


@dataclass(frozen=True, eq=False)
class GroupRises:
    """What compressing some layers alone did to the loss, at each of k budgets.

    A measured rise is noise as far as its standard error says so: the logarithm of its ratio to the
    prediction is shrunk towards zero by 1 + (error / rise)^2, the rise being at least its error, so
    that one that is negative, or zero within its error, halves that. No ratio is more than ten, or
    less than a tenth.

    Arguments:
        paths: of the layers.
        predicted: (k,), float64, by strategy "loss".
        measured: (k,), float64, the change of the mean loss.
        errors: (k,), float64, standard errors of that.
    """

    paths: tuple[str, ...]
    predicted: Rises
    measured: Rises
    errors: Rises

    @cached_property
    def points(self) -> tuple[Rises, Rises]:
        """Predicted rises, increasing, and the corrected ones, which do not decrease."""
        some = self.predicted > 0
        predicted, noise = self.predicted[some], self.errors[some]
        known = np.maximum(self.measured[some], noise)
        known = np.clip(known, predicted / MOST, predicted * MOST)
        shrinking = 1 + np.square(np.minimum(noise / known, MOST))
        logs = np.log(known / predicted) / shrinking
        places, which = np.unique(predicted, return_inverse=True)
        mean = np.bincount(which, logs) / np.bincount(which)
        return places, np.maximum.accumulate(places * np.exp(mean))

    def corrected(self, rise: float) -> float:
        """The rise that is to be expected where this is predicted: monotone, 0 for 0.

        Between what was measured the logarithm is interpolated; beyond, the ratio stays.
        """
        places, found = self.points
        if not len(places) or rise <= 0:
            return max(rise, 0.0)
        if rise <= places[0] or rise >= places[-1]:
            end = 0 if rise <= places[0] else -1
            return float(rise * found[end] / places[end])
        return float(np.exp(np.interp(np.log(rise), np.log(places), np.log(found))))

    def slope(self, rise: float) -> float:
        """How much the corrected rise grows with the predicted one, around this one."""
        if not len(self.points[0]):
            return 1.0
        middle = rise if rise > 0 else float(self.points[0][0])
        low, high = middle / REACH, middle * REACH
        return (self.corrected(high) - self.corrected(low)) / (high - low)


@dataclass(frozen=True, eq=False)
class MeasuredRises:
    """What compressing groups of layers did to the loss, for `tdjax.allocate`.

    Arguments:
        groups: each compressed alone.
        together: all of them; of it `predicted` is the sum of the groups' corrected rises.
    """

    groups: tuple[GroupRises, ...]
    together: GroupRises

    @property
    def paths(self) -> tuple[str, ...]:
        """Of all layers, group by group."""
        return tuple(path for group in self.groups for path in group.paths)

    def apart(self, rises: Mapping[str, float]) -> float:
        """The sum of the corrected rises of the groups, from what is predicted for layers.

        Arguments:
            rises: by path; layers of no group count as predicted.
        """
        known = set(self.paths)
        rest = sum(rise for path, rise in rises.items() if path not in known)
        return rest + sum(group.corrected(_sum_of(group, rises)) for group in self.groups)

    def factors(self, rises: Mapping[str, float]) -> dict[str, float]:
        """By path of a layer, how much the sum over groups grows with what is predicted for it."""
        return {
            path: group.slope(_sum_of(group, rises))
            for group in self.groups
            for path in group.paths
        }

    def __repr__(self) -> str:
        """A line for each group: measured over predicted rises, by budget."""
        lines = ["rises measured of those predicted, by budget"]
        for name, group in [*((_name(own), own) for own in self.groups), ("all", self.together)]:
            pairs = zip(group.measured, group.predicted, strict=True)
            texts = ", ".join(f"{one:.3g} of {other:.3g}" for one, other in pairs)
            lines.append(f"{name}: {texts}")
        return "\n".join(lines)


def _name(group: GroupRises) -> str:
    """Its first layer, and how many more."""
    more = f" and {len(group.paths) - 1} more" if len(group.paths) > 1 else ""
    return f"{group.paths[0] or '(model)'}{more}"


def _sum_of(group: GroupRises, rises: Mapping[str, float]) -> float:
    return sum(rises.get(path, 0.0) for path in group.paths)
