"""The layers of a plan's pairs, from parameters and moments, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from tdjax.decompose.dealing import in_this_process
from tdjax.decompose.threads import side_by_side
from tdjax.params.bias import can_correct
from tdjax.params.kernels import Weights
from tdjax.params.options import Options
from tdjax.params.pairs import Member, PairFactors, decompose_pair, decompose_scores
from tdjax.params.partitioning import unboxed
from tdjax.params.tree import layer_params
from tdjax.plan.pair import Pair
from tdjax.plan.pairing import Paired
from tdjax.plan.plan import PlannedLayer

# Pairs that are wider take the memory of several, and keep several cores busy: each by itself.
WIDEST = 4096


class _Work(NamedTuple):
    """What a pair is decomposed from.

    Arguments:
        corrected: whether the consumer's bias takes on what the mean of what it reads loses.
    """

    pair: Pair
    producers: list[Member]
    consumer: Member
    corrected: bool

    @property
    def width(self) -> int:
        """Of what passes between the layers."""
        layer = self.consumer.layer
        return layer.kernel_shape[-1 if self.pair.scores else 0]


def factorised_pairs(
    params: Mapping[str, Any],
    pairs: Sequence[Paired],
    weights: Mapping[str, Weights],
    options: Options,
) -> dict[str, PairFactors]:
    """What becomes of the layers of pairs, by path.

    Raises ValueError where moments are missing, or arrays are being traced; it names the layer.
    """
    # All processes take part in gathering arrays, and so in one order.
    work = [_work(params, pair, weights, options) for pair in pairs]
    found = side_by_side(_decomposed, work, lambda own: own.width <= WIDEST, lambda own: own.width)
    return {path: own for made in found for path, own in made.items()}


def _work(
    params: Mapping[str, Any], pair: Paired, weights: Mapping[str, Weights], options: Options
) -> _Work:
    path, moments = pair.consumer.layer.path, options.moments
    if path not in weights or moments is None:
        raise ValueError(
            f"layer {path!r} is in a pair, of which moments of what it reads tell what is kept: "
            "give moments=, from tdjax.collect_moments"
        )

    def member(entry: PlannedLayer) -> Member:
        path, storage = entry.layer.path, entry.layer.storage
        held = layer_params(params, path)
        array, bias = unboxed(held[storage.name]), unboxed(held.get("bias"))
        known = (array, bias, *weights[path], moments[path].mean)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in known):
            raise ValueError(
                f"layer {path!r}: pairs are decomposed on the host, not inside of jax.jit or "
                "jax.vmap"
            )
        array, bias, inputs, outputs, mean = jax.tree.map(in_this_process, known)
        return Member(entry, array, bias, Weights(inputs, outputs), mean)

    corrected = options.correct_bias and can_correct(pair.consumer, layer_params(params, path))
    producers = [member(own) for own in pair.producers]
    return _Work(pair.pair, producers, member(pair.consumer), corrected)


def _decomposed(work: _Work) -> dict[str, PairFactors]:
    pair, producers, consumer, corrected = work
    if pair.scores:
        return decompose_scores(producers[0], consumer, pair)
    return decompose_pair(producers, consumer, pair, corrected=corrected)
