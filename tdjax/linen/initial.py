"""How the factors of a layer start that is trained from scratch: at the scale of its kernel."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core.meta import AxisMetadata
from jaxtyping import Array

from tdjax.params.partitioning import box_factor, unboxed
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.stage import Stage

Initializer = Callable[..., Any]
# Entries of a larger array are not drawn only to know their scale.
MOST = 2**24


def stage_initializer(init: Initializer, entry: PlannedLayer, stage: Stage) -> Initializer:
    """The layer's initialiser for one of its factors.

    Factors are drawn by it, and times one number, so that the kernel that they stand for has
    entries of the size that the layer's own would have: their variance is that of a sum over all
    ranks of products of one entry of each. Where the kernel starts at zero the last factor does,
    and the others do not: from zeros alone nothing could be learnt. Partitioning metadata is fitted
    to the factor.
    """

    def initial(key: Array, shape: Sequence[int], dtype: Any) -> Any:
        value = init(key, shape, dtype)
        array, scale = unboxed(value), _scale(init, entry)
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
    kernel = _size(init, layer.kernel_shape if merged else layer.storage.shape)
    factors = [_size(init, stage.kernel_shape) for stage in entry.stages]
    if kernel == 0.0:
        return None
    product = math.sqrt(math.prod(entry.ranks)) * math.prod(factors)
    return (kernel / product) ** (1 / len(factors)) if product else 1.0


def _size(init: Initializer, shape: tuple[int, ...]) -> float:
    """The root mean square of what an initialiser draws."""
    try:
        return _known_size(init, shape)
    except TypeError:
        # One without a hash.
        return _known_size.__wrapped__(init, shape)


@functools.lru_cache(maxsize=1024)
def _known_size(init: Initializer, shape: tuple[int, ...]) -> float:
    if math.prod(shape) > MOST:
        # Sizes go with a power of the sizes of axes: none, or the root of inputs and outputs.
        half = (*shape[:-2], *(max(1, size // 2) for size in shape[-2:]))
        quarter = (*shape[:-2], *(max(1, size // 4) for size in shape[-2:]))
        near, far = _size(init, half), _size(init, quarter)
        return near / math.sqrt(2.0) if far > 1.2 * near else near
    # While another program is traced too.
    with jax.ensure_compile_time_eval():
        drawn = unboxed(init(jax.random.key(0), shape, jnp.float32))
        return float(np.sqrt(np.mean(np.square(np.asarray(drawn, np.float64)))))
