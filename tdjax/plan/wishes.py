"""What a person asks of a budget for a whole network, beside its size."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, fields

from tdjax.decompose.inputs import check_whole
from tdjax.hints import known_are
from tdjax.plan.form import METHODS
from tdjax.plan.rules import check_pattern, check_share


@dataclass(frozen=True, kw_only=True)
class BudgetRule:
    """Bounds for the layers whose path matches; within them `tdjax.allocate` chooses.

    A `tdjax.Rule` among the rules of a budget leaves no choice: its layers get its format and
    ranks. This one keeps them dense, or says what they may get. What is left out is not bounded.

        >>> import tdjax
        >>> tdjax.BudgetRule(path="head", dense=True).dense
        True
        >>> tdjax.BudgetRule(path="block.*", methods=["svd"], min_share=0.25, multiple_of=8).methods
        ('svd',)

    Arguments:
        path: regular expression that must match the whole '/'-joined module path.
        dense: whether they stay as they are; no other bound can then be given.
        methods: formats to choose from, in place of those of the budget; one pins the format.
        min_share, max_share: of a layer's weight parameters that it keeps, in (0, 1), whatever the
            budget counts. A layer with a `max_share` does not stay dense, unless nothing makes it
            smaller.
        min_rank: least of all ranks; a mode that has no more keeps what it has.
        multiple_of: what divides all ranks, as 8 for matrix units, in place of the budget's; a
            mode of another size may stay whole.

    Raises ValueError for a pattern that does not compile, an unknown method, values out of range
    or at odds with each other, TypeError for values of a wrong kind.
    """

    path: str
    dense: bool = False
    methods: Sequence[str] | None = None
    min_share: float | None = None
    max_share: float | None = None
    min_rank: int | None = None
    multiple_of: int | None = None

    def __post_init__(self) -> None:
        """Refuse a rule that cannot mean anything, before it meets a model."""
        check_pattern(self, self.path)
        if not isinstance(self.dense, bool):
            raise TypeError(f"{self}: dense {self.dense!r} is no bool; pass True or False")
        bounds = [f.name for f in fields(self) if f.default is None]
        given = [name for name in bounds if getattr(self, name) is not None]
        if self.dense and given:
            raise ValueError(
                f"{self}: what stays dense has no {' and no '.join(given)}; leave out one or the "
                "other"
            )
        for name in given:
            value = getattr(self, name)
            if name == "methods":
                object.__setattr__(self, "methods", _methods(self))
            elif name.endswith("share"):
                check_share(self, name, value, "; leave it out for no bound")
                object.__setattr__(self, name, float(value))
            else:
                check_whole(value, f"{self}: {name}")
                if value < 1:
                    raise ValueError(f"{self}: {name} must be at least 1, got {value}")
                # NumPy's numbers would end up in the ranks of a plan.
                object.__setattr__(self, name, int(value))
        if (self.min_share or 0) > (self.max_share or 1):
            raise ValueError(
                f"{self}: min_share {self.min_share} is above max_share {self.max_share}"
            )

    def __str__(self) -> str:
        """The rule as messages name it."""
        return f"BudgetRule {self.path!r}"


def _methods(rule: BudgetRule) -> tuple[str, ...]:
    """The methods of a rule, checked."""
    given = rule.methods
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(f"{rule}: methods {given!r} is no sequence; pass names, as ('svd',)")
    if not given:
        raise ValueError(f"{rule}: methods must name at least one; dense=True asks for none")
    for method in given:
        if method not in METHODS:
            raise ValueError(f"{rule}: methods {method!r}: {known_are(method, METHODS)}")
    return tuple(given)


@dataclass(frozen=True)
class LossRise:
    """How far the mean loss of an example may rise, as moments predict it: a target for budgets.

        >>> import tdjax
        >>> tdjax.LossRise(0.05).rise
        0.05

    Arguments:
        rise: above 0, in the units of the `loss_fn` that the moments were collected with.

    Raises TypeError for something that is no number, ValueError for one that is not above 0.
    """

    rise: float

    def __post_init__(self) -> None:
        """Refuse what is no rise."""
        if isinstance(self.rise, bool) or not isinstance(self.rise, numbers.Real):
            raise TypeError(f"LossRise: rise {self.rise!r} is no number; pass a rise, as 0.05")
        if not 0 < self.rise < math.inf:
            raise ValueError(f"LossRise: rise must be finite and above 0, got {self.rise}")
        object.__setattr__(self, "rise", float(self.rise))
