"""What a refinement returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Epoch(NamedTuple):
    """The losses of an epoch.

    Arguments:
        training: mean over its steps; None before the first.
        held_out: afterwards, of the examples that are held out.
    """

    training: float | None
    held_out: float


@dataclass(frozen=True, eq=False)
class Refined:
    """Refined factors.

    Arguments:
        factors: of the structure that was given; of an NNX model the refined copy.
        curve: the losses of all epochs, the first entry those of the start.
        best: the epoch that the factors are from; 0 for the start.
        learning_rate: the highest; None where the optimiser has its own.
        stopped: why it ended before its last epoch; None where it did not.
        renewed: whether batch statistics were estimated again, and are better so.
        blocks: by path, the losses of each block's outputs before and after, where blocks were
            refined one by one.
    """

    factors: Any
    curve: tuple[Epoch, ...]
    best: int
    learning_rate: float | None
    stopped: str | None = None
    renewed: bool = False
    blocks: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __repr__(self) -> str:
        """How far it came."""
        before, after = self.curve[0].held_out, self.curve[self.best].held_out
        rate = "" if self.learning_rate is None else f", learning rate {self.learning_rate:.2g}"
        blocks = f", {len(self.blocks)} blocks" if self.blocks else ""
        stopped = "" if self.stopped is None else f"; stopped: {self.stopped}"
        return (
            f"Refined(held-out loss {before:.4g} -> {after:.4g}, epoch {self.best} of "
            f"{len(self.curve) - 1}{rate}{blocks}{stopped})"
        )
