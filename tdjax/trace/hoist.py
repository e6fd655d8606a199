"""A function split into what one of its arguments never reaches, done once, and the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from tdjax.trace.programs import bind

# Called functions, which may hold both parts; by name, as it changed between versions of JAX.
CALLS = ("jit", "pjit")
# Done again rather than kept: what they make is larger than what they read, and costs nothing.
REPEATED = ("broadcast_in_dim", "iota")

# The value of a number, or a literal.
Slot = Any


class Step(NamedTuple):
    """One equation of a program whose values are numbered."""

    eqn: JaxprEqn
    reads: tuple[Slot, ...]
    writes: tuple[int, ...]


def split(
    function: Callable[[Any, Any], Any], varying: Any, fixed: Any
) -> tuple[Callable[[Any], list[Any]], Callable[[Any, list[Any]], Any]]:
    """Functions `before` and `after` with function(v, f) == after(v, before(f)).

    `before` holds all that does not depend on v, as far as `after` needs it: with many v and one
    f it runs once. `jax.vmap` does the same within one program; this does it across programs.

    Arguments:
        function: of one array and a pytree of arrays; a pure function that JAX can trace.
        varying, fixed: its arguments, as arrays or shapes. The two functions take arguments of
            these shapes only.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(varying, fixed)
    structure = jax.tree.structure(shapes)
    numbers = count()
    arguments = [next(numbers) for _ in closed.jaxpr.invars]
    steps: list[Step] = []
    constants: dict[int, Any] = {}
    results = _flatten(closed.jaxpr, closed.consts, arguments, numbers, steps, constants)

    early, late = _part(steps, {arguments[0]})
    late = _needed(late, results)
    late = _repeated(early, late) + late
    written = {number for step in late for number in step.writes}
    read = _numbers(results).union(*(_numbers(step.reads) for step in late))
    kept = sorted(read - written - {arguments[0]} - constants.keys())
    early = _needed(early, kept)

    def before(fixed: Any) -> list[Any]:
        values = constants | dict(zip(arguments[1:], jax.tree.leaves(fixed), strict=True))
        return _run(early, values, kept)

    def after(varying: Any, found: list[Any]) -> Any:
        values = constants | {arguments[0]: varying} | dict(zip(kept, found, strict=True))
        return jax.tree.unflatten(structure, _run(late, values, results))

    return before, after


def _flatten(
    jaxpr: Jaxpr,
    consts: Iterable[Any],
    arguments: Iterable[Slot],
    numbers: Iterator[int],
    steps: list[Step],
    constants: dict[int, Any],
) -> list[Slot]:
    """Append the steps of a program, called functions written out; returns its results."""
    slots: dict[Any, Slot] = dict(zip(jaxpr.invars, arguments, strict=True))
    for var, value in zip(jaxpr.constvars, consts, strict=True):
        slots[var] = next(numbers)
        constants[slots[var]] = value

    def slot(atom: Any) -> Slot:
        return atom if isinstance(atom, Literal) else slots[atom]

    for eqn in jaxpr.eqns:
        reads = tuple(map(slot, eqn.invars))
        if eqn.primitive.name in CALLS:
            inner = eqn.params["jaxpr"]
            results = _flatten(inner.jaxpr, inner.consts, reads, numbers, steps, constants)
        else:
            results = [next(numbers) for _ in eqn.outvars]
            steps.append(Step(eqn, reads, tuple(results)))
        slots.update(zip(eqn.outvars, results, strict=True))
    return [slot(atom) for atom in jaxpr.outvars]


def _part(steps: Iterable[Step], reached: set[int]) -> tuple[list[Step], list[Step]]:
    early: list[Step] = []
    late: list[Step] = []
    for step in steps:
        if reached.isdisjoint(_numbers(step.reads)):
            early.append(step)
        else:
            late.append(step)
            reached = reached.union(step.writes)
    return early, late


def _needed(steps: Sequence[Step], results: Iterable[Slot]) -> list[Step]:
    wanted, found = _numbers(results), []
    for step in reversed(steps):
        if not wanted.isdisjoint(step.writes):
            found.append(step)
            wanted |= _numbers(step.reads)
    return found[::-1]


def _repeated(early: Sequence[Step], late: Sequence[Step]) -> list[Step]:
    wanted: set[int] = set().union(*(_numbers(step.reads) for step in late))
    return _needed([step for step in early if step.eqn.primitive.name in REPEATED], wanted)


def _numbers(slots: Iterable[Slot]) -> set[int]:
    return {slot for slot in slots if not isinstance(slot, Literal)}


def _run(steps: Sequence[Step], values: dict[int, Any], results: Sequence[Slot]) -> list[Any]:
    def value(slot: Slot) -> Any:
        return slot.val if isinstance(slot, Literal) else values[slot]

    for eqn, reads, writes in steps:
        values.update(zip(writes, bind(eqn, list(map(value, reads))), strict=True))
    return [value(slot) for slot in results]
