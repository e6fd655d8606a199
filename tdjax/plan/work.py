"""What a network multiplies for one example, where not all of it runs: exact counts, conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

# Of what a batch shares, such as a product of arrays of the model's own, an example has a part.
Count: TypeAlias = int | Fraction


def exact(number: Count, among: Count = 1) -> Count:
    """A share of a number, as an int where it is one."""
    share = Fraction(number) / among
    return share.numerator if share.denominator == 1 else share


def count_text(number: Count) -> str:
    """A count as people read it."""
    return f"{number:,}" if isinstance(number, int) else f"{float(number):,.2f}"


@dataclass(frozen=True)
class Use:
    """How often one example passes a layer.

    Arguments:
        path: of the layer.
        positions, lookups: as of `tdjax.plan.layers.Layer`.
    """

    path: str
    positions: Count
    lookups: Count


@dataclass(frozen=True)
class Work:
    """What a program does for one example.

    Arguments:
        other: multiply-accumulates that belong to no layer.
        uses: of the layers, each once.
        conditions: for each the work of its branches, of which one runs.
    """

    other: Count
    uses: tuple[Use, ...]
    conditions: tuple[tuple[Work, ...], ...]

    def macs(self, of_use: Callable[[Use], Count]) -> Count:
        """Its multiply-accumulates, of the branches of a condition those of the costliest."""
        branches = (max(one.macs(of_use) for one in branches) for branches in self.conditions)
        return exact(self.other + sum(map(of_use, self.uses)) + sum(branches))

    @property
    def parts(self) -> Iterator[Work]:
        """Itself and the branches of all its conditions."""
        yield self
        for branches in self.conditions:
            for branch in branches:
                yield from branch.parts

    @property
    def at_most(self) -> Work:
        """Without conditions: each layer as often as in the branch that has it most."""
        most = [_most([branch.at_most for branch in branches]) for branches in self.conditions]
        return joined([Work(self.other, self.uses, ()), *most])


NO_WORK = Work(0, (), ())


def joined(works: Sequence[Work]) -> Work:
    """All of several works, one after the other."""
    positions: dict[str, Count] = {}
    lookups: dict[str, Count] = {}
    for use in (use for work in works for use in work.uses):
        positions[use.path] = exact(positions.get(use.path, 0) + use.positions)
        lookups[use.path] = exact(lookups.get(use.path, 0) + use.lookups)
    uses = (Use(path, positions[path], lookups[path]) for path in sorted(positions))
    conditions = [branches for work in works for branches in work.conditions]
    return Work(exact(sum(work.other for work in works)), tuple(uses), tuple(conditions))


def one_of(branches: Sequence[Work]) -> Work:
    """The work of a condition; that of a branch which has at least as much of all as any other."""
    if all(not branch.conditions for branch in branches):
        most = _most(branches)
        if most in branches or most == NO_WORK:
            return most
    return Work(0, (), (tuple(branches),))


def _most(branches: Sequence[Work]) -> Work:
    """The most of all that branches without conditions have, each for itself."""
    every: dict[str, list[Use]] = {}
    for use in (use for branch in branches for use in branch.uses):
        every.setdefault(use.path, []).append(use)
    uses = (
        Use(path, max(use.positions for use in own), max(use.lookups for use in own))
        for path, own in sorted(every.items())
    )
    return Work(max(branch.other for branch in branches), tuple(uses), ())
