"""A layer decomposed for the inputs that it has by now, towards what it gave for those it had.

Where the compressed network so far hands a layer x^ in place of x, the kernel W~ that changes the
layer's outputs least minimises E norm(W^T x - W~^T x^)^2: in the norm of S = E[x^ x^^T] it is the
approximation of the kernel S^-1 E[x^ x^T] W.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.decompose.products import HIGHEST
from tdjax.params.arrays import decompose_array, reconstruct_array
from tdjax.params.bias import can_correct, covariance, mean_output
from tdjax.params.factorize import DenseLayer, FactorisedLayer, Params, apart_again
from tdjax.params.kernels import Weights
from tdjax.params.options import Options
from tdjax.params.partitioning import unboxed
from tdjax.params.shared import joined_array, joined_entry, joined_weights
from tdjax.params.storing import as_stored
from tdjax.params.tree import layer_params
from tdjax.plan.plan import PlannedLayer

# Added to S, relative to its mean diagonal; directions that no input has keep the kernel's own.
RIDGE = 1e-6


class InputMeans(NamedTuple):
    """Means over the rows that go into a layer: x in the network as it was, x^ as it is by now.

    Arguments:
        now: (groups, D, D), of x^ x^^T, or its diagonal (groups, D).
        cross: (groups, D, D), of x^ x^T; None where x^ is x.
        mean_now, mean: (groups, D), of x^ and of x.
        outputs: where it has to be known along with them, see `tdjax.params.kernels.Weights`.
    """

    now: Any
    cross: Any
    mean_now: Any
    mean: Any
    outputs: Any = None


def decomposed(
    params: Params,
    unit: Sequence[PlannedLayer],
    means: InputMeans,
    outputs: Mapping[str, Any],
    options: Options,
) -> dict[str, FactorisedLayer]:
    """A layer, or all that share an input factor, by path.

    Arguments:
        means: of their input.
        outputs: the weights at their other ends, by path.
    """
    held = [layer_params(params, entry.layer.path) for entry in unit]
    corrected = options.correct_bias and all(map(can_correct, unit, held))
    arrays, weights = [_array(params, entry) for entry in unit], outputs[unit[0].layer.path]
    array = arrays[0]
    if len(unit) > 1:
        layers = [entry.layer for entry in unit]
        ends = [Weights(None, outputs[layer.path]) for layer in layers]
        array, weights = joined_array(arrays, layers), joined_weights(ends, layers).outputs
    made = _factorised(array, joined_entry(unit), means, weights, corrected, options)
    return apart_again(made, unit)


def _array(params: Params, entry: PlannedLayer) -> Array:
    """The array that holds a layer's kernel."""
    return jnp.asarray(unboxed(layer_params(params, entry.layer.path)[entry.layer.storage.name]))


def multiplied_out(
    params: Params, unit: Sequence[PlannedLayer], made: Mapping[str, FactorisedLayer]
) -> dict[str, DenseLayer]:
    """Layers as those after them meet them, their factors as they are stored."""
    every = [made[entry.layer.path] for entry in unit]
    factors = [own.factors for own in every]
    if unit[0].dtype is not None:
        factors = as_stored(factors, unit)
    found = {}
    for entry, own, new in zip(unit, every, factors, strict=True):
        whole = new if entry.shares is None else {**factors[0], **new}
        array = reconstruct_array(whole, entry).astype(_array(params, entry).dtype)
        found[entry.layer.path] = DenseLayer(array, own.shift)
    return found


def _factorised(
    array: Array,
    entry: PlannedLayer,
    means: InputMeans,
    outputs: Any,
    corrected: bool,
    options: Options,
) -> FactorisedLayer:
    """The factors of a layer, and by how much its bias is to be shifted.

    Arguments:
        array: that holds its kernel.
        outputs: its weights at the other end, where `means` do not have them.
        corrected: whether its bias is, the kernel then by covariances.
    """
    stored, layer = entry.layer.storage, entry.layer
    if corrected:
        means = around_means(means)

    def target(array: Array, means: InputMeans) -> Array:
        kernel = stored.to_kernel(array, layer.kernel_shape).astype(jnp.float32)
        return stored.from_kernel(target_of(kernel, means, layer.groups))

    wanted = array if means.cross is None else target(array, means)
    weights = Weights(means.now, outputs if means.outputs is None else means.outputs)
    factors = decompose_array(wanted, entry, options, weights=weights)
    factors = {name: factor.astype(array.dtype) for name, factor in factors.items()}
    if not corrected:
        return FactorisedLayer(factors, None)
    after = reconstruct_array(factors, entry)
    shift = mean_output(array, entry, means.mean) - mean_output(after, entry, means.mean_now)
    return FactorisedLayer(factors, shift)


def target_of(kernel: Float[Array, "*_"], means: InputMeans, groups: int) -> Float[Array, "*_"]:
    """The kernel that makes most of x^, group by group."""
    rows = means.now.shape[-1]
    columns = kernel.reshape(rows, groups, -1)

    def solve(
        now: Float[Array, "d d"], cross: Float[Array, "d d"], own: Float[Array, "d t"]
    ) -> Float[Array, "d t"]:
        # Below the second, single precision would solve for its own rounding.
        ridge = jnp.maximum(RIDGE / rows, 8 * jnp.finfo(now.dtype).eps) * jnp.trace(now)
        eye = ridge * jnp.eye(rows, dtype=now.dtype)
        right = jnp.matmul(cross + eye, own, precision=HIGHEST)
        solved = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(now + eye), True), right)
        # A factorisation that breaks down says nothing, and the kernel stays.
        return jnp.where(jnp.isfinite(solved).all(), solved, own)

    solved = jax.vmap(solve, in_axes=(0, 0, 1), out_axes=1)(means.now, means.cross, columns)
    return solved.reshape(kernel.shape)


def around_means(means: InputMeans) -> InputMeans:
    """Covariances in place of second moments."""
    if means.now is None or means.now.ndim == means.mean_now.ndim:
        return means
    return means._replace(
        now=covariance(means.now, means.mean_now, means.mean_now),
        cross=None if means.cross is None else covariance(means.cross, means.mean_now, means.mean),
    )
