"""Marks on the arrays at a layer's ends, which a traced program keeps through all transformations.

A mark is an identity on an array, beside the layer's kernel. Under `vmap` it records which of the
new axes the kernel has too: those are layers of a stack, the others further examples.

What a layer does between its marks carries the number of the call in the name stack of its
equations, which goes through all transformations too: those of its derivatives carry it as well.
"""

from __future__ import annotations

import math
import re
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

INPUT, OUTPUT = "input", "output"
SCOPE = "tdjax_call_"

mark_p = Primitive("tdjax_mark")


class Mark(NamedTuple):
    """A mark as a program holds it.

    Arguments:
        number, end: as given to `mark`.
        stacked: of each axis that `vmap` put in front, whether the kernel has it too.
    """

    number: int
    end: str
    stacked: tuple[bool, ...]


def mark(x: Array, kernel: Array, number: int, end: str) -> Array:
    """x itself, marked.

    Arguments:
        x: what goes into the layer (`INPUT`) or comes out of it (`OUTPUT`).
        kernel: the layer's own.
        number: of the call.
    """
    return mark_p.bind(x, kernel, number=number, end=end, stacked=())


def inside_call(number: int) -> AbstractContextManager[Any]:
    """A context in which equations are known as those of a layer's call."""
    return jax.named_scope(f"{SCOPE}{number}")


def calls_around(eqn: JaxprEqn) -> tuple[int, ...]:
    """The calls that an equation is part of, in its own program, the outermost first."""
    names = str(eqn.source_info.name_stack)
    return tuple(map(int, re.findall(rf"{SCOPE}(\d+)", names))) if SCOPE in names else ()


def is_differentiated(array: Any) -> bool:
    """Whether a gradient by an array is being taken, as far as its tracer tells."""
    # By name, as the second moves between versions of JAX.
    return type(array).__name__ in ("JVPTracer", "LinearizeTracer")


def runs_of(eqn: Any) -> int:
    """How often a call runs that an equation marks, one of those that `vmap` made of it."""
    return math.prod(eqn.invars[0].aval.shape[: len(eqn.params["stacked"])])


def _identity(x: Any, kernel: Any, **_: Any) -> Any:
    return x


def _batched(arrays: Any, dims: Any, *, stacked: tuple[bool, ...], **params: Any) -> Any:
    """The new axis goes to the front of both."""
    (x, kernel), (x_dim, kernel_dim) = arrays, dims
    (size,) = {a.shape[d] for a, d in zip(arrays, dims, strict=True) if d is not None}
    if x_dim is None:
        x, x_dim = jnp.broadcast_to(x, (size, *x.shape)), 0
    own = kernel_dim is not None
    if own:
        kernel = jnp.moveaxis(kernel, kernel_dim, 0)
    marked = mark_p.bind(jnp.moveaxis(x, x_dim, 0), kernel, stacked=(own, *stacked), **params)
    return marked, 0


def _jvp(primals: Any, tangents: Any, **params: Any) -> Any:
    return mark_p.bind(*primals, **params), tangents[0]


mark_p.def_impl(_identity)
mark_p.def_abstract_eval(_identity)
batching.primitive_batchers[mark_p] = _batched
ad.primitive_jvps[mark_p] = _jvp
mlir.register_lowering(mark_p, mlir.lower_fun(_identity, multiple_results=False))
