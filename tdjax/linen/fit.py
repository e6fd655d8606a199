"""Whether a Linen model is the one that a plan was made for: in its calls, and its parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tdjax.hints import did_you_mean
from tdjax.linen.kinds import Call, Kind
from tdjax.linen.removal import width_of
from tdjax.params.tree import find, mappings
from tdjax.plan.layers import Layer
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.plan.stage import CORRECTION

# Of more layers that do not fit, the first say enough.
SHOWN = 5
REMEDY = "make the plan with the model that you factorize"


def check_call(
    kind: Kind, entry: PlannedLayer, module: Any, method: str, given: Sequence[Any]
) -> None:
    """Refuse a layer that is called and is not what the plan was made for.

    Arguments:
        given: what the method is called with; nothing for "setup".

    Raises ValueError that names the layer and what differs.
    """
    inputs = _sized(given[0]) if given else jax.ShapeDtypeStruct((), jnp.int32)
    # What is compared does not depend on the output, which is not there yet.
    call = Call(module, method, inputs, inputs, given[1] if len(given) > 1 else None)
    found, planned = kind.describe(call), entry.layer
    width = width_of(module)
    if width is not None:
        found = _narrower(found, width)
    name = f"layer {planned.path!r}"
    if found.obstacle is not None:
        raise ValueError(f"{name}: {found.obstacle}")
    if _form(found) != _form(planned):
        raise ValueError(
            f"{name} of the model is {_text(found)}, but the plan was made for {_text(planned)}: "
            f"{REMEDY}"
        )


def _sized(inputs: Any) -> Any:
    """Inputs whose sizes are numbers: in an export that of a batch is a symbol."""
    shape = getattr(inputs, "shape", ())
    if all(isinstance(size, int) for size in shape):
        return inputs
    known = tuple(size if isinstance(size, int) else 1 for size in shape)
    return jax.ShapeDtypeStruct(known, inputs.dtype)


def check_params(plan: Plan, params: Mapping[str, Any], *, whole: bool) -> None:
    """Refuse the parameters of a model, or of a part of it, that are not those of the plan.

    Arguments:
        whole: whether all layers have to be there. Where only a part has, one of the plan's
            layers, dense or not, is enough.

    Raises ValueError that names the layers of the plan that the model has not, or that have other
    parameters than their factors.
    """
    problems, missing = [], []
    for entry in plan.factorised:
        own, path = _at(params, entry.layer.path), entry.layer.path
        factors = [stage.name for stage in entry.stages] + [CORRECTION] * bool(entry.nonzeros)
        if own is None:
            missing.append(path)
        elif not all(name in own for name in factors):
            problems.append(
                f"layer {path!r} has {', '.join(own)}, not the factors {', '.join(factors)}: pass "
                "what tdjax.factorize_params(params, plan) returns"
            )
    known = any(_at(params, entry.layer.path) is not None for entry in plan.layers)
    if missing and (whole or (params and not known)):
        problems.append(
            f"the model has no layer {', '.join(map(repr, missing[:SHOWN]))}: {REMEDY} (a layer "
            "that only some calls reach has to be among the parameters)"
            f"{did_you_mean(missing[0], paths_of(params))}"
        )
    if problems:
        raise ValueError(f"the plan does not fit: {'; '.join(problems[:SHOWN])}")


def paths_of(params: Mapping[str, Any]) -> list[str]:
    """The paths of what holds arrays of its own."""
    return [
        path
        for path, own in mappings(params)
        if any(not isinstance(leaf, Mapping) for leaf in own.values())
    ]


def _form(layer: Layer) -> tuple[Any, ...]:
    stored = dataclasses.replace(layer.storage, stack=None, copies=1)
    return layer.kind, layer.kernel_shape, layer.groups, stored


def _narrower(layer: Layer, width: int) -> Layer:
    """A layer with so many output features, one axis of its array."""
    stored, axis = layer.storage, layer.storage.order[-1]
    shape = (*stored.shape[:axis], width, *stored.shape[axis + 1 :])
    return dataclasses.replace(
        layer,
        kernel_shape=(*layer.kernel_shape[:-1], width),
        stored=dataclasses.replace(stored, shape=shape),
    )


def _text(layer: Layer) -> str:
    groups = f" in {layer.groups} feature groups" if layer.groups > 1 else ""
    return f"{layer.kind} of kernel shape {layer.kernel_shape}{groups}"


def _at(params: Any, path: str) -> Mapping[str, Any] | None:
    """The parameters at a path; None where there are none."""
    return find(params, path) or None
