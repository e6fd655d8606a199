"""A function traced with its parameters and inputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr

from tdjax.functions.evaluate import Policy, evaluate
from tdjax.functions.held import Held
from tdjax.params.leaves import leaf_tree
from tdjax.trace.call import StaticPart, split_arrays
from tdjax.trace.views import view_of

# A function of parameters and inputs.
Apply = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Program:
    """A function traced with parameters and inputs.

    Arguments:
        jaxpr: that takes the arrays among the parameters, then those of the inputs.
        arrays: those of the parameters, by path.
        inputs: those of the inputs.
        outputs: what it returns, as shapes.
    """

    jaxpr: ClosedJaxpr
    arrays: Mapping[str, Any]
    inputs: Sequence[Any]
    outputs: Any

    def with_views(self, policy: Policy, paths: Collection[str]) -> Callable[..., list[Any]]:
        """The program, of its flat arguments, with views of the parameters at some paths."""

        def run(*arguments: Any) -> list[Any]:
            own = [*arguments]
            for place, path in enumerate(self.arrays):
                if path in paths:
                    shape = own[place].shape
                    own[place] = Held(own[place], path, shape, view_of(place, shape))
            return evaluate(self.jaxpr, own, policy)

        return run

    def run(self, policy: Policy, paths: Collection[str]) -> Any:
        """What the function returns, with views of the parameters at some paths."""
        results = self.with_views(policy, paths)(*self.arrays.values(), *self.inputs)
        return jax.tree.unflatten(jax.tree.structure(self.outputs), results)


def program_of(
    apply: Apply, params: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Program:
    """Trace a function. Raises what it raises."""
    tree, (arrays, static) = leaf_tree(params), split_arrays(params)
    inputs, frame = split_arrays((tuple(args), dict(kwargs)))
    jaxpr, outputs = jax.make_jaxpr(calling(apply, static, frame), return_shape=True)(
        arrays, inputs
    )
    paths = [tree.paths[place] for place in static.places]
    return Program(jaxpr, dict(zip(paths, arrays, strict=True)), inputs, outputs)


def calling(
    apply: Apply, static: StaticPart, frame: StaticPart
) -> Callable[[Sequence[Any], Sequence[Any]], Any]:
    """A function of the arrays among its parameters and inputs alone.

    Arguments:
        static, frame: the static parts of parameters and arguments.
    """

    def call(arrays: Sequence[Any], inputs: Sequence[Any]) -> Any:
        args, kwargs = frame.join(inputs)
        return apply(static.join(arrays), *args, **kwargs)

    return call
