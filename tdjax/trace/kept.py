"""Programs that are kept, and found again by what they compute."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

# Programs of whole networks, the last used of which are kept.
MOST = 16
_programs: OrderedDict[str, Callable[..., Any]] = OrderedDict()


def kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function compiled as `jax.jit` does it, or not at all where it has been before.

    `jax.jit` knows a program by the function alone, so that a closure made anew, as of a model and
    a loss, is compiled anew. Here it is traced and lowered once for arguments of each shape, and
    what computes the same, letter by letter, is the same program. Arrays that the function closes
    over are arguments of it.
    """
    known: dict[Any, Callable[..., Any]] = {}

    def answer(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return function(*args)
        key = structure, tuple(map(jax.typeof, leaves))
        if key not in known:
            known[key] = _found(function, args)
        return known[key](leaves)

    return answer


def _found(function: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[list[Any]], Any]:
    """From the leaves of the arguments to the function's result, by a kept program."""
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    jaxpr, constants, structure = traced.jaxpr, traced.consts, jax.tree.structure(shapes)

    number = len(constants)

    # All arguments are in the text, so that it says which of them counts for what.
    @partial(jax.jit, keep_unused=True)
    def program(arrays: list[Any]) -> list[Any]:
        return list(jaxpr_as_fun(ClosedJaxpr(jaxpr, arrays[:number]))(*arrays[number:]))

    # With this setting of JAX constants are no part of a program's text.
    if not getattr(jax.config, "jax_use_simplified_jaxpr_constants", False):
        text = program.lower([*constants, *jax.tree.leaves(args)]).as_text()
        key = hashlib.sha256(text.encode()).hexdigest()
        known = _programs.setdefault(key, program)
        _programs.move_to_end(key)
        if len(_programs) > MOST:
            _programs.popitem(last=False)
    else:
        known = program
    return lambda leaves: jax.tree.unflatten(structure, known([*constants, *leaves]))
