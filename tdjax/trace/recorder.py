"""The calls of a model's layers, recorded while the model is traced with shapes alone.

An adapter knows its module system: how to run the model so that every call of a layer comes to
the recorder, and what parameters the layer holds. What a call says of the layer, and the marks at
both its ends, are the same in all of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from tdjax.plan.layers import Layer, in_stack
from tdjax.trace.call import Call, batch_size, call_arguments, split_arrays
from tdjax.trace.marks import INPUT, OUTPUT, inside_call, mark
from tdjax.trace.names import Names, leaf_names
from tdjax.trace.trace import Trace, TracedCall

# The array that goes into a layer, where it is given by name: of a call, of an embedding's attend.
INPUT_NAMES = ("inputs", "query")


@dataclass(frozen=True, eq=False)
class CalledLayer:
    """What a module system knows of a layer that is called.

    Arguments:
        path: '/'-joined.
        module: the layer, asked for its settings.
        weight: name of the parameter that is decomposed.
        shapes: of all the layer's own parameters, by name.
        describe: a layer table's entry from a call, without path.
        obstacle: why it cannot be factorised, where the call does not tell.
        array: names of the array that is decomposed among those of the model.
    """

    path: str
    module: Any
    weight: str
    shapes: Mapping[str, tuple[int, ...]]
    describe: Callable[[Call], Layer]
    obstacle: str | None = None
    array: Names | None = None

    def entry(self, call: Call) -> Layer:
        """The entry of the layer from one call, with the stack that its array may lie in."""
        others = [shape for name, shape in self.shapes.items() if name != self.weight]
        layer = dataclasses.replace(
            self.describe(call), path=self.path, other=sum(map(math.prod, others))
        )
        layer = in_stack(layer, self.weight, self.shapes[self.weight])
        return dataclasses.replace(layer, obstacle=layer.obstacle or self.obstacle)


class Recorder:
    """The calls of one pass.

    Attributes:
        calls: by number, in the order in which they begin.
        kept: what the model keeps beside its outputs, a pytree named as its state is.
        asked: of arrays of layers that the model asks for in a way which leaves nothing in its
            program, by their names, how; known where a module system can tell.
    """

    def __init__(self) -> None:
        """No call is known yet."""
        self.calls: dict[int, TracedCall] = {}
        self.kept: Any = ()
        self.asked: dict[Names, str] = {}
        self._numbers = itertools.count()

    def number(self) -> int:
        """The number of a call that begins."""
        return next(self._numbers)

    def call(
        self,
        layer: CalledLayer,
        kernel: Any,
        method: str,
        answer: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """The layer's answer; the call is recorded, and marked at both ends.

        Arguments:
            kernel: the array that is decomposed, as the call sees it.
            method: name of the method that is called.
            answer: that method, called with `args` and `kwargs`.
        """
        number, args, kwargs = self.number(), list(args), dict(kwargs)
        name = next((name for name in INPUT_NAMES if name in kwargs), None)
        inputs = mark(args[0] if name is None else kwargs[name], kernel, number, INPUT)
        if name is None:
            args[0] = inputs
        else:
            kwargs[name] = inputs
        with inside_call(number):
            output = answer(*args, **kwargs)
        equation = args[1] if len(args) > 1 else kwargs.get("einsum_str")
        call = Call(layer.module, method, inputs, output, equation)
        self.calls[number] = TracedCall(layer.entry(call), call, layer.array)
        return mark(output, kernel, number, OUTPUT)


def trace_model(
    recorder: Recorder,
    model: Callable[[Any, Sequence[Any], Mapping[str, Any]], Any],
    state: Any,
    sample: Any,
) -> Trace:
    """Trace a model with shapes, while its layers' calls come to a recorder.

    Arguments:
        model: (state, positional arguments, keyword arguments) -> outputs.
        state: pytree of the model's arrays, or of their shapes. The traced program takes its
            leaves first, then the arrays of the sample.
        sample: one batch as the model takes it, see `tdjax.make_plan`.
    """
    arrays, static = split_arrays(call_arguments(sample))
    kept_names: list[Names] = []

    def program(state: Any, arrays: Any) -> Any:
        args, kwargs = static.join(arrays)
        outputs = model(state, args, kwargs)
        kept, rest = split_arrays(recorder.kept)
        names = leaf_names(recorder.kept)
        kept_names[:] = [names[place] for place in rest.places]
        return outputs, kept

    jaxpr, (outputs, _) = jax.make_jaxpr(program, return_shape=True)(state, arrays)
    own = leaf_names(state)
    return Trace(
        jaxpr, recorder.calls, outputs, batch_size(arrays), own, tuple(kept_names),
        dict(recorder.asked), len(own),
    )  # fmt: skip
