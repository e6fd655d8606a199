"""From a model to the adapter that knows it: one name for all module systems.

A function on models is written once, with the arrays of a model as `variables`. `on_models` binds a
call as the model's kind has it, with the arrays beside the model or without, and answers one that
does not fit in terms of that kind. A further adapter is an entry of `KINDS`, and an overload of
each function for type checkers.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
from flax import nnx

import tdjax.functions
import tdjax.linen
import tdjax.nnx
from tdjax.arguments.called import Method, called
from tdjax.arguments.checks import call_text, check_arguments
from tdjax.arguments.described import described
from tdjax.dispatch.modes import (
    is_told,
    told,
    training_flag,
    warn_of_fields,
    warn_of_flag,
    warn_of_modules,
)
from tdjax.hints import did_you_mean
from tdjax.processes import together
from tdjax.trace.call import peeked


class Kind(NamedTuple):
    """A kind of models.

    Arguments:
        base: the class of its models.
        room: the adapter: a package with the functions of this one, under the same names.
        held: name of the argument that its arrays come in; None where a model holds them.
        name, note: what messages say of them, and to a wrong number of arguments.
        words, no_params: see `tdjax.arguments.models.ModelKind`.
        checks: names of other checks of arguments than their own, by name.
        lacks: names of the functions on models that take none of them.
        without: names of the arguments that mean nothing for them, of one function alone behind its
            name and a dot.
        in_training: a model's modules that are in training mode, see
            `tdjax.nnx.modes.training_modules`; None where they have none of their own.
        fields: those of a model that say training, see `tdjax.linen.modes.training_fields`.
    """

    base: Any
    room: types.ModuleType
    held: str | None
    name: str
    note: str
    words: str = ""
    no_params: str = ""
    checks: Mapping[str, str] = types.MappingProxyType({})
    lacks: Sequence[str] = ()
    without: Sequence[str] = ()
    in_training: Callable[[Any], Mapping[str, str]] | None = None
    fields: Callable[[Any], Mapping[str, bool]] | None = None

    def lacks_argument(self, function: str, name: str) -> bool:
        """Whether an argument of a function means nothing for them."""
        return name in self.without or f"{function}.{name}" in self.without


KINDS = (
    Kind(
        nn.Module,
        tdjax.linen,
        "variables",
        "a flax.linen.Module",
        "a Linen model holds no arrays and comes with its variables",
        "a Linen model",
        "which holds no parameters: pass its variables",
        fields=tdjax.linen.training_fields,
    ),
    Kind(
        nnx.Module,
        tdjax.nnx,
        None,
        "a flax.nnx.Module",
        "an NNX model holds its variables and comes alone",
        "an NNX model",
        "which holds its parameters: call tdjax.factorize(model, plan, ...), or pass "
        "nnx.state(model, nnx.Param) to prune them",
        in_training=tdjax.nnx.training_modules,
    ),
    Kind(
        Callable,
        tdjax.functions,
        "params",
        "a function apply(params, *inputs)",
        "a function holds no arrays and comes with its parameters",
        checks={"params": "tree", "plan_or_params": "plan_or_tree"},
        lacks=("remove_dead", "reestimate_batch_stats", "shared_inputs", "paired_layers"),
        without=(
            "method",
            "features",
            "refine.blocks",
            "block_epochs",
            "mix",
            "batch_stats",
            "measure_rises.row_weights",
            "shared",
            "pairs",
        ),
    ),
)


# What runs a model to measure it, beside the functions that go over batches.
RUNNING = ("time_layers",)


def kind_of(model: Any) -> Kind:
    """The kind of a model. Raises TypeError for something that is none."""
    for kind in KINDS:
        if isinstance(model, kind.base) and not isinstance(model, type):
            return kind
    remedy = ""
    if isinstance(model, type):
        remedy = f": make an instance, {model.__name__}(...)"
    elif isinstance(model, Mapping):
        remedy = (
            ": the model comes first, then its variables; a saved NNX model comes back by "
            "tdjax.load_factorised(folder, like=model)"
        )
    *most, last = (kind.name for kind in KINDS)
    expected = f"{', '.join(most)} or {last}"
    raise TypeError(f"expected {expected}, got {described(model)}{remedy}")


def room_of(model: Any) -> Any:
    """The adapter of a model."""
    return kind_of(model).room


def with_arrays(model: Any, variables: Any) -> tuple[Any, ...]:
    """The arguments in front of an adapter's functions: the model, and its arrays if apart."""
    return (model,) if kind_of(model).held is None else (model, variables)


