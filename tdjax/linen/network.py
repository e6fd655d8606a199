"""A Linen model as a static argument, its variables apart: what evaluations run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
from jaxtyping import Array

from tdjax.arguments.called import Method, call_model, calling_the_model
from tdjax.hints import did_you_mean
from tdjax.linen.fit import paths_of
from tdjax.linen.intercept import streams
from tdjax.linen.outputs import layer_outputs
from tdjax.params.factorize import replace_kernel
from tdjax.params.tree import layer_params
from tdjax.trace.call import call_arguments


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
            return layer_params(params, path).get("kernel")
        except KeyError as error:
            raise KeyError(f"{error.args[0]}{did_you_mean(path, paths_of(params))}") from None

    def with_kernel(self, variables: Any, path: str, kernel: Array) -> Any:
        """The variables with another kernel in place of a layer's own."""
        return {**variables, "params": replace_kernel(variables["params"], path, kernel)}

    def layer_outputs(
        self, variables: Any, kernels: Mapping[str, Array], inputs: Any
    ) -> dict[str, list[tuple[Array, Array]]]:
        """Outputs of some layers with their own kernel and with another, on the same input."""
        with calling_the_model(inputs):
            return layer_outputs(self.model, variables, kernels, inputs, self.method)


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
