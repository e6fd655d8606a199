"""Programs with marks in them: how often each runs, and what passes through it.

Values inside a scan cannot leave it on their own. Here the program is run equation by equation,
scans and conditions that hold marks are built anew, and carry out what was made at the marks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from tdjax.trace.marks import INPUT, mark_p

# What a mark makes of the array that passes: the array to go on with, and what is to be kept.
Visit = Callable[["Mark", Any, Any], tuple[Any, Any]]
# Equations whose one program runs in their place. By name, as it changed between versions of JAX.
INLINED = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2",
           "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")  # fmt: skip


class Mark(NamedTuple):
    """A mark as a program holds it.

    Arguments:
        number, end: as given to `tdjax.trace.marks.mark`.
        stacked: of each axis that `vmap` put in front, whether the kernel has it too.
    """

    number: int
    end: str
    stacked: tuple[bool, ...]


class Survey:
    """What is known of the marks of a program before it runs.

    Arguments:
        jaxpr: a closed one.

    Attributes:
        runs: how often each marked call runs, by its number. The body of a while loop counts
            once; of the branches of a condition, that with most runs.
        stacks: pairs of a scan (the id of its equation) and a number where the scan runs over the
            layers of a stack: each turn has a kernel of its own.
        looped: numbers of the marks inside scans.
        hidden: numbers of the marks in programs that cannot be looked into, and what those are.
    """

    def __init__(self, jaxpr: Any) -> None:
        """Walk through the program."""
        self.stacks: set[tuple[int, int]] = set()
        self.hidden: dict[int, str] = {}
        self.looped: set[int] = set()
        self.runs = self._walk(jaxpr.jaxpr, [frozenset()] * len(jaxpr.jaxpr.invars))

    def _walk(self, jaxpr: Any, origins: Sequence[frozenset[int]]) -> Counter[int]:
        """Runs of all marks.

        Arguments:
            origins: of each argument, the scans over whose slices it runs.
        """
        known = dict(zip(jaxpr.invars, origins, strict=True))
        runs: Counter[int] = Counter()

        def origin(atom: Any) -> frozenset[int]:
            return frozenset() if isinstance(atom, Literal) else known.get(atom, frozenset())

        for eqn in jaxpr.eqns:
            reads = [origin(atom) for atom in eqn.invars]
            every = frozenset().union(*reads)
            known.update(dict.fromkeys(eqn.outvars, every))
            if eqn.primitive is mark_p:
                number = eqn.params["number"]
                added = eqn.invars[0].aval.shape[: len(eqn.params["stacked"])]
                if eqn.params["end"] == INPUT:
                    runs[number] += math.prod(added)
                self.stacks |= {(scan, number) for scan in reads[1]}
                continue
            name, inner = eqn.primitive.name, list(programs(eqn.params.values()))
            if name == "scan":
                first = eqn.params["num_consts"] + eqn.params["num_carry"]
                reads[first:] = [found | {id(eqn)} for found in reads[first:]]
                body = self._walk(inner[0], reads)
                self.looped |= body.keys()
                runs += Counter({n: eqn.params["length"] * times for n, times in body.items()})
                known.update(dict.fromkeys(eqn.outvars, every))
            elif name == "cond":
                most: Counter[int] = Counter()
                for branch in inner:
                    most |= self._walk(branch, reads[1:])
                runs += most
            elif name in INLINED:
                inside = self._walk(inner[0], reads)
                runs += inside
            else:
                for program in inner:
                    found = self._walk(program, [frozenset()] * len(program.invars))
                    self.hidden.update(dict.fromkeys(found, name))
                    runs += found
        return runs


def run(
    jaxpr: Any, survey: Survey, visit: Visit, arguments: Sequence[Any], given: Mapping[int, Any]
) -> tuple[list[Any], dict[int, Any]]:
    """Run a program, and gather what is made at its marks.

    What was made at a mark in several places, or in the turns of a scan, is summed; in a scan over
    the layers of a stack it gets an axis of them in front.

    Arguments:
        jaxpr: closed.
        survey: of it.
        visit: (mark, array, given) -> (the array to go on with, a pytree of arrays or None).
        arguments: flat, of the program.
        given: for the number of a mark a pytree for `visit`, for the layers of a stack with an
            axis of them in front.

    Returns: the program's results, flat, and what was kept by number.
    """
    return _Run(survey, visit).program(jaxpr.jaxpr, jaxpr.consts, arguments, given)


class _Run(NamedTuple):
    survey: Survey
    visit: Visit

    def program(
        self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any], given: Mapping[int, Any]
    ) -> tuple[list[Any], dict[int, Any]]:
        values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, arguments, strict=True))
        kept: dict[int, Any] = {}

        def value(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else values[atom]

        for eqn in jaxpr.eqns:
            reads = [value(atom) for atom in eqn.invars]
            name = eqn.primitive.name
            if eqn.primitive is mark_p:
                mark = Mark(*(eqn.params[key] for key in Mark._fields))
                x, made = self.visit(mark, reads[0], given.get(mark.number))
                results, found = [x], {} if made is None else {mark.number: made}
            elif not any(marked(inner) for inner in programs(eqn.params.values())):
                results, found = bind(eqn, reads), {}
            elif name == "scan":
                results, found = self.scan(eqn, reads, given)
            elif name == "cond":
                results, found = self.cond(eqn, reads, given)
            elif name in INLINED:
                (inner,) = (v for v in eqn.params.values() if is_program(v))
                program, inner_consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
                results, found = self.program(program, inner_consts, reads, given)
            else:
                # Marks that cannot be reached; `Survey.hidden` names them.
                results, found = bind(eqn, reads), {}
            values.update(zip(eqn.outvars, results, strict=True))
            kept = added(kept, found)
        return [value(atom) for atom in jaxpr.outvars], kept

    def scan(
        self, eqn: Any, reads: Sequence[Any], given: Mapping[int, Any]
    ) -> tuple[list[Any], dict[int, Any]]:
        body = eqn.params["jaxpr"]
        consts, carried = eqn.params["num_consts"], eqn.params["num_carry"]
        fixed, start, slices = reads[:consts], reads[consts:][:carried], reads[consts + carried :]
        own = {n: given[n] for n in given if (id(eqn), n) in self.survey.stacks}
        shared = {n: given[n] for n in given if n not in own}

        def turn(carry: Any, slices: Any) -> tuple[Any, Any]:
            xs, own = slices
            results, kept = self.program(
                body.jaxpr, body.consts, [*fixed, *carry, *xs], {**shared, **own}
            )
            return results[:carried], (results[carried:], kept)

        carry, (rest, kept) = jax.lax.scan(
            turn, list(start), (list(slices), own), length=eqn.params["length"],
            reverse=eqn.params["reverse"], unroll=eqn.params["unroll"],
        )  # fmt: skip
        found = {
            number: made
            if (id(eqn), number) in self.survey.stacks
            else jax.tree.map(lambda leaf: leaf.sum(axis=0), made)
            for number, made in kept.items()
        }
        return [*carry, *rest], found

    def cond(
        self, eqn: Any, reads: Sequence[Any], given: Mapping[int, Any]
    ) -> tuple[list[Any], dict[int, Any]]:
        def branch(program: Any) -> Callable[..., Any]:
            return lambda given, *reads: self.program(program.jaxpr, program.consts, reads, given)

        index, *operands = reads
        branches = [branch(program) for program in eqn.params["branches"]]
        shapes: dict[int, Any] = {}
        for function in branches:
            shapes |= jax.eval_shape(function, given, *operands)[1]
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def complete(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(given: Any, *operands: Any) -> Any:
                results, kept = function(given, *operands)
                return results, {**zeros, **kept}

            return call

        return jax.lax.switch(index, [complete(f) for f in branches], dict(given), *operands)


def bind(eqn: Any, reads: Sequence[Any]) -> list[Any]:
    """Run one equation."""
    bound = eqn.primitive.get_bind_params(eqn.params)
    # Until JAX 0.8 a pair, the functions that the equation calls in front.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    with eqn.ctx.manager:
        found = eqn.primitive.bind(*functions, *reads, **params)
    return list(found) if eqn.primitive.multiple_results else [found]


def added(one: dict[int, Any], other: dict[int, Any]) -> dict[int, Any]:
    """Sums by number."""
    both = {n: jax.tree.map(jnp.add, one[n], other[n]) for n in one.keys() & other.keys()}
    return {**one, **other, **both}


def marked(jaxpr: Any) -> bool:
    """Whether a program holds a mark."""
    return any(
        eqn.primitive is mark_p or any(map(marked, programs(eqn.params.values())))
        for eqn in jaxpr.eqns
    )


def is_program(value: Any) -> bool:
    """Whether a parameter of an equation is a program, closed or not."""
    return hasattr(getattr(value, "jaxpr", value), "eqns")


def programs(values: Any) -> Iterator[Any]:
    """The programs among the parameters of an equation."""
    for value in values:
        if is_program(value):
            yield getattr(value, "jaxpr", value)
        elif isinstance(value, (list, tuple)):
            yield from programs(value)
