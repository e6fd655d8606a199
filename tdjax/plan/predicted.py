"""Seconds that a plan is predicted to take, from timings of its layers one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tdjax.plan.printing import Table

# Of a network's seconds, how far those of its parts may be from them without a word.
LITTLE = 0.02


@dataclass(frozen=True)
class LayerSeconds:
    """Seconds of all calls of one layer for a batch.

    Arguments:
        path: of the layer.
        before, after: dense, and as it is planned.
    """

    path: str
    before: float
    after: float


@dataclass(frozen=True)
class Predicted:
    """Seconds of one call of a network, added up from timings of its layers.

    Arguments:
        device: on which the layers were timed.
        batch: examples of a call.
        network: seconds of the dense network, timed as a whole.
        rest: seconds of what belongs to no timed layer, the same before and after.
        layers: those that were timed, as a plan computes them: the dense network may be slower
            than these and the rest, see docs/guides/speed.md.
    """

    device: str
    batch: int
    network: float
    rest: float
    layers: tuple[LayerSeconds, ...]

    @property
    def before(self) -> float:
        """Of the whole dense network."""
        return self.network

    @property
    def beyond(self) -> float:
        """What the dense network takes beyond its parts; 0 where it is little or less."""
        found = self.network - self._parts
        return found if found > LITTLE * self.network else 0.0

    @property
    def _parts(self) -> float:
        """Of the dense network, the layers and the rest added up."""
        return self.rest + sum(own.before for own in self.layers)

    @property
    def after(self) -> float:
        """Of the whole factorised network."""
        return self.rest + sum(own.after for own in self.layers)

    @cached_property
    def _by_path(self) -> dict[str, LayerSeconds]:
        return {own.path: own for own in self.layers}

    def cells(self, paths: Sequence[str]) -> tuple[str, str]:
        """What a table says of layers that share a row."""
        timed = [self._by_path[path] for path in paths if path in self._by_path]
        if not timed:
            return ("", "")
        return _change(sum(own.before for own in timed), sum(own.after for own in timed))

    def __str__(self) -> str:
        """One line."""
        examples = f"{self.batch} example" + "s" * (self.batch != 1)
        line = f"time: predicted from timings of the layers, {examples} on {self.device}"
        more = self._parts / self.network - 1
        if more > LITTLE:
            line += (
                f"; the parts add up to {100 * more:.3g} % more than the network took: time it "
                "again while nothing else runs"
            )
        return line


def with_times(table: Table, predicted: Predicted, paths: Sequence[Sequence[str]]) -> Table:
    """A plan's table with two columns for the predicted seconds.

    Arguments:
        paths: of the layers of each of the first rows.
    """
    cells = [predicted.cells(own) for own in paths]
    cells += [("", "")] * (len(table.rows) - len(cells))
    rows = [(*row, *own) for row, own in zip(table.rows, cells, strict=True)]
    empty = [""] * (len(table.header) - 1)
    if predicted.rest:
        rows.append(("(the rest)", *empty, *_change(predicted.rest, predicted.rest)))
    if predicted.beyond:
        rows.append(("(beyond its parts)", *empty, f"{1e3 * predicted.beyond:.3g} -> 0 ms", ""))
    return Table(
        (*table.header, "time", ""),
        rows,
        (*table.total, *_change(predicted.before, predicted.after)),
        table.notes,
        (*table.numbers, len(empty) + 1, len(empty) + 2),
        (*table.spare, (len(empty) + 1, len(empty) + 2)),
    )


def _change(before: float, after: float) -> tuple[str, str]:
    """Seconds before and after as people read them, in milliseconds, and the share that is kept."""
    if after == before:
        return f"{1e3 * before:.3g} ms", ""
    share = f"{100 * after / before:.1f} %" if before else ""
    return f"{1e3 * before:.3g} -> {1e3 * after:.3g} ms", share


def predicted_problem(found: Predicted, paths: set[str]) -> tuple[str, str] | None:
    """The field that cannot be, and why; None where all can.

    Arguments:
        paths: of the plan's layers.
    """
    if found.batch < 1:
        return "batch", "must be at least 1"
    if not 0 < found.network < math.inf:
        return "network", "holds what no clock shows"
    if not 0 <= found.rest < math.inf:
        return "rest", "holds what no clock shows"
    seen = [own.path for own in found.layers]
    unknown = [path for path in seen if path not in paths or seen.count(path) > 1]
    if unknown:
        return "layers", f"{unknown[0]!r} is no layer of the plan, or is there twice"
    if not all(0 < number < math.inf for own in found.layers for number in (own.before, own.after)):
        return "layers", "holds what no clock shows"
    return None
