"""What pairs of layers lose: by what passes no more, and by rounding the kernels that are kept.

A change E of what a producer puts out of the kept z B reaches the outputs through the consumer's
new kernel Q = P W, so that the dense producer would have had to change by E P for the same: what
that loses its moments tell. Of query and key P is the other's part of the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from tdjax.allocation.choices import Choices
from tdjax.allocation.evidence import Evidence
from tdjax.allocation.rounding import between
from tdjax.params.kernels import Weights
from tdjax.params.matrices import Matrix, kernels_of, moments_of
from tdjax.params.pairs import Passage, Seen, losses, passage, seen
from tdjax.params.scores import End, Heads, Sides, ends_of, sides
from tdjax.params.stored import rounded
from tdjax.plan.dtypes import FLOAT32
from tdjax.plan.layers import Inventory, Layer
from tdjax.plan.pair import Pair

Errors = Float[np.ndarray, " _"]
Single = Float[np.ndarray, "_ _"]
# Shares of what may pass at which rounding is looked at; between them its loss is interpolated.
SAMPLED = (0.05, 0.35, 0.9)


class Part(NamedTuple):
    """The kernel of a layer, one but of a stack, and what a change of it is weighed by.

    In float32, as differences of losses are nothing here.

    Arguments:
        kernel: (in, out).
        inputs: the moment of what it reads.
        outputs: of the gradient at what it puts out.
    """

    kernel: Single
    inputs: Single
    outputs: Single

    @classmethod
    def of(cls, *own: Matrix) -> Part:
        """From matrices in other numbers."""
        return cls(*(matrix.astype(np.float32) for matrix in own))

    def kept(self, found: Passage, rank: int, back: Matrix) -> Part:
        """What is kept of a producer.

        Arguments:
            back: P, (kept, out).
        """
        kernel, back = found.produced(self.kernel, rank), back.astype(np.float32)
        return Part.of(kernel, self.inputs, back @ self.outputs @ back.T)

    def rounded(self, dtype: str) -> float:
        """tr(G E^T S E) of what storing it in other numbers changes."""
        change = self.kernel - rounded(self.kernel, dtype, stacked=False)
        return float(np.vdot(self.inputs @ change, change @ self.outputs))


@dataclass(frozen=True, eq=False)
class PairLosses:
    """What a pair loses, found when it is first asked for.

    Arguments:
        dtypes: numbers that it may be stored in.
        make: what is known of it, which takes much memory.
    """

    dtypes: Sequence[str]
    make: Callable[[], KnownPair]

    def of(self, own: Choices) -> Errors:
        """What choices lose, all of them in the same numbers."""
        (left_out, rounded), ranks = self._found, own.ranks[:, 0]
        if own.dtype is None:
            return np.asarray(left_out[ranks])
        lost = [losses[own.dtype] for losses in rounded.values()]
        return np.asarray(left_out[ranks] + between(list(rounded), lost, ranks))

    @cached_property
    def _found(self) -> tuple[Errors, dict[int, dict[str, float]]]:
        """What all that passes no more loses, at every rank, and rounding, at some."""
        known = self.make()
        left_out = known.left_out()
        sampled = np.rint(np.array(SAMPLED) * (len(left_out) - 1)).astype(int)
        fewer = [own for own in self.dtypes if own != FLOAT32]
        ranks = np.unique(np.maximum(sampled, 1)).tolist() if fewer else []
        return left_out, {rank: known.rounded(rank, fewer) for rank in ranks}


@dataclass(frozen=True, eq=False)
class KnownPair:
    """A pair, and all that is known of it.

    Arguments:
        model: the network.
        producers, consumer: see `tdjax.Pair`; a query and a key, of scores.
        pair: of them.
    """

    evidence: Evidence
    model: Inventory
    producers: Sequence[Layer]
    consumer: Layer
    pair: Pair

    def left_out(self) -> Errors:
        """What all that passes no more loses, at every rank, beginning with nothing."""
        if self.pair.scores:
            every = [np.min([side.losses for side in own], axis=0) for own in self._sides]
        else:
            every = list(map(losses, self._seen, self._passages))
        return np.asarray(self._scale(self.consumer) * np.sum(every, axis=0))

    def rounded(self, rank: int, dtypes: Sequence[str]) -> dict[str, float]:
        """What rounding makes all its layers lose at one rank."""
        parts = self._kept_scores(rank) if self.pair.scores else self._kept(rank)
        return {own: sum(part.rounded(own) for part in parts) for own in dtypes}

    def _kept(self, rank: int) -> list[Part]:
        made = []
        for number, (own, found) in enumerate(zip(self._seen, self._passages, strict=True)):
            passing = found.read.produced(own.moment, rank)
            gram = found.read.produced(passing.T, rank)
            back = np.linalg.solve(gram, passing.T)
            consumer = self._parts[-1][number]
            made.append(Part.of(back @ own.kernel, gram, consumer.outputs))
            back = self._of_producers(back)
            made += [layer[number].kept(found, rank, back) for layer in self._parts[:-1]]
        return made

    def _kept_scores(self, rank: int) -> list[Part]:
        made, repeats = [], self.pair.repeats
        for number, every in enumerate(self._sides):
            best = min(every, key=lambda side: side.losses[rank])
            query, key = (layer[number] for layer in self._parts)
            met = np.repeat(best.key, repeats, axis=0)
            made.append(query.kept(Passage(None, best.query), rank, _back(met, rank)))
            # Heads of queries that meet one of keys have the same columns.
            met = best.query[::repeats]
            made.append(key.kept(Passage(None, best.key), rank, _back(met, rank)))
        return made

    def _of_producers(self, back: Matrix) -> Matrix:
        """P of what producers put out, from that of what the consumer reads.

        Of heads that it reads several times the mean of what their changes are there.
        """
        heads, repeats = self.pair.heads or 1, self.pair.repeats
        parts = back.reshape(heads, repeats, -1, heads, repeats, back.shape[1] // heads // repeats)
        return parts.sum(axis=1).mean(axis=3).reshape(len(back) // repeats, -1)

    @cached_property
    def _seen(self) -> list[Seen]:
        array = self.evidence.weights_of(self.consumer)
        return seen(array, self.consumer, self._weights(self.consumer))

    @cached_property
    def _passages(self) -> list[Passage]:
        return [passage(own, self.pair) for own in self._seen]

    @cached_property
    def _sides(self) -> list[list[Sides]]:
        heads, repeats = self.pair.heads, self.pair.repeats
        assert heads is not None
        queries, keys = map(self._ends, (*self.producers, self.consumer))
        return [sides(*both, heads, repeats) for both in zip(queries, keys, strict=True)]

    def _ends(self, layer: Layer) -> list[End]:
        """What a query or a key puts out."""
        mean, bias = self.evidence.moments_of(layer).mean, self.model.bias_of(layer)
        array = self.evidence.weights_of(layer)
        return ends_of(layer, array, bias, self._weights(layer), mean)

    @cached_property
    def _parts(self) -> list[list[Part]]:
        """All its layers, the consumer last, weighed to the rise of an example's loss."""
        return [self._parts_of(layer) for layer in (*self.producers, self.consumer)]

    def _parts_of(self, layer: Layer) -> list[Part]:
        kernels = kernels_of(self.evidence.weights_of(layer), layer)
        ends = (moments_of(own, layer) for own in self._weights(layer))
        found, scale = [], self._scale(layer)
        for kernel, inputs, outputs in zip(kernels, *ends, strict=True):
            assert inputs is not None
            # Where no example's loss depends on what it puts out, nothing is lost.
            known: Any = np.zeros((kernel.shape[-1],) * 2) if outputs is None else outputs
            found.append(Part.of(kernel, inputs, scale * known))
        return found

    def _weights(self, layer: Layer) -> Weights:
        moments = self.evidence.moments_of(layer)
        return Weights(moments.inputs, moments.outputs)

    def _scale(self, layer: Layer) -> float:
        """From tr(G E^T S E) to the rise of an example's loss."""
        moments = self.evidence.moments_of(layer)
        return 0.5 * float(moments.rows) / float(moments.examples)


def _back(columns: Heads, rank: int) -> Matrix:
    """The transposed columns of each head as the blocks of one matrix."""
    heads, size, _ = columns.shape
    made = np.zeros((heads, rank, heads, size))
    for head in range(heads):
        made[head, :, head] = columns[head, :, :rank].T
    return made.reshape(heads * rank, heads * size)
