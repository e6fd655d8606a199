"""An NNX model without its dead neurons: a copy with smaller arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from tdjax.arguments.called import Method
from tdjax.nnx.graph import array_of, modules_of, own_params
from tdjax.nnx.table import trace
from tdjax.params.tree import join_path
from tdjax.pruning.dead import Network, SmallerModel, remove
from tdjax.trace.names import names_of


def remove_dead(model: nnx.Module, sample: Any, method: Method = None) -> SmallerModel:
    """See `tdjax.remove_dead`."""
    state = nnx.state(model)
    leaves, structure = jax.tree.flatten(state)
    places = {
        (join_path(*names[:-1]), names[-1]): place
        for place, (path, _) in enumerate(jax.tree.leaves_with_path(state))
        if (names := names_of(path))
    }

    def smaller(leaves: Sequence[Any]) -> nnx.Module:
        copy = nnx.clone(model)
        nnx.update(copy, jax.tree.unflatten(structure, leaves))
        for module in modules_of(copy).values():
            _fit(module)
        return copy

    found = remove(
        Network(trace(model, sample, method), leaves, places),
        lambda leaves, _: trace(smaller(leaves), sample, method),
    )
    return SmallerModel(smaller(found.leaves), None, found.kept, found.obstacles)


def _fit(module: Any) -> None:
    """Let the sizes that a module remembers be those of its arrays."""
    params = own_params(module)
    if type(module) is nnx.BatchNorm:
        module.num_features = array_of(module.mean).shape[-1]
    elif type(module) in (nnx.Linear, nnx.Conv, nnx.ConvTranspose):
        shape = array_of(params["kernel"]).shape
        turned = getattr(module, "transpose_kernel", False)
        inputs, outputs = shape[-2:][::-1] if turned else shape[-2:]
        module.in_features = inputs * getattr(module, "feature_group_count", 1)
        module.out_features = outputs
        if hasattr(module, "kernel_shape"):
            module.kernel_shape = shape
