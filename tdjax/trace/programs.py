"""Programs as JAX traces them, and the programs that their equations call.

A traced function (a jaxpr) is a list of equations. Some hold programs of their own: `jax.jit`,
`lax.scan`, `lax.cond`, functions with a rule for derivatives. How an equation holds them, and its
name, differ from one to the next and between versions of JAX. What walks through programs asks
`calls_of`, and knows no such equation by name:

    def equation(eqn, reads):
        calls = calls_of(eqn)
        if calls is None:
            ...  # it computes something itself
        elif calls.how is How.IN_PLACE:
            (called,) = calls.programs
            return walk(called.program, called.arguments(reads), equation, constant)

    results = walk(program, arguments, equation, constant)

Of an equation that is not known here it says `How.UNKNOWN`: its programs can be looked into, but
nothing is said of what they are called with, and it can only be run as it is (`bind`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

# By name, as primitives move between versions of JAX.
JIT = ("jit", "pjit", "closed_call", "core_call")
RULED = ("checkpoint", "remat", "remat2",
         "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")  # fmt: skip

# Pytrees of arrays by the name of what they belong to.
Named = Mapping[Any, Any]
# Runs a program: (program, arguments, given) -> (results, kept).
RunProgram = Callable[[ClosedJaxpr, Sequence[Any], Named], tuple[list[Any], dict[Any, Any]]]


class How(enum.Enum):
    """How an equation calls its programs."""

    # One program, once, on all operands.
    IN_PLACE = "in place"
    # One program in turns, whose number is known: carried values, then slices.
    SCAN = "scan"
    # A condition and a body in turns, whose number only the run tells.
    WHILE = "while"
    # One of several programs.
    COND = "cond"
    UNKNOWN = "unknown"


@dataclass(frozen=True, eq=False)
class Called:
    """A program that an equation calls.

    Its results are the equation's, in order; only the condition of a while loop (which gives
    none) and programs of unknown equations are others.

    Arguments:
        program: closed.
        operands: of each argument of the program, which operand of the equation it is, or starts
            as, or is a slice of; None where that is not known.
        carried: places of the arguments that are, after the first turn, results of the turn before.
        sliced: places of the arguments that are slices, another in every turn.
    """

    program: ClosedJaxpr
    operands: tuple[int, ...] | None
    carried: range = range(0)
    sliced: range = range(0)

    def arguments(self, reads: Sequence[Any], unknown: Any = None) -> list[Any]:
        """What the program is called with, of what is read by the equation.

        Arguments:
            reads: one for each operand of the equation.
            unknown: for each argument that is not known.
        """
        if self.operands is None:
            return [unknown] * len(self.program.jaxpr.invars)
        return [reads[place] for place in self.operands]


@dataclass(frozen=True, eq=False)
class Calls:
    """The programs that an equation calls, and how.

    Arguments:
        how: see `How`.
        programs: of a while loop the condition, then the body.
        times: how often they run, one after the other; None where only the run tells. One of the
            programs of a condition runs, which counts as once.
        ruled: whether JAX knows more of it than the program, a rule for derivatives or that it is
            to be computed again for them, which is lost where the program is written out.
    """

    how: How
    programs: tuple[Called, ...]
    times: int | None = 1
    ruled: bool = False

    @property
    def rebuilds(self) -> bool:
        """Whether `run_calls` can run the equation."""
        return self.how in (How.IN_PLACE, How.SCAN, How.COND)


def calls_of(eqn: JaxprEqn) -> Calls | None:
    """The programs that an equation calls; None where it calls none."""
    found = tuple(_programs(eqn.params.values()))
    if not found:
        return None
    name, operands = eqn.primitive.name, tuple(range(len(eqn.invars)))
    if name == "scan":
        return _scan(eqn.params, operands)
    if name == "while":
        return _while(eqn.params, operands)
    if name == "cond":
        branches = tuple(Called(program, operands[1:]) for program in found)
        return Calls(How.COND, branches)
    alone = len(found) == 1 and len(found[0].jaxpr.invars) == len(operands)
    if alone and name in (*JIT, *RULED):
        return Calls(How.IN_PLACE, (Called(found[0], operands),), ruled=name in RULED)
    return Calls(How.UNKNOWN, tuple(Called(program, None) for program in found), None)


def _scan(params: Mapping[str, Any], operands: tuple[int, ...]) -> Calls:
    if "num_consts" in params:
        first, carried = params["num_consts"], params["num_carry"]
    else:
        # From JAX 0.11 on a tree: constants, what is carried, what is run over.
        first, carried, _ = map(len, params["ft_in"].unpack())
    body = Called(
        params["jaxpr"],
        operands,
        carried=range(first, first + carried),
        sliced=range(first + carried, len(operands)),
    )
    return Calls(How.SCAN, (body,), params["length"])


def _while(params: Mapping[str, Any], operands: tuple[int, ...]) -> Calls:
    # The constants of the condition come first, then those of the body, then what is carried.
    first, second = params["cond_nconsts"], params["body_nconsts"]
    carry = operands[first + second :]
    numbers = (first, second)
    constants = (operands[:first], operands[first : first + second])
    programs = (params["cond_jaxpr"], params["body_jaxpr"])
    called = (
        Called(program, (*own, *carry), carried=range(number, number + len(carry)))
        for program, own, number in zip(programs, constants, numbers, strict=True)
    )
    return Calls(How.WHILE, tuple(called), None)


def _programs(values: Any) -> Iterator[ClosedJaxpr]:
    """The programs among the parameters of an equation."""
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value
        elif hasattr(value, "eqns"):
            # The constants of an open program are not known; one that can be run has none.
            yield ClosedJaxpr(value, [None] * len(value.constvars))
        elif isinstance(value, (list, tuple)):
            yield from _programs(value)


def walk(
    program: ClosedJaxpr,
    arguments: Sequence[Any],
    equation: Callable[[JaxprEqn, list[Any]], Sequence[Any]],
    constant: Callable[[Any], Any],
) -> list[Any]:
    """Walk through a program equation by equation, and return something for each of its results.

    Arguments:
        program: closed.
        arguments: something for each argument: its value, or what is known of it.
        equation: (eqn, the same for each operand) -> the same for each of its results.
        constant: the same for a constant array or number.
    """
    jaxpr = program.jaxpr
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, map(constant, program.consts), strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return constant(atom.val) if isinstance(atom, Literal) else known[atom]

    for eqn in jaxpr.eqns:
        results = equation(eqn, [read(atom) for atom in eqn.invars])
        known.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def bind(eqn: JaxprEqn, reads: Sequence[Any]) -> list[Any]:
    """Run one equation as it is."""
    bound = eqn.primitive.get_bind_params(eqn.params)
    # Until JAX 0.8 a pair, the functions that the equation calls in front.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    with eqn.ctx.manager:
        found = eqn.primitive.bind(*functions, *reads, **params)
    return list(found) if eqn.primitive.multiple_results else [found]


def run_calls(
    eqn: JaxprEqn,
    calls: Calls,
    reads: Sequence[Any],
    run: RunProgram,
    given: Named,
    sliced: Named,
) -> tuple[list[Any], dict[Any, Any]]:
    """Run an equation anew with programs of one's own, and keep what they keep.

    Arguments:
        calls: of the equation, one that `rebuilds`.
        reads: its operands.
        run: runs a program in place of one that the equation calls.
        given: for all programs in all turns.
        sliced: for the turns of a scan, with an axis of them in front; each gets its own slice.

    Returns: the equation's results, and what was kept by name. Of a scan it has an axis of the
    turns in front; of a condition it is zero where only other branches keep it.
    """
    if calls.how is How.SCAN:
        return _run_scan(eqn, calls.programs[0], reads, run, given, sliced)
    if calls.how is How.COND:
        return _run_cond(calls, reads, run, given)
    (called,) = calls.programs
    return run(called.program, called.arguments(reads), given)


def _run_scan(
    eqn: JaxprEqn,
    body: Called,
    reads: Sequence[Any],
    run: RunProgram,
    given: Named,
    sliced: Named,
) -> tuple[list[Any], dict[Any, Any]]:
    first, last = body.carried.start, body.carried.stop
    constants, start, slices = reads[:first], reads[first:last], reads[last:]

    def turn(carry: Any, own: Any) -> tuple[Any, Any]:
        slices, of_turn = own
        arguments = [*constants, *carry, *slices]
        results, kept = run(body.program, arguments, {**given, **of_turn})
        return results[: len(carry)], (results[len(carry) :], kept)

    carry, (rest, kept) = jax.lax.scan(
        turn, list(start), (list(slices), dict(sliced)), length=eqn.params["length"],
        reverse=eqn.params["reverse"], unroll=eqn.params["unroll"],
    )  # fmt: skip
    return [*carry, *rest], kept


def _run_cond(
    calls: Calls, reads: Sequence[Any], run: RunProgram, given: Named
) -> tuple[list[Any], dict[Any, Any]]:
    branches = [
        lambda given, reads, called=called: run(called.program, called.arguments(reads), given)
        for called in calls.programs
    ]
    shapes: dict[Any, Any] = {}
    for branch in branches:
        shapes |= jax.eval_shape(branch, dict(given), list(reads))[1]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def complete(branch: Callable[..., Any]) -> Callable[..., Any]:
        def call(given: Any, reads: Any) -> Any:
            results, kept = branch(given, reads)
            return results, {**zeros, **kept}

        return call

    return jax.lax.switch(reads[0], [complete(b) for b in branches], dict(given), list(reads))
