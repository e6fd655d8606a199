"""Which way computes a layer, from shapes alone: rules with measured grounds.

Measured on 2 cores of a CPU (Intel Xeon, jaxlib 0.10, other work on the machine), 3x3 layers with a
quarter of their parameters in the way that is chosen here, as times faster than the dense layer
(its multiply-accumulates are 4 times as many), calls of a layer alone, medians of 12 rounds of
`python -m benchmarks.ways`:

| layer                   | Tucker | low rank | rows | CP  | TT   | splits |
|-------------------------|--------|----------|------|-----|------|--------|
| 16 -> 16, 32x32, of 8   | 0.9    | 0.9      | 1.2  | 2.0 | 0.9  | 0.9    |
| 32 -> 32, 16x16, of 32  | 0.9    | 1.3      | 1.6  | 1.0 | 1.3  | 1.0    |
| 64 -> 64, 8x8, of 32    | 1.7    | 2.2      | 2.3  | 1.4 | 1.9  | 1.0    |
| 64 -> 64, 56x56, of 1   | 1.7    | 2.0      | 2.6  | 1.6 | 1.9  | 0.9    |
| 64 -> 64, 56x56, of 16  | 1.7    | 1.9      | 2.3  | 1.0 | 2.2  | 1.5    |
| 128 -> 128, 28x28, of 1 | 2.1    | 2.8      | 3.2  | 2.1 | 2.2  | 1.2    |
| 256 -> 256, 14x14, of 1 | 2.8    | 3.3      | 3.4  | 2.1 | 1.7  | 2.8    |
| 512 -> 512, 7x7, of 1   | 3.0    | 3.1      | 4.5  | 3.7 | 2.9  | 2.8    |

The costs below were fitted to the 96 cases of that benchmark on that machine, these and those with
half of the parameters, before factors were padded and 1x1 stages were products. Of these cases, 92
of the choices between the chain and the dense kernel are right, the others lose less than a tenth;
where it is close, costs are 19 % off in the median. On GPU and TPU XLA's own is not known to be
slow: there it computes everything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from tdjax.plan.layers import CONVOLUTIONS, Layer
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.stage import Stage, is_depthwise, whole
from tdjax.plan.ways import PRODUCT, RECONSTRUCT, SHIFTED, SPLIT, WAYS, XLA, can_take

CPU = "cpu"
# More taps than a 4x4 window has are more passes over the map than were measured.
MOST_TAPS = 16
# XLA's convolution with feature groups is the faster with fewer channels in each, and so many
# convolutions are more programs than are worth their compilation.
LEAST_SPLIT, MOST_SPLITS = 16, 16
# The examples of a batch whose number is not known, as in an exported program.
UNKNOWN_BATCH = 32
# Channels and features of a 1x1 stage from which on a product is the faster.
LEAST_PRODUCT = 16
# On so few places of all maps, from so many channels, the product of all patches is the faster.
FEW_PLACES, WIDE = 64, 128
# XLA computes features by tiles, of which the widest that does not fill up is slow: above the first
# number and below the second, that many features take less time.
TILES = ((12, 16), (24, 32), (48, 64))
# So few channels are not made more.
NARROWEST = 4
# From fewer channels than these it is slow between these numbers of features.
FEW_INPUTS, SLOW_TILES = 4, (16, 48)
# Numbers of a map that stays in the cache while it is shifted.
CACHED = 2**20
# What a multiply-add of a shifted map takes, in multiply-accumulates of a wide dense convolution:
# where the map stays in the cache, and where it does not.
CACHED_SHIFT, SHIFT = 30, 80
# Channels of a feature group from which on its convolution is as fast as a dense one.
FULL_GROUP = 36
# By XLA's convolution with feature groups it takes so much longer than split.
UNSPLIT = 1.7
# A written number takes the time of so many multiply-accumulates.
WRITE = 72
# Numbers in a vector; narrower stages compute whole ones too.
VECTOR = 8
# A 1x1 stage of n channels takes 1 + NARROW / n times as long as its multiply-accumulates.
NARROW = 32


def way_of(
    kernel_shape: Sequence[int], groups: int, backend: str, places: int | None = None
) -> str:
    """The way of one stage, of a layer that is not reconstructed.

    Arguments:
        kernel_shape: (*window, channels / groups, features).
        groups: of features.
        backend: platform that computes it.
        places: of the results of all maps; None where they are not known.
    """
    *window, inputs, _ = kernel_shape
    if backend != CPU:
        return XLA
    if is_depthwise(kernel_shape, groups):
        return SHIFTED if math.prod(window) <= MOST_TAPS else XLA
    if groups == 1 and math.prod(window) == 1:
        return PRODUCT if min(inputs, kernel_shape[-1]) >= LEAST_PRODUCT else XLA
    if groups == 1 and inputs >= WIDE:
        return XLA if places is None or places > FEW_PLACES else PRODUCT
    return SPLIT if 1 < groups <= MOST_SPLITS and inputs >= LEAST_SPLIT else XLA


def widened(entry: PlannedLayer, backend: str) -> PlannedLayer:
    """A factorised convolution at ranks, none less than its own, at which it is computed fastest.

    With zeros behind its own factors it computes the same. On a CPU (jaxlib 0.10, Intel Xeon) a 3x3
    convolution of 128 channels on 28x28 takes 0.52 ms for 32 features and 0.67 to 0.70 ms for 25
    to 30, 0.95 ms for 64 and 1.35 to 1.42 ms for 49 to 62; a 7x7 one of 3 channels with stride 2 on
    224x224 1.7 ms for 48 and 12 ms for 17 to 24. Tucker of 32 channels on 16x16, 32 at once: 1.1 ms
    at rank 13, 0.74 ms at 16; 1.9 ms at 19, 1.2 ms at 24.

    Arguments:
        backend: platform that computes it.
    """
    form, layer = entry.form, entry.layer
    # Depthwise stages take no less time for whole vectors of channels, and groups have theirs.
    known = form is not None and form.method != "cp" and form.splits == 1 and layer.groups == 1
    if form is None or backend != CPU or not known or layer.kind not in CONVOLUTIONS:
        return entry
    *window, channels, _ = layer.kernel_shape
    plain = form.method == "svd" and (form.fold == "channel" or math.prod(window) == 1)
    tiles = (SLOW_TILES, *TILES) if plain and channels < FEW_INPUTS else TILES

    def wide(rank: int) -> int:
        # A low rank comes out of the window; others go into it too.
        least = rank if plain or rank <= NARROWEST else -(-rank // VECTOR) * VECTOR
        return next((full for above, full in tiles if above < least < full), least)

    ranks = tuple(map(wide, form.ranks))
    return entry if ranks == form.ranks else replace(entry, form=replace(form, ranks=ranks))


def differing_ways(entry: PlannedLayer) -> list[str]:
    """The ways of a factorised convolution that differ, but for those of hundreds of convolutions.

    Each stands for all stages that can take it.
    """
    found = []
    for way in WAYS:
        stages = [stage for stage in entry.stages if can_take(stage, way)]
        most = max((stage.groups for stage in stages), default=0)
        if way in (XLA, RECONSTRUCT) or (stages and (way != SPLIT or most <= MOST_SPLITS)):
            found.append(way)
    return found


def is_reconstructed(entry: PlannedLayer, shape: Sequence[Any], backend: str) -> bool:
    """Whether a convolution multiplies its dense kernel out in each call.

    Where the plan names no ways, on a CPU wherever the chain would be slower than that.

    Arguments:
        shape: of the input, (*batch, *spatial, C); the batch may be symbolic.
        backend: platform that computes it.
    """
    if entry.ways:
        return entry.ways == (RECONSTRUCT,)
    layer = entry.layer
    if backend != CPU or layer.groups > 1 or 0 in layer.kernel_shape:
        return False
    maps = _maps(shape, layer)
    return chain_cost(entry, maps) > dense_cost(entry, maps)


def dense_cost(entry: PlannedLayer, maps: float) -> float:
    """What the dense convolution takes, and multiplying its kernel out; see `chain_cost`."""
    layer = entry.layer
    # Each entry of the kernel is a sum over a rank.
    multiplied_out = float(math.prod(layer.kernel_shape) * max(entry.ranks))
    if entry.nonzeros:
        # A sparse correction is a dense convolution anyway.
        return multiplied_out
    sizes = (layer.in_spatial, layer.out_spatial)
    return maps * _stage_cost(whole(layer, ""), sizes, layer) + multiplied_out


def chain_cost(entry: PlannedLayer, maps: float) -> float:
    """What a chain of convolutions takes on a CPU, in multiply-accumulates of a wide dense one.

    Arguments:
        maps: number of maps of the plan's size that are computed.
    """
    chain, layer = widened(entry, CPU).chain, entry.layer
    stages = list(zip(chain.stages, pairwise(chain.maps), strict=True))
    if entry.method == "cp":
        cached = maps * entry.ranks[0] * math.prod(layer.in_spatial) <= CACHED
        shift = CACHED_SHIFT if cached else SHIFT
        costs = (shift if stage.groups > 1 else 1 for stage in chain.stages)
        return maps * sum(
            cost * _macs(*own, layer) for cost, own in zip(costs, stages, strict=True)
        )
    if entry.chain.form.splits > 1:
        inputs = chain.stages[0].kernel_shape[-2]
        cost = max(1.0, FULL_GROUP / inputs) * (UNSPLIT if inputs < LEAST_SPLIT else 1.0)
        return maps * cost * sum(_macs(*own, layer) for own in stages)
    return maps * sum(_stage_cost(stage, sizes, layer) for stage, sizes in stages)


def _macs(stage: Stage, sizes: tuple[Sequence[int], Sequence[int]], layer: Layer) -> int:
    return layer.windows(*sizes) * stage.size


def _stage_cost(stage: Stage, sizes: tuple[Sequence[int], Sequence[int]], layer: Layer) -> float:
    *window, inputs, features = stage.kernel_shape
    taps, least = math.prod(window), min(inputs, features)
    vectors = math.prod(-(-n // VECTOR) * VECTOR for n in (inputs, features))
    slow = 1 + NARROW / least if taps == 1 else 1.0
    return layer.windows(*sizes) * taps * vectors * slow + WRITE * math.prod(sizes[1]) * features


def _maps(shape: Sequence[Any], layer: Layer) -> float:
    """How many maps of the plan's size an input of some shape holds."""
    known = [n if isinstance(n, int) else UNKNOWN_BATCH for n in shape[:-1]]
    return math.prod(known) / max(math.prod(layer.in_spatial), 1)
