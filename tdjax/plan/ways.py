"""The names of ways: by which of several exact programs a layer's factors are multiplied.

All ways of a stage, and of a layer, give equal results up to rounding. `tdjax.compute` has the
programs, and the rule that chooses where a plan names none.
"""

from __future__ import annotations

from collections.abc import Sequence

from tdjax.plan.layers import CONVOLUTIONS, Layer
from tdjax.plan.stage import Stage, is_depthwise

# XLA's own convolution; multiply-adds of the shifted map; a convolution for each feature group;
# the product of all patches with the kernel, a batched one where there are groups.
XLA, SHIFTED, SPLIT, PRODUCT = "xla", "shifted", "split", "product"
# One dense convolution, of the kernel that the factors stand for, multiplied out in each call.
RECONSTRUCT = "reconstruct"
WAYS = (XLA, SHIFTED, SPLIT, PRODUCT, RECONSTRUCT)


def can_take(stage: Stage, way: str) -> bool:
    """Whether a stage can be computed in a way."""
    return can_take_shape(stage.kernel_shape, stage.groups, way)


def can_take_shape(kernel_shape: Sequence[int], groups: int, way: str) -> bool:
    """Whether a convolution with a kernel (*window, channels / groups, features) can be."""
    if way == SHIFTED:
        return is_depthwise(kernel_shape, groups)
    return way in (XLA, PRODUCT) or (way == SPLIT and groups > 1)


def check_way(way: str) -> None:
    """Raise ValueError for a way that there is not."""
    if way not in WAYS:
        raise ValueError(f"way {way!r}: known are {', '.join(WAYS)}")


def ways_from(stages: Sequence[Stage], ways: str | Sequence[str]) -> tuple[str, ...]:
    """Ways of a layer as a plan keeps them.

    Arguments:
        ways: as they are kept; or one for all stages that can take it, with XLA's own of the
            others. Raises ValueError where there is no such.
    """
    if not isinstance(ways, str):
        return tuple(ways)
    check_way(ways)
    if ways == RECONSTRUCT:
        return (RECONSTRUCT,)
    return tuple(ways if can_take(stage, ways) else XLA for stage in stages)


def ways_text(stages: Sequence[Stage], ways: Sequence[str]) -> str:
    """How a layer is computed, in words that go on from its path and a verb."""
    if tuple(ways) == (RECONSTRUCT,):
        return "computed by its dense kernel, multiplied out in each call, whatever its MACs"
    pairs = (f"{stage.name}: {way}" for stage, way in zip(stages, ways, strict=True))
    return f"computed so: {', '.join(pairs)}"


def ways_problem(layer: Layer, stages: Sequence[Stage], ways: Sequence[str]) -> str | None:
    """Why a layer of such stages cannot be computed so, and a remedy; None where it can.

    Arguments:
        ways: one for each stage, or `RECONSTRUCT` alone; () leaves them to the rule.
    """
    unknown = [way for way in ways if way not in WAYS]
    if unknown:
        return f"way {unknown[0]!r}: known are {', '.join(WAYS)}"
    if ways and layer.kind not in CONVOLUTIONS:
        return f"ways are for convolutions, and it is of kind {layer.kind!r}; give it none"
    if ways and not stages:
        return "ways are for factorised layers, and it is kept dense; give it none"
    if not ways or tuple(ways) == (RECONSTRUCT,):
        return None
    if len(ways) != len(stages):
        names = ", ".join(stage.name for stage in stages)
        return f"{len(ways)} ways for its {len(stages)} stages {names}; give one for each"
    for stage, way in zip(stages, ways, strict=True):
        if not can_take(stage, way):
            known = ", ".join(own for own in WAYS if can_take(stage, own))
            return f"its stage {stage.name!r} cannot be computed as {way!r}; use one of {known}"
    return None
