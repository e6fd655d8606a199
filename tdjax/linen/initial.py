"""How the factors of a layer start that is trained from scratch: at the scale of its kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax.core.meta import AxisMetadata
from jaxtyping import Array, Float

from tdjax.params.partitioning import box_factor, unboxed
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.stage import Stage

Initializer = Callable[..., Any]
Shape = tuple[int, ...]
# Entries of a larger array are not drawn only to know their scale.
MOST = 2**20


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
        if not drawn:
            return jnp.zeros(shape, dtype)
        whole = _kernel_shape(entry)
        try:
            value = init(key, shape, dtype)
            array = unboxed(value)
        except Exception:
            # It makes a table of no other shape, as one of waves.
            value = init(key, whole, dtype)
            array = jax.random.normal(key, shape, dtype)
        array = rescaled(
            array, key, _size(init, whole),
            ranks=entry.ranks, parts=len(entry.chain.stages), last=stage == entry.chain.stages[-1],
        )  # fmt: skip
        if not isinstance(value, AxisMetadata):
            return array
        return box_factor(value, array, entry, stage, stacked=False)

    return initial


@partial(jax.jit, static_argnames=("ranks", "parts", "last"))
def rescaled(
    array: Array,
    key: Array,
    kernel: Float[Array, ""],
    *,
    ranks: tuple[int, ...],
    parts: int,
    last: bool,
) -> Array:
    """A factor at the scale at which the product of all has the size of the kernel."""
    each = (kernel / math.sqrt(math.prod(ranks))) ** (1 / parts)
    size = _root_mean_square(array)
    scaled = array * jnp.where(size > 0, each / size, 1.0)
    if not last:
        other = jax.random.normal(key, array.shape, array.dtype)
        scaled = jnp.where(kernel > 0, scaled, other / math.sqrt(math.prod(array.shape[:-1])))
    return scaled.astype(array.dtype)


def _kernel_shape(entry: PlannedLayer) -> Shape:
    layer = entry.layer
    # Flax draws the kernel of this one as a matrix.
    return layer.kernel_shape if layer.kind == "dense_general" else layer.storage.shape


def _size(init: Initializer, shape: Shape) -> Float[Array, ""]:
    """The root mean square of what an initialiser draws.

    Of a large array one or two smaller ones are drawn: sizes go with a power of the sizes of axes,
    none, or the root of inputs and outputs.
    """
    if math.prod(shape) <= MOST:
        return _drawn(init, shape)
    part = shape
    while math.prod(part) > MOST:
        part = _halved(part)
    near, far = _drawn(init, part), _drawn(init, _halved(part))
    times = math.prod(shape) / math.prod(part)
    return jnp.where(far > 1.2 * near, near / times**0.25, near)


def _drawn(init: Initializer, shape: Shape) -> Float[Array, ""]:
    try:
        return _drawn_at_once(init, shape)
    except ValueError:
        # An initialiser without a hash.
        return _drawn_one_by_one(init, shape)


def _drawn_one_by_one(init: Initializer, shape: Shape) -> Float[Array, ""]:
    # A shorter program than that of the default generator.
    key = jax.random.key(0, impl="unsafe_rbg")
    return _root_mean_square(unboxed(init(key, shape, jnp.float32)))


_drawn_at_once = jax.jit(_drawn_one_by_one, static_argnums=(0, 1))


def _root_mean_square(x: Array) -> Float[Array, ""]:
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))


def _halved(shape: Shape) -> Shape:
    return (*shape[:-2], *(max(1, size // 2) for size in shape[-2:]))
