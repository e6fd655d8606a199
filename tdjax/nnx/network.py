"""An NNX model as a static argument, its arrays apart: what evaluations run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
from flax import nnx
from jaxtyping import Array

from tdjax.arguments.called import Method, call_model, calling_the_model
from tdjax.functions.network import array_outputs
from tdjax.hints import did_you_mean
from tdjax.nnx.features import give_outputs, keep_outputs, kept_outputs
from tdjax.nnx.graph import array_of, become, holds_array, modules_of, shape_of, with_calls
from tdjax.nnx.kinds import KINDS
from tdjax.nnx.own import member_weights, own_weight
from tdjax.nnx.table import trace
from tdjax.params.tree import join_path, put, split_path
from tdjax.trace.call import call_arguments
from tdjax.trace.mixed import Replacement
from tdjax.trace.names import Names

Model = TypeVar("Model", bound=nnx.Module)
# Under these names, and a number, a layer keeps its outputs: variables leave transformations.
OWN, OTHER = "tdjax_own_", "tdjax_other_"


@dataclass(frozen=True)
class Network:
    """A model without its arrays; see `tdjax.evaluate.candidates.Network`.

    Arguments:
        graph, structure: what is left of `nnx.split(model)`, its state without the leaves. Those
            are the variables.
        method: how the model is called.
    """

    graph: Any
    structure: Any
    method: Method = None

    def __hash__(self) -> int:
        """The metadata of variables may have no hash."""
        return hash((self.graph, self.method))

    def outputs(self, variables: Sequence[Any], inputs: Any) -> Any:
        """What the model returns for one batch."""
        return _called(self._merged(variables), inputs, self.method)

    def kernel(self, variables: Sequence[Any], path: str) -> Any:
        """The kernel of a layer, None where it has none. Raises KeyError for an unknown path."""
        kernel = _weight_at(self._merged(variables), path)
        return array_of(kernel) if isinstance(kernel, nnx.Variable) else None

    def with_kernel(self, variables: Sequence[Any], path: str, kernel: Array) -> list[Any]:
        """The variables with another kernel in place of a layer's own."""
        model = self._merged(variables)
        _weight_at(model, path)[...] = kernel
        return jax.tree.leaves(nnx.state(model))

    def layer_outputs(
        self, variables: Sequence[Any], kernels: Mapping[str, Array], inputs: Any
    ) -> dict[str, list[tuple[Array, Array]]]:
        """Outputs of some layers with their own kernel and with another, on the same input.

        The model itself runs unchanged, so each layer is judged alone. A layer called several
        times gives several pairs, one of a stack none. Raises ValueError for what is no layer.
        """
        model = self._merged(variables)
        known = {path: _member_at(model, path) for path in kernels}
        members = {path: own for path, own in known.items() if own is not None}
        layers = {path: _module_at(model, path) for path in kernels if path not in members}
        for path, layer in layers.items():
            weight = _weight(layer)
            if weight is None:
                raise ValueError(
                    f"feature errors: {path!r} is no layer, but {type(layer).__name__}"
                )
            layer.tdjax_compared = _Compared(kernels[path], weight)
            cls: Any = type(layer)
            become(layer, _comparing(cls))
        if layers:
            _called(model, inputs, self.method)
        found = {path: _pairs(layer) for path, layer in layers.items()}
        if members:
            pairs = {path: (array_of(own), kernels[path]) for path, own in members.items()}
            traced = trace(self._merged(variables), inputs, self.method)
            found |= array_outputs(traced, variables, inputs, pairs)
        return found

    def module_outputs(
        self,
        variables: Sequence[Any],
        paths: Sequence[str],
        inputs: Any,
        replaced: Replacement | None = None,
    ) -> tuple[Any, dict[str, list[Array]]]:
        """What the model returns for one batch, and what the modules at some paths made."""
        model = self._merged(variables)
        others = {} if replaced is None else replaced.outputs
        modules = {path: _module_at(model, path) for path in {**dict.fromkeys(paths), **others}}
        keep_outputs(list(modules.values()))
        if replaced is not None:
            give_outputs({modules[path]: own for path, own in others.items()}, replaced.rows)
        outputs = _called(model, inputs, self.method)
        return outputs, {path: kept_outputs(modules[path]) for path in paths}

    def _merged(self, variables: Sequence[Any]) -> nnx.Module:
        return nnx.merge(self.graph, jax.tree.unflatten(self.structure, variables))


def _module_at(model: nnx.Module, path: str) -> Any:
    modules = modules_of(model)
    if path not in modules:
        raise KeyError(f"the model has no layer {path!r}{did_you_mean(path, modules)}")
    return modules[path]


