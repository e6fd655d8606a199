"""How the factors of a layer start that is trained from scratch: at the scale of its kernel."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.core.meta import AxisMetadata
from jaxtyping import Array

from tdjax.params.partitioning import box_factor, unboxed
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.stage import Stage

Initializer = Callable[..., Any]
Shape = tuple[int, ...]
# Entries of a larger array are not drawn only to know their scale.
MOST = 2**24


def stage_initializer(
    init: Initializer, entry: PlannedLayer, stage: Stage, *, drawn: bool = True
) -> Initializer:
    """The layer's initialiser for one of its factors.

    Factors are drawn by it, and times one number, so that the kernel that they stand for has
    entries of the size that the layer's own would have: their variance is that of a sum over all
    ranks of products of one entry of each. Where the kernel starts at zero the last factor does,
    and the others do not: from zeros alone nothing could be learnt. Partitioning metadata is fitted
    to the factor.

    Arguments:
        drawn: False where the parameters are given: then Flax asks for shapes alone, and nothing
            is drawn to know the scale.
    """

    def initial(key: Array, shape: Sequence[int], dtype: Any) -> Any:
        value = init(key, shape, dtype)
        array, scale = unboxed(value), _scale(init, entry) if drawn else 1.0
        if scale is None:
            if stage != entry.stages[-1]:
                array = jax.random.normal(key, shape, dtype) / math.sqrt(math.prod(shape[:-1]))
        else:
            array = (array * scale).astype(array.dtype)
        if not isinstance(value, AxisMetadata):
            return array
        return box_factor(value, array, entry, stage, stacked=False)

    return initial


def _scale(init: Initializer, entry: PlannedLayer) -> float | None:
    """What each factor is to be multiplied by; None where the kernel starts at zero."""
    layer = entry.layer
    # Flax draws the kernel of this one as a matrix.
    merged = layer.kind == "dense_general"
    whole = layer.kernel_shape if merged else layer.storage.shape
    kernel, *factors = _sizes(init, (whole, *(stage.kernel_shape for stage in entry.stages)))
    if kernel == 0.0:
        return None
    product = math.sqrt(math.prod(entry.ranks)) * math.prod(factors)
    return (kernel / product) ** (1 / len(factors)) if product else 1.0


def _sizes(init: Initializer, shapes: tuple[Shape, ...]) -> tuple[float, ...]:
    """The root mean squares of what an initialiser draws."""
    try:
        return _known_sizes(init, shapes)
    except TypeError:
        # One without a hash.
        return _known_sizes.__wrapped__(init, shapes)


@functools.lru_cache(maxsize=1024)
def _known_sizes(init: Initializer, shapes: tuple[Shape, ...]) -> tuple[float, ...]:
    pairs = [_drawn_shapes(shape) for shape in shapes]

    # One program for all of them, and while another is traced too.
    @jax.jit
    def drawn() -> Any:
        return [[_root_mean_square(init, shape) for shape in pair] for pair in pairs]

    with jax.ensure_compile_time_eval():
        found = jax.device_get(drawn())
    return tuple(
        _extended(list(map(float, own)), math.prod(shape) / math.prod(pair[0]))
        for own, shape, pair in zip(found, shapes, pairs, strict=True)
    )


def _root_mean_square(init: Initializer, shape: Shape) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(unboxed(init(jax.random.key(0), shape, jnp.float32)))))


def _drawn_shapes(shape: Shape) -> tuple[Shape, ...]:
    """What is drawn to know the size of an array: itself, or two smaller ones of a large one."""
    if math.prod(shape) <= MOST:
        return (shape,)
    while math.prod(shape) > MOST:
        shape = _halved(shape)
    return shape, _halved(shape)


def _halved(shape: Shape) -> Shape:
    return (*shape[:-2], *(max(1, size // 2) for size in shape[-2:]))


def _extended(drawn: Sequence[float], times: float) -> float:
    """The size of an array with `times` as many entries as the first that was drawn.

    Sizes go with a power of the sizes of axes: none, or the root of inputs and outputs.
    """
    near, far = drawn[0], drawn[-1]
    return near / times**0.25 if far > 1.2 * near else near
