"""Networks of each kind as one forward function, and as what functions of `tdjax` take.

A network's arrays are `Variables`, whatever holds them in its own framework: what is trained is
`params`, the rest is `state`.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from experiments.data import Inputs
from experiments.network.watch import Keep, watch_function, watch_linen, watch_nnx
from experiments.network.weights import load_arrays, load_weights
from tdjax.dispatch import factorize, remove_dead
from tdjax.nnx.batch_stats import keeps_batch_stats
from tdjax.nnx.saving import restored, variables_of
from tdjax.params.tree import join_path
from tdjax.plan.plan import Plan
from tdjax.pruning.dead import SmallerModel
from tdjax.trace.call import call_arguments
from tdjax.trace.names import names_of

# (trainable parameters, other collections, images, key) -> (logits, other collections); the key of
# what is random in training, None for inference. Hashable by value, so that equal networks share
# compiled programs.
Apply = Callable[[Any, Any, Inputs, Array | None], tuple[Array, Any]]
# A factorised network, of arrays as `tdjax.load_factorised` gives them and images.
Small = Callable[[Any, Inputs], Array]

# The argument by which a module's call knows that it is being trained, and what it is then.
TRAINING_FLAGS = {"train": True, "training": True, "is_training": True, "deterministic": False}
NOTHING_FACTORISED = Plan(())


class Variables(NamedTuple):
    """What is trained: parameters and the collections that training updates beside them."""

    params: Any
    state: Any

    @property
    def collections(self) -> dict[str, Any]:
        """All collections, as `apply` of a Linen module takes them."""
        return {**self.state, "params": self.params}

    def alone(self) -> Variables:
        """With a first axis of one run, as training and evaluation take them."""
        return self.copies(1)

    def copies(self, runs: int) -> Variables:
        """The same of several runs, which begin alike."""
        return _copies(self, runs)

    def of_run(self, index: int) -> Variables:
        """Those of one run of several."""
        return _of_run(self, index)


@partial(jax.jit, static_argnames=("runs",))
def _copies(models: Variables, runs: int) -> Variables:
    return cast(Variables, jax.tree.map(lambda leaf: jnp.stack([leaf] * runs), models))


@jax.jit
def _of_run(models: Variables, index: int) -> Variables:
    return cast(Variables, jax.tree.map(lambda leaf: leaf[index], models))


@dataclass(frozen=True)
class Forward(ABC):
    """The forward function of a network of one kind, an `Apply`.

    Arguments:
        module: a Linen or NNX module, or a function of parameters and inputs.
    """

    module: Any

    @abstractmethod
    def __call__(
        self, params: Any, state: Any, images: Inputs, key: Array | None
    ) -> tuple[Array, Any]:
        """Logits of a batch of images, and the collections after it."""

    @abstractmethod
    def start(self, arrays: Any) -> Variables:
        """The arrays that it begins with, from how they come with the module."""

    @abstractmethod
    def subject(self, model: Variables) -> tuple[Any, ...]:
        """The network as functions of `tdjax` take it, in front of all else."""

    @abstractmethod
    def factorised(self, plan: Plan) -> Small:
        """The network with chains in place of layers."""

    def call(
        self, function: Callable[..., Any], model: Variables, *args: Any, **options: Any
    ) -> Any:
        """What a function of `tdjax` on models makes of the network with these arrays."""
        return function(*self.subject(model), *args, **options)

    def keeps_batch_stats(self, model: Variables) -> bool:
        """Whether it has statistics of batch normalisation that can be estimated again."""
        return False

    def parameters(self, found: Any) -> Any:
        """Its parameters, of what a function of `tdjax` made of them."""
        return found

    def collections(self, found: Any) -> dict[str, Any]:
        """All its arrays, of what a function of `tdjax` made of them."""
        return dict(found)

    def loaded(self, path: str, model: Variables) -> Variables:
        """The same with the arrays of a file; raises `WeightsError`, see `load_weights`."""
        return self.start(load_weights(path, model.collections))

    def without_dead(self, model: Variables, sample: Inputs) -> Any:
        """The parameters without those of neurons that nothing uses any more."""
        return self.smaller(self.call(remove_dead, model, sample))

    def smaller(self, found: SmallerModel) -> Any:
        """The parameters that `tdjax.remove_dead` left."""
        return self.parameters(found.variables["params"])

    @abstractmethod
    def watched(self, model: Variables, images: Inputs, keep: Keep) -> None:
        """Call it, and tell of each layer in it."""

    def saved(self, model: Variables) -> Any:
        """Its arrays as `tdjax.save_factorised` takes them."""
        return model.collections

    def like(self, model: Variables) -> Any:
        """What `tdjax.load_factorised` needs to know of it."""
        return None

    def small(self, model: Variables, plan: Plan) -> Any:
        """The network with a plan's factors in it as `tdjax.refine` takes it."""
        return self.saved(model)


