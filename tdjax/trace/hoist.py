"""A function split into what one of its arguments never reaches, done once, and the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, JaxprEqn

from tdjax.trace.programs import How, bind, calls_of, walk

# Done again rather than kept: what they make is larger than what they read, and costs nothing.
REPEATED = ("broadcast_in_dim", "iota")


class NumberedEquation(NamedTuple):
    """One equation of a program whose values are numbered."""

    eqn: JaxprEqn
    reads: tuple[int, ...]
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
    program, shapes = jax.make_jaxpr(function, return_shape=True)(varying, fixed)
    structure = jax.tree.structure(shapes)
    numbers = count()
    arguments = [next(numbers) for _ in program.jaxpr.invars]
    equations: list[NumberedEquation] = []
    constants: dict[int, Any] = {}
    results = _flatten(program, arguments, numbers, equations, constants)

    early, late = _part(equations, {arguments[0]})
    late = _needed(late, results)
    late = _repeated(early, late) + late
    written = {number for equation in late for number in equation.writes}
    read = set(results).union(*(equation.reads for equation in late))
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
    program: ClosedJaxpr,
    arguments: Sequence[int],
    numbers: Iterator[int],
    equations: list[NumberedEquation],
    constants: dict[int, Any],
) -> list[int]:
    """Append the equations of a program, called functions written out; returns its results.

    Functions with a rule for derivatives stay whole, so that they keep it.
    """

    def constant(value: Any) -> int:
        number = next(numbers)
        constants[number] = value
        return number

    def equation(eqn: JaxprEqn, reads: list[int]) -> Sequence[int]:
        calls = calls_of(eqn)
        if calls is not None and calls.how is How.IN_PLACE and not calls.ruled:
            (called,) = calls.programs
            own = called.arguments(reads)
            return _flatten(called.program, own, numbers, equations, constants)
        writes = tuple(next(numbers) for _ in eqn.outvars)
        equations.append(NumberedEquation(eqn, tuple(reads), writes))
        return writes

    return walk(program, arguments, equation, constant)


def _part(
    equations: Iterable[NumberedEquation], reached: set[int]
) -> tuple[list[NumberedEquation], list[NumberedEquation]]:
    """Those that read nothing that was `reached`, and those that do."""
    early: list[NumberedEquation] = []
    late: list[NumberedEquation] = []
    for equation in equations:
        if reached.isdisjoint(equation.reads):
            early.append(equation)
        else:
            late.append(equation)
            reached = reached.union(equation.writes)
    return early, late


def _needed(
    equations: Sequence[NumberedEquation], results: Iterable[int]
) -> list[NumberedEquation]:
    """Those without which the results could not be computed."""
    wanted, found = set(results), []
    for equation in reversed(equations):
        if not wanted.isdisjoint(equation.writes):
            found.append(equation)
            wanted |= set(equation.reads)
    return found[::-1]


def _repeated(
    early: Sequence[NumberedEquation], late: Sequence[NumberedEquation]
) -> list[NumberedEquation]:
    wanted: set[int] = set().union(*(equation.reads for equation in late))
    cheap = [equation for equation in early if equation.eqn.primitive.name in REPEATED]
    return _needed(cheap, wanted)


def _run(
    equations: Sequence[NumberedEquation], values: dict[int, Any], results: Sequence[int]
) -> list[Any]:
    for eqn, reads, writes in equations:
        made = bind(eqn, [values[number] for number in reads])
        values.update(zip(writes, made, strict=True))
    return [values[number] for number in results]
