"""Chains of factors that weigh the same, and still stand for the same kernel.

Between two stages, feature i may be scaled by any d_i and scaled back: nothing lies in between. Of
all these chains the one with the least sum of squares has, at each such feature, a column in front
and a row behind of equal norms. All stages then have the same norm, and a gradient step moves them
alike; descent keeps norms that are equal so (Arora et al. 2018, arXiv 1802.06509).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tdjax.decompose.meshes import on_any_mesh
from tdjax.params.arrays import stack_axes
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.stage import Stage
from tdjax.plan.tt_matrix import TTMatrixChain

# Of chains of more than two stages, whose bonds hang together.
SWEEPS = 50

Kernels = Mapping[str, Float[Array, "*_"]]
Scales = list[Float[np.ndarray, "*_"]]


@on_any_mesh
def balanced(kernels: Kernels, entry: PlannedLayer) -> dict[str, Float[Array, "*_"]]:
    """The kernels of a layer's stages, by name, balanced; in the dtypes that they have.

    Raises ValueError for NaN or Inf, naming the layer.
    """
    own = {stage.name: np.asarray(kernels[stage.name], np.float64) for stage in entry.stages}
    for name, kernel in own.items():
        if not np.isfinite(kernel).all():
            raise ValueError(f"layer {entry.layer.path!r}: the factor {name} holds NaN or Inf")
    axis = entry.layer.storage.stack
    if axis is None:
        scales = _scales(list(own.values()), entry)
    else:
        axes = stack_axes(entry)
        layers = [
            _scales([np.take(x, k, axes[name]) for name, x in own.items()], entry)
            for k in range(entry.layer.storage.copies)
        ]
        stacked = zip(own, zip(*layers, strict=True), strict=True)
        scales = [np.stack(parts, axes[name]) for name, parts in stacked]
    return {
        name: kernels[name] * jnp.asarray(scale, kernels[name].dtype)
        for name, scale in zip(own, scales, strict=True)
    }


def _scales(kernels: Sequence[Float[np.ndarray, "*_"]], entry: PlannedLayer) -> Scales:
    """What the kernels of the stages are multiplied by, arrays of their shapes."""
    squares = [_squares(*pair, entry) for pair in zip(kernels, entry.stages, strict=True)]
    bonds = [np.ones(len(after)) for after in squares[1:]]
    for _ in range(SWEEPS if len(bonds) > 1 else 1):
        for k, (before, after) in enumerate(pairwise(squares)):
            left, right = before.sum(axis=0), after.sum(axis=1)
            # Where one of them is zero, nothing passes through.
            alive = (left > 0) & (right > 0)
            own = np.sqrt(np.where(alive, right, 1) / np.where(alive, left, 1))
            before *= own
            after /= own[:, None]
            bonds[k] *= np.sqrt(own)
    first, last = np.ones(len(squares[0])), np.ones(squares[-1].shape[1])
    return [
        np.broadcast_to(_spread(1 / inputs, outputs, stage, entry), stage.kernel_shape)
        for stage, (inputs, outputs) in zip(
            entry.stages, pairwise([first, *bonds, last]), strict=True
        )
    ]


def _squares(
    kernel: Float[np.ndarray, "*_"], stage: Stage, entry: PlannedLayer
) -> Float[np.ndarray, "i o"]:
    """Sums of squares between all features that go into a stage and all that come out."""
    if isinstance(entry.chain, TTMatrixChain):
        return np.sum(kernel**2, axis=(1, 2))
    inputs, outputs = stage.kernel_shape[-2:]
    own = np.sum(kernel.reshape(-1, inputs, outputs) ** 2, axis=0)
    whole, width = np.zeros((stage.groups * inputs, outputs)), outputs // stage.groups
    for group in range(stage.groups):
        columns = slice(group * width, (group + 1) * width)
        whole[group * inputs : (group + 1) * inputs, columns] = own[:, columns]
    return whole


def _spread(
    inputs: Float[np.ndarray, " i"],
    outputs: Float[np.ndarray, " o"],
    stage: Stage,
    entry: PlannedLayer,
) -> Float[np.ndarray, "*_"]:
    """Scales of the features that go in and come out, along the axes of a stage's kernel."""
    if isinstance(entry.chain, TTMatrixChain):
        return inputs[:, None, None, None] * outputs
    by_group = inputs.reshape(stage.groups, -1).T
    return np.repeat(by_group, len(outputs) // stage.groups, axis=1) * outputs