@dataclass(frozen=True)
class LinenNetwork(Forward):
    """The forward function of a Linen module.

    In training its call gets the first of `TRAINING_FLAGS` that it takes, if it takes one.
    """

    module: nn.Module

    def __call__(
        self, params: Any, state: Any, images: Inputs, key: Array | None
    ) -> tuple[Array, Any]:
        """Logits of a batch of images, and the collections after it."""
        variables, (args, kwargs) = {**state, "params": params}, call_arguments(images)
        if key is None:
            return cast(Array, self.module.apply(variables, *args, **kwargs)), state
        kwargs |= training_flags(self.module.__call__)
        result = self.module.apply(
            variables, *args, **kwargs, mutable=list(state), rngs={"dropout": key}
        )
        return cast(tuple[Array, Any], result)

    def start(self, arrays: Mapping[str, Any]) -> Variables:
        """The collections of its variables."""
        state = {name: value for name, value in arrays.items() if name != "params"}
        return Variables(arrays["params"], state)

    def subject(self, model: Variables) -> tuple[Any, ...]:
        """The module and its variables."""
        return self.module, model.collections

    def factorised(self, plan: Plan) -> Small:
        """The network with chains in place of layers."""
        small = factorize(self.module, plan)

        def call(variables: Any, images: Inputs) -> Array:
            args, kwargs = call_arguments(images)
            return cast(Array, small.apply(variables, *args, **kwargs))

        return call

    def keeps_batch_stats(self, model: Variables) -> bool:
        """Whether it has statistics of batch normalisation that can be estimated again."""
        return "batch_stats" in model.state

    def watched(self, model: Variables, images: Inputs, keep: Keep) -> None:
        """Call it, and tell of each layer in it."""
        watch_linen(self.module, model.collections, images, keep)


@dataclass(frozen=True)
class NnxNetwork(Forward):
    """The forward function of an NNX module.

    Its arrays are nested mappings by path, parameters apart from all others ("state"): statistics,
    and keys and counters of random numbers, from which every step of a training draws on. In
    training the module is in its training mode, and its call gets a flag too where it takes one.
    """

    module: nnx.Module

    def __call__(
        self, params: Any, state: Any, images: Inputs, key: Array | None
    ) -> tuple[Array, Any]:
        """Logits of a batch of images, and the state after it."""
        model: Any = self._filled(Variables(params, state))
        args, kwargs = call_arguments(images)
        if key is None:
            return model(*args, **kwargs), state
        model.train()
        logits = model(*args, **kwargs, **training_flags(model.__call__))
        return logits, self.start(model).state

    def start(self, arrays: nnx.Module) -> Variables:
        """The arrays of the module, or of one like it."""
        groups = variables_of(arrays)
        return Variables(groups.pop("params"), groups)

    def subject(self, model: Variables) -> tuple[Any, ...]:
        """The module with these arrays."""
        return (self._filled(model),)

    def factorised(self, plan: Plan) -> Small:
        """The network with chains in place of layers."""

        def call(variables: Any, images: Inputs) -> Array:
            args, kwargs = call_arguments(images)
            return cast(Array, self._filled(variables, plan)(*args, **kwargs))

        return call

    def keeps_batch_stats(self, model: Variables) -> bool:
        """Whether it has statistics of batch normalisation that can be estimated again."""
        return keeps_batch_stats(self.module)

    def parameters(self, found: Any) -> Any:
        """Its parameters, of what a function of `tdjax` made of them."""
        return self.start(found).params

    def collections(self, found: Any) -> dict[str, Any]:
        """All its arrays, of what a function of `tdjax` made of them."""
        return self.start(found).collections

    def loaded(self, path: str, model: Variables) -> Variables:
        """With the arrays of a file, named by their path in the module; random state stays."""
        drawn = nnx.filter_state(nnx.state(self.module), nnx.RngState)
        kept = [join_path(*names_of(keys)) for keys, _ in jax.tree.leaves_with_path(drawn)]
        groups = load_arrays(path, model.collections, lambda names: join_path(*names[1:]), kept)
        return Variables(groups.pop("params"), groups)

    def smaller(self, found: SmallerModel) -> Any:
        """The parameters that `tdjax.remove_dead` left."""
        return self.parameters(found.model)

    def small(self, model: Variables, plan: Plan) -> Any:
        """The module with a plan's factors in it."""
        return self._filled(model, plan)

    def watched(self, model: Variables, images: Inputs, keep: Keep) -> None:
        """Call it, and tell of each layer in it."""
        watch_nnx(self._filled(model), images, keep)

    def _filled(self, model: Any, plan: Plan = NOTHING_FACTORISED) -> Any:
        """The module with other arrays, in its inference mode."""
        arrays = model.collections if isinstance(model, Variables) else model
        filled: Any = restored(self.module, arrays, plan)
        filled.eval()
        return filled


