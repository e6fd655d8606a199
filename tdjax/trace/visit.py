"""A program run equation by equation, with a visit to every mark.

Values inside a scan cannot leave it on their own. Here the equations that call programs with
marks in them are run anew, and carry out what was made at the marks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn

from tdjax.trace.marks import Mark, mark_p
from tdjax.trace.programs import How, bind, calls_of, run_calls, walk
from tdjax.trace.survey import Survey

# What a mark makes of the array that passes: the array to go on with, and what is to be kept.
Visit = Callable[[Mark, Any, Any], tuple[Any, Any]]


def run(
    program: ClosedJaxpr,
    survey: Survey,
    visit: Visit,
    arguments: Sequence[Any],
    given: Mapping[int, Any],
) -> tuple[list[Any], dict[int, Any]]:
    """Run a program, and gather what is made at its marks.

    What was made at a mark in several places, or in the turns of a scan, is summed; in a scan over
    the layers of a stack it gets an axis of them in front. Marks that `Survey.hidden` names are not
    visited. Programs with marks in them lose their rules for derivatives; what is computed is the
    same.

    Arguments:
        program: closed.
        survey: of it.
        visit: (mark, array, given) -> (the array to go on with, a pytree of arrays or None).
        arguments: flat, of the program.
        given: for the number of a mark a pytree for `visit`, for the layers of a stack with an
            axis of them in front.

    Returns: the program's results, flat, and what was kept by number.
    """
    return _Visitor(survey, visit).program(program, arguments, given)


class _Visitor(NamedTuple):
    survey: Survey
    visit: Visit

    def program(
        self, program: ClosedJaxpr, arguments: Sequence[Any], given: Mapping[int, Any]
    ) -> tuple[list[Any], dict[int, Any]]:
        kept: dict[int, Any] = {}

        def equation(eqn: JaxprEqn, reads: list[Any]) -> list[Any]:
            results, found = self.equation(eqn, reads, given)
            for number, made in found.items():
                kept[number] = jax.tree.map(jnp.add, kept[number], made) if number in kept else made
            return results

        return walk(program, arguments, equation, lambda value: value), kept

    def equation(
        self, eqn: JaxprEqn, reads: list[Any], given: Mapping[int, Any]
    ) -> tuple[list[Any], dict[int, Any]]:
        if eqn.primitive is mark_p:
            mark = Mark(*(eqn.params[key] for key in Mark._fields))
            x, made = self.visit(mark, reads[0], given.get(mark.number))
            return [x], {} if made is None else {mark.number: made}
        calls = calls_of(eqn)
        if calls is None or not calls.rebuilds or not _any_marked(eqn):
            return bind(eqn, reads), {}
        own = {n for n in given if (id(eqn), n) in self.survey.stacks}
        shared = {n: given[n] for n in given if n not in own}
        sliced = {n: given[n] for n in given if n in own}
        results, kept = run_calls(eqn, calls, reads, self.program, shared, sliced)
        if calls.how is How.SCAN:
            kept = {n: self._over_turns(eqn, n, made) for n, made in kept.items()}
        return results, kept

    def _over_turns(self, eqn: JaxprEqn, number: int, made: Any) -> Any:
        """What a scan kept of a mark: summed, but for the layers of a stack."""
        if (id(eqn), number) in self.survey.stacks:
            return made
        return jax.tree.map(lambda leaf: leaf.sum(axis=0), made)


def _any_marked(eqn: JaxprEqn) -> bool:
    """Whether a program that an equation calls holds a mark."""
    calls = calls_of(eqn)
    return calls is not None and any(
        inner.primitive is mark_p or _any_marked(inner)
        for called in calls.programs
        for inner in called.program.jaxpr.eqns
    )