def _member_at(model: nnx.Module, path: str) -> Any:
    """The array of a module at a path; None where there is none."""
    *front, name = split_path(path) or ("",)
    module: Any = modules_of(model).get(join_path(*front))
    own = None if module is None or type(module) in KINDS else member_weights(module).get(name)
    return own


def _weight_at(model: nnx.Module, path: str) -> Any:
    """The kernel of a layer, or the array that it is; None where it has none."""
    member = _member_at(model, path)
    return getattr(_module_at(model, path), "kernel", None) if member is None else member


def _called(model: Any, inputs: Any, method: Method) -> Any:
    args, kwargs = call_arguments(inputs)
    with calling_the_model(inputs):
        return call_model(model, method, args, kwargs)


@dataclass(frozen=True, eq=False)
class _Compared:
    """The other kernel of a layer, and the name of its array.

    A static attribute, equal to itself alone: transformations of NNX in the model carry it along,
    and trace again.
    """

    kernel: Array
    weight: str


def _weight(module: Any) -> str | None:
    """The name of a layer's array; None of what is no layer."""
    kind = KINDS.get(type(module))
    return own_weight(module) if kind is None else kind.weight


def _kept(cls: type, method: str) -> Callable[..., Any]:
    """A method of a class that also keeps what it returns."""
    answer = getattr(cls, method)

    @functools.wraps(answer)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = answer(self, *args, **kwargs)
        compared, number = self.tdjax_compared, len(_pairs(self))
        kernel, weight = compared.kernel, compared.weight
        if shape_of(getattr(self, weight)) != kernel.shape:
            # One of a stack of layers.
            return output
        other = nnx.clone(self)
        getattr(other, weight)[...] = kernel
        setattr(self, f"{OWN}{number}", nnx.Intermediate(output))
        setattr(self, f"{OTHER}{number}", nnx.Intermediate(answer(other, *args, **kwargs)))
        return output

    return call


def _pairs(layer: Any) -> list[tuple[Array, Array]]:
    """The outputs that a layer kept."""
    kept = [name.removeprefix(OWN) for name in vars(layer) if name.startswith(OWN)]
    return [
        (array_of(getattr(layer, OWN + k)), array_of(getattr(layer, OTHER + k)))
        for k in sorted(kept, key=int)
    ]


@functools.lru_cache(maxsize=1024)
def _comparing(cls: type) -> type:
    """A layer's class that keeps its outputs, and those with the other kernel."""
    return with_calls(cls, _kept)


def network_of(model: nnx.Module, method: Method = None) -> tuple[Network, list[Any]]:
    """A model as a static argument, and its arrays."""
    graph, state = nnx.split(model)
    leaves, structure = jax.tree.flatten(state)
    return Network(graph, structure, method), leaves


def with_leaves(model: Model, leaves: Sequence[Any]) -> Model:
    """A copy of a model with other arrays, as `network_of` gives them."""
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(state), leaves))


def module_paths(model: nnx.Module) -> list[str]:
    """The paths of all modules."""
    return list(modules_of(model))


def parameter_names(model: nnx.Module) -> list[Names | None]:
    """For each leaf of a model's state the names along its path; None of what is no parameter."""
    leaves, structure = jax.tree.flatten(nnx.state(model))
    names: list[Names | None] = [None] * len(leaves)
    numbered = nnx.to_flat_state(jax.tree.unflatten(structure, range(len(leaves))))
    for path, variable in numbered:
        if isinstance(variable, nnx.Param):
            for place in jax.tree.leaves(variable):
                names[place] = tuple(map(str, path))
    return names


def layer_weights(model: nnx.Module) -> dict[str, Any]:
    """The weights of all layers of a model, as nested mappings by path like those of Linen."""
    tree: dict[str, Any] = {}
    for path, module in modules_of(model).items():
        name = _weight(module)
        if name is not None:
            weight = getattr(module, name)
            if holds_array(weight):
                put(tree, path, {name: array_of(weight)})
        elif type(module) not in KINDS:
            own = {name: array_of(param) for name, param in member_weights(module).items()}
            put(tree, path, own)
    return tree


def approximated_weights(approximation: Any) -> dict[str, Any]:
    """The weights of an approximated model, or of its state as a nested mapping."""
    if isinstance(approximation, nnx.Module):
        return layer_weights(approximation)
    return _named(
        nnx.to_pure_dict(approximation) if isinstance(approximation, nnx.State) else approximation
    )


def _named(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """A nested mapping with names for keys: those of lists are numbers."""
    return {str(k): _named(v) if isinstance(v, Mapping) else v for k, v in tree.items()}
