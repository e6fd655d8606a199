"""A Linen model as a static argument, its variables apart: what evaluations run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
from jaxtyping import Array

from tdjax.arguments.called import Method, call_model, calling_the_model
from tdjax.functions.network import array_outputs
from tdjax.hints import did_you_mean
from tdjax.linen.features import module_outputs
from tdjax.linen.fit import paths_of
from tdjax.linen.intercept import streams
from tdjax.linen.outputs import layer_outputs
from tdjax.linen.table import leaves, trace
from tdjax.params.factorize import replace_kernel
from tdjax.params.partitioning import unboxed
from tdjax.params.tree import layer_params, mappings
from tdjax.plan.layers import LEAF
from tdjax.trace.call import call_arguments
from tdjax.trace.mixed import Replacement
from tdjax.trace.names import Names, leaf_names


@dataclass(frozen=True)
class Network:
    """A model that may hold lists, which have no hash; see `tdjax.evaluate.candidates.Network`."""

    model: nn.Module
    method: Method = None

    def __hash__(self) -> int:
        """Equal models have equal classes."""
        return hash((type(self.model), self.method))

    def outputs(self, variables: Any, inputs: Any) -> Any:
        """What the model returns for one batch."""
        args, kwargs = call_arguments(inputs)
        call = partial(call_model, method=self.method, args=args, kwargs=kwargs)
        with calling_the_model(inputs):
            # Statistics that a training mode updates are as the model computes with them.
            outputs, _ = self.model.apply(
                variables, method=call, rngs=streams(), mutable=nn.DenyList("params")
            )
        return outputs

    def kernel(self, variables: Any, path: str) -> Any:
        """The kernel of a layer, None where it has none. Raises KeyError for an unknown path."""
        params = variables["params"]
        try:
            own = layer_params(params, path)
            return own.get(LEAF, own.get("kernel"))
        except KeyError as error:
            raise KeyError(f"{error.args[0]}{did_you_mean(path, paths_of(params))}") from None

    def with_kernel(self, variables: Any, path: str, kernel: Array) -> Any:
        """The variables with another kernel in place of a layer's own."""
        return {**variables, "params": replace_kernel(variables["params"], path, kernel)}

    def layer_outputs(
        self, variables: Any, kernels: Mapping[str, Array], inputs: Any
    ) -> dict[str, list[tuple[Array, Array]]]:
        """Outputs of some layers with their own kernel and with another, on the same input."""
        params = variables["params"]
        known = {path: layer_params(params, path).get(LEAF) for path in kernels}
        members = {path: own for path, own in known.items() if own is not None}
        layers = {path: own for path, own in kernels.items() if path not in members}
        with calling_the_model(inputs):
            found = layer_outputs(self.model, variables, layers, inputs, self.method)
        if members:
            traced = trace(self.model, variables, inputs, self.method)
            pairs = {path: (unboxed(own), kernels[path]) for path, own in members.items()}
            found |= array_outputs(traced, leaves(self.model, variables), inputs, pairs)
        return found

    def module_outputs(
        self, variables: Any, paths: Sequence[str], inputs: Any, replaced: Replacement | None = None
    ) -> tuple[Any, dict[str, list[Array]]]:
        """What the model returns for one batch, and what the modules at some paths made."""
        with calling_the_model(inputs):
            return module_outputs(self.model, variables, paths, inputs, self.method, replaced)


def network_of(
    model: nn.Module, variables: Mapping[str, Any], method: Method = None
) -> tuple[Network, Any]:
    """A model as a static argument, and its variables."""
    return Network(model, method), variables


def layer_weights(model: nn.Module, variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters of all layers, as `tdjax.factorize_params` takes them."""
    return variables["params"]


def approximated_weights(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Approximated dense parameters, as `layer_weights` gives those of a model."""
    return params


def module_paths(model: nn.Module, variables: Mapping[str, Any]) -> list[str]:
    """The paths of the modules that have parameters, or hold modules that have."""
    return [path for path, _ in mappings(variables["params"])]


def parameter_names(model: nn.Module, variables: Mapping[str, Any]) -> list[Names | None]:
    """For each leaf of the variables the names along its path; None of what is no parameter."""
    return [names[1:] if names[0] == "params" else None for names in leaf_names(dict(variables))]
