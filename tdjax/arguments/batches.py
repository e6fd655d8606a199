"""What of a batch goes into the model: one rule for all functions.

A batch is the model's input: an array, a tuple of positional or a dict of keyword arguments. Where
the user's own function takes the batch too (a loss, a metric, row weights), it may also be a tuple
(input, rest), of which the model sees the first entry. A tuple that could be either is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tdjax.arguments.described import described, is_array, shapes_text
from tdjax.trace.call import Reading, call_arguments, form_of, peeked, split_arrays


def read_batches(
    function: str, model: Any, trace_of: Callable[[Any], Any], batches: Iterable[Any]
) -> tuple[Reading, Iterable[Any]]:
    """How batches that the user's own function takes too are read, and the batches.

    The first of them decides, by the signature of the model, and where that leaves it open by
    whether the model can be called; all others have its form.

    Arguments:
        function: whose batches they are, for messages.
        model: asked for its signature.
        trace_of: traces the model on an input; raises ValueError where it cannot be called so.

    Raises ValueError for a tuple of which the model takes the first entry as well as more.
    """
    batch, batches = peeked(batches)
    first = _reads_first(function, model, trace_of, batch)
    return Reading(first, None if batch is None else form_of(batch)), batches


def _reads_first(function: str, model: Any, trace_of: Callable[[Any], Any], batch: Any) -> bool:
    """Whether of a batch the model sees the first entry alone; see `read_batches`."""
    if isinstance(batch, Mapping):
        _check_names(function, model, batch)
    if not isinstance(batch, tuple) or not batch:
        return False
    if isinstance(batch[0], (tuple, Mapping)):
        # Arguments in a tuple or a dict of their own are what makes a batch plain.
        return not _accepts(model, batch) or (
            _accepts(model, batch[0]) and _traces(trace_of, batch[0])
        )
    if not any(split_arrays(entry)[0] for entry in batch[1:]):
        # Switches, or a rest of None. A chain of layers takes any number, and may fail on it.
        if not _accepts(model, batch):
            return True
        return _accepts_any_number(model) and not _traces(trace_of, batch)
    numbers = range(2, len(batch) + 1)
    taken = [n for n in numbers if _accepts(model, batch[:n]) and _traces(trace_of, batch[:n])]
    alone = _accepts(model, batch[0]) and (not taken or _traces(trace_of, batch[0]))
    if not taken:
        return True
    if taken == [len(batch)] and not alone:
        return False
    raise ValueError(
        f"{function}: of the batch ({', '.join(map(_entry, batch))}) the model takes "
        f"{' or '.join(_first(n) for n in [1] * alone + taken)}: write ((a, b), rest) where it is "
        "to be called with a and b (rest may be None), ((a,), rest) where with a alone"
    )


def _check_names(function: str, model: Any, batch: Mapping[str, Any]) -> None:
    """Refuse a dict with more than the model takes, such as labels."""
    try:
        known = inspect.signature(model).parameters
    except (TypeError, ValueError):
        return
    more = [name for name in batch if name not in known]
    if more and not any(own.kind is own.VAR_KEYWORD for own in known.values()):
        raise ValueError(
            f"{function}: the model takes no {', '.join(map(repr, more))}, which the batch has: "
            "write (inputs, rest), the dict without them and what the loss takes beside it"
        )


def _accepts(model: Any, inputs: Any) -> bool:
    """Whether the signature of a model takes an input; True where nothing is known of it."""
    args, kwargs = call_arguments(inputs)
    try:
        signature = inspect.signature(model)
    except (TypeError, ValueError):
        return True
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:
        return False
    return not any(
        _is_flag(signature.parameters[name]) and any(one.shape for one in split_arrays(value)[0])
        for name, value in given.items()
    )


def _accepts_any_number(model: Any) -> bool:
    """Whether the signature of a model ends in `*args`, as that of a chain of layers does."""
    try:
        known = inspect.signature(model).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(own.kind is own.VAR_POSITIONAL for own in known)


def _is_flag(parameter: inspect.Parameter) -> bool:
    """Whether an argument is a switch, as `train`, which no arrays of examples are meant for."""
    known = isinstance(parameter.default, (bool, str))
    return known or "bool" in str(parameter.annotation)


def _traces(trace_of: Callable[[Any], Any], inputs: Any) -> bool:
    try:
        trace_of(inputs)
    except ValueError:
        return False
    return True


def _first(number: int) -> str:
    return "the first entry" if number == 1 else f"the first {number}"


def _entry(value: Any) -> str:
    return shapes_text(value) if is_array(value) else described(value)