@dataclass(frozen=True)
class FunctionNetwork(Forward):
    """The forward function of a pure function of parameters and inputs.

    In training it gets the first of `TRAINING_FLAGS` that it takes, and a `key` where it takes one.
    """

    module: Callable[..., Any]

    def __call__(
        self, params: Any, state: Any, images: Inputs, key: Array | None
    ) -> tuple[Array, Any]:
        """Logits of a batch of images, and the state, of which there is none."""
        args, kwargs = call_arguments(images)
        if key is not None:
            kwargs |= training_flags(self.module)
            kwargs |= {"key": key} if "key" in arguments_of(self.module) else {}
        return self.module(params, *args, **kwargs), state

    def start(self, arrays: Any) -> Variables:
        """Its parameters."""
        return Variables(arrays, {})

    def subject(self, model: Variables) -> tuple[Any, ...]:
        """The function and its parameters."""
        return self.module, model.params

    def factorised(self, plan: Plan) -> Small:
        """The network with chains in place of layers."""
        small = factorize(self.module, plan)

        def call(params: Any, images: Inputs) -> Array:
            args, kwargs = call_arguments(images)
            return cast(Array, small(params, *args, **kwargs))

        return call

    def without_dead(self, model: Variables, sample: Inputs) -> Any:
        """All of them: dead neurons are followed through modules, whose biases are known."""
        return model.params

    def watched(self, model: Variables, images: Inputs, keep: Keep) -> None:
        """Call it, and tell of each layer in it."""
        watch_function(self.module, model.params, images, keep)

    def loaded(self, path: str, model: Variables) -> Variables:
        """With the arrays of a file, named by their path in the parameters."""
        return self.start(load_arrays(path, model.params))

    def saved(self, model: Variables) -> Any:
        """Its parameters."""
        return model.params

    def like(self, model: Variables) -> Any:
        """Its parameters, in whose structure others come back."""
        return model.params


def forward_of(module: Any) -> Forward:
    """The forward function of a module or function of any kind."""
    if isinstance(module, nn.Module):
        return LinenNetwork(module)
    return NnxNetwork(module) if isinstance(module, nnx.Module) else FunctionNetwork(module)


def training_flags(call: Callable[..., Any]) -> dict[str, Any]:
    """What tells a call that it is one of training: nothing where it takes no such argument."""
    taken = arguments_of(call)
    named = [(name, value) for name, value in TRAINING_FLAGS.items() if name in taken]
    return dict(named[:1])


def arguments_of(call: Callable[..., Any]) -> Mapping[str, Any]:
    """The arguments of a call by name; none where it does not tell."""
    try:
        return inspect.signature(call).parameters
    except ValueError:
        return {}
