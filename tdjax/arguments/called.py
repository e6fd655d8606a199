"""What is the user's own and called by the library: a model, a loss, a metric."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tdjax.arguments.described import described, is_array, shapes_text
from tdjax.hints import did_you_mean
from tdjax.trace.call import batch_size, split_arrays

# How a model is called: by its own call, by the method of a name, or by a function of the model and
# the inputs.
Method = str | Callable[..., Any] | None


def called(model: Any, method: Method) -> Callable[..., Any]:
    """What of a model is called. Raises ValueError for a model without such a method."""
    if callable(method):
        # Of a method of one model, the function: it is called on this one.
        return functools.partial(getattr(method, "__func__", method), model)
    name = "__call__" if method is None else method
    if not callable(getattr(model, name, None)):
        others = [other for other in dir(type(model)) if not other.startswith("_")]
        raise ValueError(
            f"{type(model).__name__} has no method {name!r}{did_you_mean(name, others)}: "
            "name one that takes these inputs, as in method='encode', or pass a function of the "
            "model and the inputs"
        )
    return getattr(model, name)


def call_model(model: Any, method: Method, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a model that holds its arrays, or is bound to them, returns.

    Raises as `called`, and TypeError for a tuple of labels where the model has a switch.
    """
    function = called(model, method)
    check_switches(function, args, kwargs)
    return function(*args, **kwargs)


def check_switches(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Refuse arrays in a tuple or the like as a switch such as `train`: they would turn it on."""
    try:
        signature = inspect.signature(function)
        given = signature.bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        # The call says itself what does not fit.
        return
    for name, value in given.items():
        switch = isinstance(signature.parameters[name].default, bool)
        if switch and not is_array(value) and split_arrays(value)[0]:
            raise TypeError(f"{name} is a switch, and is given {described(value)}")


@contextmanager
def calling_the_model(*inputs: Any) -> Iterator[None]:
    """Name the inputs where a model's own call fails on them: it says itself what it lacks."""
    try:
        yield
    except Exception as error:
        remedy = _remedy(inputs[0], str(error)) if len(inputs) == 1 else ""
        raise ValueError(
            f"the model cannot be called with {shapes_text(inputs)}, of which the first axis is "
            f"the batch{remedy}: {type(error).__name__}: {error}"
        ) from error


def _remedy(inputs: Any, problem: str) -> str:
    """What to do about inputs with which a model cannot be called."""
    if isinstance(inputs, tuple) and len(inputs) > 1:
        return (
            "; a tuple holds the model's positional arguments: pass the input alone where it "
            "was (input, labels), [x for x, _ in batches]; (input, rest) is for a loss_fn or "
            "metric_fn, the input being a tuple or dict where there are several, ((a, b), rest)"
        )
    if "missing" in problem and "required positional argument" in problem:
        return (
            "; what the model takes beside one array goes in a dict or a tuple, flags too: "
            '{"x": x, "train": False} by their names, or (x, False)'
        )
    names = inputs if isinstance(inputs, Mapping) and "unexpected keyword" in problem else ()
    for name in names:
        if f"argument {name!r}" in problem:
            return (
                f"; a dict holds the model's keyword arguments, and {name!r} is none: leave it "
                "out where it is a label. Where a loss_fn or metric_fn takes the batch, write "
                "(inputs, rest): the dict without it, and what the loss takes beside it"
            )
    return ""


def example_losses(loss_fn: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A loss whose result is checked: (batch,), or a mean.

    Raises TypeError for a result that is no array of floats, ValueError for one of another shape.
    """

    @functools.wraps(loss_fn)
    def losses(outputs: Any, batch: Any) -> Any:
        number = number_of(batch)
        try:
            found = loss_fn(outputs, batch)
        except Exception as error:
            error.add_note(
                f"loss_fn is called as loss_fn(outputs, batch), here with outputs of "
                f"{shapes_text(outputs)} and a batch of {shapes_text(batch)}"
            )
            raise
        wanted = f"return the losses of the examples, floats of shape ({number},), or their mean"
        if not (is_array(found) and jnp.issubdtype(found.dtype, jnp.floating)):
            raise TypeError(f"loss_fn returned {described(found)}: {wanted}")
        if found.shape not in ((), (number,)):
            raise ValueError(f"loss_fn returned {described(found)}: {wanted}")
        return found

    return losses


def checked_weights(row_weights: Callable[[Any], Any]) -> Callable[[Any], Array]:
    """Weights of rows whose values are checked, in float32, without axes of size 1 at the end.

    Raises TypeError for a result that is no array of numbers, ValueError for one that is not
    (batch, ...), not negative and finite.
    """

    @functools.wraps(row_weights)
    def weights(batch: Any) -> Array:
        number = number_of(batch)
        if number == 0:
            raise ValueError("row_weights: an empty batch")
        try:
            found = row_weights(batch)
        except Exception as error:
            error.add_note(
                f"row_weights is called as row_weights(batch), here with {shapes_text(batch)}"
            )
            raise
        wanted = f"return one of shape ({number}, ...), as an attention mask"
        if not is_array(found) or not _is_numeric(found.dtype):
            raise TypeError(f"row_weights returned {described(found)}: {wanted}")
        if found.shape[:1] != (number,):
            raise ValueError(f"row_weights returned {described(found)}: {wanted}")
        own = jnp.asarray(found, jnp.float32)
        if not bool((jnp.isfinite(own) & (own >= 0)).all()):
            raise ValueError("row_weights returned negative numbers, NaN or Inf: weights are >= 0")
        while own.shape[1:] and own.shape[-1] == 1:
            own = own[..., 0]
        return own

    return weights


def check_metrics(found: Any, number: int) -> None:
    """Check what a `metric_fn` returned for so many examples: one value of each, for each.

    Raises TypeError for something that is no array, ValueError for an array of another shape.
    """
    wanted = f"return one value for each example, arrays of shape ({number},)"
    leaves = jax.tree.leaves(found)
    for leaf in leaves or [found]:
        if not is_array(leaf):
            raise TypeError(f"metric_fn returned {described(leaf)}: {wanted}")
        if leaf.shape[:1] != (number,):
            raise ValueError(f"metric_fn returned {described(leaf)}: {wanted}")


def _is_numeric(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))


def number_of(batch: Any) -> int:
    """Number of examples of a batch."""
    return batch_size(split_arrays(batch)[0])
