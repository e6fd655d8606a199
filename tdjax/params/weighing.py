"""From moments to the weights that a plan's layers are decomposed with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float

from tdjax.hints import known_are
from tdjax.moments.collect import LayerMoments
from tdjax.params.kernels import Weights
from tdjax.plan.plan import Plan, PlannedLayer

NORMS = ("covariance", "kronecker")


def weights_of(
    plan: Plan, moments: Mapping[str, LayerMoments] | None, norm: str | None
) -> dict[str, Weights]:
    """The weights of all layers that a plan factorises, by path; none without moments.

    Arguments:
        norm: see `tdjax.factorize_params`.

    Raises ValueError for an unknown norm or one without moments, and KeyError or ValueError that
    name the layer whose moments are missing, do not fit it, or lack the gradient.
    """
    if norm is not None and norm not in NORMS:
        raise ValueError(f"norm {norm!r}: {known_are(norm, NORMS)}")
    if moments is None:
        if norm is not None:
            raise ValueError(f"norm {norm!r} needs moments=")
        return {}
    return {entry.layer.path: _weights(entry, moments, norm) for entry in plan.factorised}


def output_weights(plan: Plan, moments: Mapping[str, LayerMoments] | None) -> dict[str, Any]:
    """The moments of the gradient at the outputs of all layers of a plan, by path, or None."""
    if moments is None:
        return dict.fromkeys(entry.layer.path for entry in plan.factorised)
    return {path: found.outputs for path, found in weights_of(plan, moments, None).items()}


def _weights(entry: PlannedLayer, moments: Mapping[str, LayerMoments], norm: str | None) -> Weights:
    layer = entry.layer
    if layer.path not in moments:
        raise KeyError(f"no moments of layer {layer.path!r}; there are: {', '.join(moments)}")
    found = moments[layer.path]
    # An embedding that is only attended to has nothing but its queries.
    inputs_alone = norm == "covariance" and found.inputs is not None
    outputs = None if inputs_alone else found.outputs
    if norm == "kronecker" and outputs is None:
        raise ValueError(
            f"layer {layer.path!r}: norm 'kronecker' needs moments of the gradient; give "
            "collect_moments a loss_fn"
        )
    *front, columns = layer.group_shape
    _check_shape(found.inputs, math.prod(front), entry)
    _check_shape(outputs, columns, entry)
    return Weights(found.inputs, outputs)


def _check_shape(moment: Float[Array, "*_"] | None, size: int, entry: PlannedLayer) -> None:
    layer = entry.layer
    front = (*((layer.copies,) if layer.storage.stack is not None else ()), layer.groups)
    if moment is not None and moment.shape not in ((*front, size, size), (*front, size)):
        raise ValueError(
            f"layer {layer.path!r}: a moment of shape {moment.shape}, "
            f"expected {(*front, size, size)}: are these the moments of another network?"
        )