def caller_of(model: Any, variables: Any, method: Method) -> Callable[..., Any]:
    """What of a model is called with inputs; its signature is that of the inputs."""
    if room_of(model) is tdjax.functions:
        return functools.partial(model, variables)
    return called(model, method)


def on_models(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function on models of all kinds, whose first argument is the model.

    The function is called with arguments by name, bound as the model's kind has them and checked;
    where it takes `variables`, those are None for a model that holds its arrays.
    """
    name, whole = function.__name__, inspect.signature(function)
    runs = name in RUNNING or "batches" in whole.parameters
    signatures = {kind.name: signature_of(name, whole, kind) for kind in KINDS}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not args and "model" not in kwargs:
            raise TypeError(f"{name}: the model is missing; the call is {call_text(name, whole)}")
        kind = kind_of(args[0] if args else kwargs["model"])
        if name in kind.lacks:
            takers = " or ".join(other.name for other in KINDS if name not in other.lacks)
            raise TypeError(f"{name}: takes {takers}, not {kind.name}")
        signature = signatures[kind.name]
        text = call_text(name, signature)
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            note = _note(name, kind, signature, whole, kwargs)
            raise TypeError(f"{name}: {error}: {note}; the call is {text}") from None
        check_arguments(name, text, given, kind.checks)
        if "variables" in whole.parameters:
            given["variables"] = None if kind.held is None else given.pop(kind.held)
        if not runs or is_told():
            return function(**given)
        _warn_in_training(name, kind, args[0] if args else kwargs["model"], given)
        with told():
            return function(**given)

    return call


def _warn_in_training(function: str, kind: Kind, model: Any, given: dict[str, Any]) -> None:
    """Tell of a model that would be measured as it is trained, not as it is used."""
    found = {} if kind.in_training is None else kind.in_training(model)
    if function == "reestimate_batch_stats":
        # Whose statistics are estimated runs in training mode whatever it says.
        found = {path: text for path, text in found.items() if "use_running_average" not in text}
    warn_of_modules(function, found, stacklevel=3)
    try:
        flag = training_flag(caller_of(model, given.get("variables"), given.get("method")))
    except ValueError:
        # There is no such method, as the function says itself.
        return
    fields = {} if kind.fields is None else kind.fields(model)
    if flag is None and not fields:
        return
    first = given.get("sample")
    if "batches" in given:
        first, given["batches"] = together(function, lambda: peeked(given["batches"]))
    if flag is not None:
        warn_of_flag(function, flag, first, stacklevel=3)
    elif kind.room.trains(model, given["variables"], first, given.get("method")):
        warn_of_fields(function, fields, stacklevel=3)


def signature_of(name: str, whole: inspect.Signature, kind: Kind) -> inspect.Signature:
    """How a function on models is called for one kind of them; its overloads say the same.

    The arrays of a model come as the kind has them. A function that takes none makes a model: its
    options are for models that hold their arrays.
    """
    found = []
    for parameter in whole.parameters.values():
        if kind.lacks_argument(name, parameter.name):
            continue
        if parameter.name == "variables":
            if kind.held is not None:
                found.append(parameter.replace(name=kind.held))
        elif (
            kind.held is None
            or "variables" in whole.parameters
            or parameter.kind is not parameter.KEYWORD_ONLY
        ):
            found.append(parameter)
    return whole.replace(parameters=found)


def _note(
    function: str,
    kind: Kind,
    signature: inspect.Signature,
    whole: inspect.Signature,
    kwargs: Mapping[str, Any],
) -> str:
    """What to do about arguments that do not fit a kind of models."""
    for name in kwargs.keys() - signature.parameters.keys():
        if kind.lacks_argument(function, name):
            return f"{name} means nothing for {kind.name}"
        if name in whole.parameters and name != "variables":
            return f"{name} belongs to tdjax.factorize_params(params, plan, {name}=...)"
        if name in [other.held for other in KINDS]:
            return kind.note
        near = did_you_mean(name, signature.parameters)
        others = "" if near else f"; its arguments are {', '.join(signature.parameters)}"
        return f"there is no {name}{near}{others}"
    if kind.held is not None and "variables" not in whole.parameters:
        return "parameters are not among them, but those of tdjax.factorize_params(params, plan)"
    return kind.note
