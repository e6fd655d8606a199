"""The values that a field may have, declared in its type: `rate: Annotated[float, Range(above=0)]`.

`experiments.workdir.fields` reads and applies them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np

from tdjax.hints import known_are

T = TypeVar("T")

# What a whole number of a compiled program can be, and a seed of JAX.
INT32, SEEDS = 2**31 - 1, 2**32 - 1
# Shares are told apart to six decimals.
STEP = 1e-6


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers between bounds; a number computes in float32, and must still lie there then."""

    above: float = -math.inf
    least: float = -math.inf
    below: float = math.inf
    most: float = math.inf

    def problem(self, value: Any, verb: str) -> str:
        """What a field that `verb` ("is" or "has") this value is refused for, "" for nothing."""
        with np.errstate(over="ignore"):
            computed = float(np.float32(value)) if isinstance(value, float) else value
        # NaN fails each comparison.
        if self.least <= value <= self.most and all(
            self.above < number < self.below for number in (value, computed)
        ):
            return ""
        return f"{verb} {shown(value)}: {self} is needed"

    def __str__(self) -> str:
        """The bounds as messages name them."""
        bounds = ("above", self.above), ("at least", self.least), ("below", self.below)
        words = [
            f"{word} {bound:.10g}"
            for word, bound in (*bounds, ("at most", self.most))
            if math.isfinite(bound)
        ]
        is_open = math.isinf(self.below) and math.isinf(self.most)
        return " and ".join([*words, *(["finite"] if is_open else [])])


@dataclass(frozen=True)
class OneOf:
    """One of some names."""

    names: tuple[str, ...]

    def problem(self, value: Any, verb: str) -> str:
        """See `Range`."""
        if value in self.names:
            return ""
        return f"{verb} {shown(value)}: {known_are(value, self.names)}"


@dataclass(frozen=True)
class OneOfOrOwn(OneOf):
    """One of some names, or "package.module:function"."""

    def problem(self, value: Any, verb: str) -> str:
        """See `Range`."""
        return "" if ":" in value else super().problem(value, verb)


@dataclass(frozen=True)
class Path:
    """The name of a file or folder, there or not."""

    def problem(self, value: Any, verb: str) -> str:
        """See `Range`."""
        if value and "\0" not in value:
            return ""
        return f"{verb} {shown(value)}: the name of a file or folder is needed"


@dataclass(frozen=True)
class Listed:
    """Entries of which none comes twice; numbers that read the same to six digits are the same.

    Arguments:
        least: number of entries.
    """

    least: int = 1

    def problem(self, value: Any, verb: str) -> str:
        """See `Range`."""
        names = [f"{entry:g}" if type(entry) is float else str(entry) for entry in value]
        if len(names) >= self.least and len(set(names)) == len(names):
            return ""
        digits = ": numbers count to six digits" if any(type(v) is float for v in value) else ""
        wanted = "at least one, and none twice" if self.least else "none twice"
        return f"must list {wanted}, but {verb} {shown(value)}{digits}"


def shown(value: Any) -> str:
    """A value as a message shows it: in one line that is not too long."""
    try:
        text = repr(value).replace("\n", " ")
    except ValueError:
        # Python does not write whole numbers of thousands of digits.
        return "too long to be shown"
    return text if len(text) <= 80 else f"{text[:70]}..."


# Whole numbers.
Count = Annotated[int, Range(least=0, most=INT32)]
Natural = Annotated[int, Range(least=1, most=INT32)]
# How often something long is done again.
Repeats = Annotated[int, Range(least=1, most=1000)]
Epochs = Annotated[int, Range(least=0, most=1_000_000)]
Sweeps = Annotated[int, Range(least=1, most=100_000)]
Seed = Annotated[int, Range(least=0, most=SEEDS)]
# Numbers.
# Above, no training stays finite.
Rate = Annotated[float, Range(above=0, most=1000)]
Share = Annotated[float, Range(least=STEP, most=1 - STEP)]
# A share that may be none, but not all.
Part = Annotated[float, Range(least=0, below=1)]
# Names.
FileName = Annotated[str, Path()]
# Choices to be tried.
Choices = Annotated[tuple[T, ...], Listed()]
# Choices that may be none.
Wishes = Annotated[tuple[T, ...], Listed(least=0)]
