"""What goes into the layers of a network, and what comes out of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from flax import nnx

from experiments.data import Inputs
from tdjax.functions.program import Apply
from tdjax.functions.read import read
from tdjax.nnx.graph import become, modules_of, with_calls
from tdjax.params.tree import join_path
from tdjax.trace.call import call_arguments, split_arrays
from tdjax.trace.marks import INPUT, OUTPUT, Mark
from tdjax.trace.visit import run

# (path of a layer, its input, its output) -> None, at each of its calls.
Keep = Callable[[str, Any, Any], None]


def watch_linen(
    module: nn.Module, variables: Mapping[str, Any], images: Inputs, keep: Keep
) -> None:
    """Call a Linen module, and tell of each module in it."""

    def look(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        outputs = next_fun(*args, **kwargs)
        if context.method_name == "__call__":
            keep(join_path(*context.module.path), args[0] if args else None, outputs)
        return outputs

    with nn.intercept_methods(look):
        args, kwargs = call_arguments(images)
        module.apply(variables, *args, **kwargs)


def watch_nnx(model: nnx.Module, images: Inputs, keep: Keep) -> None:
    """Call an NNX module, and tell of each module in it; its classes are others afterwards."""
    for path, module in modules_of(model).items():
        cls: Any = type(module)
        become(module, with_calls(cls, functools.partial(_told, path, keep)))
    called: Any = model
    args, kwargs = call_arguments(images)
    called(*args, **kwargs)


def watch_function(apply: Apply, params: Any, images: Inputs, keep: Keep) -> None:
    """Call a function, and tell of each layer that is called outside loops, rows as inputs."""
    found = read(apply, params, images)
    trace = found.trace
    arrays, _ = split_arrays((params, call_arguments(images)))

    def rows(end: str) -> dict[int, Any]:
        def visit(mark: Mark, x: Any, _: Any) -> tuple[Any, Any]:
            return x, x if mark.end == end and mark.number not in trace.survey.looped else None

        return run(trace.jaxpr, trace.survey, visit, arrays, {})[1]

    inputs, outputs = rows(INPUT), rows(OUTPUT)
    for number, called in trace.calls.items():
        if number in inputs and called.layer.storage.stack is None:
            keep(called.layer.path, inputs[number], outputs[number])


def _told(path: str, keep: Keep, cls: type, method: str) -> Callable[..., Any]:
    """A method of a class that also tells what it returns."""
    answer = getattr(cls, method)

    @functools.wraps(answer)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = answer(self, *args, **kwargs)
        keep(path, args[0] if args else None, outputs)
        return outputs

    return call
