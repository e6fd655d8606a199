"""A function as a static argument, its arrays apart: what evaluations run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from tdjax.arguments.called import calling_the_model
from tdjax.functions.chains import Whole
from tdjax.functions.program import Apply
from tdjax.functions.read import is_attending, read
from tdjax.hints import did_you_mean
from tdjax.params.leaves import leaf_tree
from tdjax.trace.call import StaticPart, call_arguments, split_arrays
from tdjax.trace.marks import INPUT, Mark
from tdjax.trace.trace import Trace, TracedCall
from tdjax.trace.visit import run


@dataclass(frozen=True)
class Network:
    """A function without its arrays; see `tdjax.evaluate.candidates.Network`.

    Arguments:
        function: of parameters and inputs.
        static: the parameters without their arrays. Those are the variables.
        paths: of the arrays.
    """

    function: Apply
    static: StaticPart
    paths: tuple[str, ...]

    def __hash__(self) -> int:
        """The function may have none."""
        return hash((id(self.function), self.paths))

    def outputs(self, variables: list[Any], inputs: Any) -> Any:
        """What the function returns for one batch."""
        args, kwargs = call_arguments(inputs)
        with calling_the_model(inputs):
            return self.function(self.static.join(variables), *args, **kwargs)

    def kernel(self, variables: list[Any], path: str) -> Any:
        """The array at a path. Raises KeyError for an unknown path."""
        return variables[self._place(path)]

    def with_kernel(self, variables: list[Any], path: str, kernel: Array) -> list[Any]:
        """The variables with another array at a path."""
        place = self._place(path)
        return [*variables[:place], kernel, *variables[place + 1 :]]

    def layer_outputs(
        self, variables: list[Any], kernels: Mapping[str, Array], inputs: Any
    ) -> dict[str, list[tuple[Array, Array]]]:
        """Outputs of some layers with their own array and with another, on the same input.

        A layer called several times gives several pairs, one inside a loop none. Raises ValueError
        for an array that is no layer.
        """
        found = read(self.function, self.static.join(variables), inputs)
        for layer in found.others:
            if layer.path in kernels:
                raise ValueError(f"feature errors: {layer.path!r} is no layer: {layer.obstacle}")
        arrays = {path: (self.kernel(variables, path), own) for path, own in kernels.items()}
        return array_outputs(found.trace, variables, inputs, arrays)

    def _place(self, path: str) -> int:
        if path not in self.paths:
            raise KeyError(f"the parameters have no array {path!r}{did_you_mean(path, self.paths)}")
        return self.paths.index(path)


def array_outputs(
    trace: Trace, leaves: Sequence[Any], inputs: Any, arrays: Mapping[str, tuple[Any, Any]]
) -> dict[str, list[tuple[Array, Array]]]:
    """Outputs of layers that are arrays by themselves, with each of two, on the same input.

    Arguments:
        trace: of the model on a batch like this.
        leaves: what its program takes in front of the arrays of the batch.
        inputs: the batch.
        arrays: by path.

    A layer called several times gives several pairs, one inside a loop none.
    """
    wanted = {
        number
        for number, made in trace.calls.items()
        if made.product is not None
        and made.layer.path in arrays
        and made.layer.storage.stack is None
    } - trace.survey.looped

    def visit(mark: Mark, x: Any, _: Any) -> tuple[Any, Any]:
        return x, x if mark.number in wanted and mark.end == INPUT else None

    given, _ = split_arrays(call_arguments(inputs))
    rows = run(trace.jaxpr, trace.survey, visit, [*leaves, *given], {})[1]
    pairs: dict[str, list[tuple[Array, Array]]] = {path: [] for path in arrays}
    for number, x in sorted(rows.items()):
        made = trace.calls[number]
        own, other = arrays[made.layer.path]
        pairs[made.layer.path].append((_output(made, own, x), _output(made, other, x)))
    return pairs


def _output(made: TracedCall, array: Any, x: Array) -> Array:
    """What a layer makes of rows, in which the examples are the first axis if they are anywhere."""
    layer, product = made.layer, made.product
    kernel = layer.storage.to_kernel(jnp.asarray(array), layer.kernel_shape)
    own = [kernel.astype(product.place.dtype)]
    return product.multiply(Whole(layer), own, x, is_attending(layer, product))


def network_of(apply: Apply, params: Any, method: None = None) -> tuple[Network, list[Any]]:
    """A function as a static argument, and its arrays."""
    tree, (arrays, static) = leaf_tree(params), split_arrays(params)
    return Network(apply, static, tuple(tree.paths[place] for place in static.places)), arrays


def layer_weights(apply: Apply, params: Any) -> dict[str, Any]:
    """The arrays of all layers, as nested mappings by path."""
    return approximated_weights(params)


def approximated_weights(params: Any) -> dict[str, Any]:
    """Approximated arrays, as `layer_weights` gives those of a function."""
    return leaf_tree(params).mapping
