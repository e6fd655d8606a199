"""A traced program run with views of its parameters, up to the products that these go into.

What a view flows through on its way, `jax.jit`, loops, conditions, functions that are computed
again or have a rule for derivatives, is run anew; all else is run as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, JaxprEqn
from jaxtyping import Array

from tdjax.functions.held import ENTRYWISE, Beside, can_turn, is_held
from tdjax.functions.place import Product, Unreadable
from tdjax.functions.products import READERS, product_of
from tdjax.trace.programs import Called, Calls, How, bind, calls_of, run_calls, walk
from tdjax.trace.views import NOTHING, UNCHANGED, passed_on


@runtime_checkable
class Policy(Protocol):
    """What is done with a view, one of `tdjax.functions.held`, at its end."""

    def product(self, held: Any, product: Product, eqn: JaxprEqn, reads: Sequence[Any]) -> Any:
        """The result of an equation that is a product with a view."""
        ...

    def released(self, held: Any, reader: str) -> Array:
        """The array itself, for what reads it otherwise; `reader` goes on from "it is read"."""
        ...

    def plain(self, eqn: JaxprEqn, results: Sequence[Any]) -> Sequence[Any]:
        """The results of an equation that reads no view, as they are or as they shall be."""
        ...

    def ruled(self, eqn: JaxprEqn, run: Callable[..., Any], reads: Sequence[Any]) -> list[Any]:
        """The results of an equation of which JAX knows more than its program.

        Arguments:
            run: its program, (*reads) -> results.
        """
        ...


def evaluate(program: ClosedJaxpr, arguments: Sequence[Any], policy: Policy) -> list[Any]:
    """The results of a program some of whose arguments are views, see `tdjax.functions.held`."""
    run = Evaluation(policy)
    return run.released(run.program(program, arguments), "as a result")


@dataclass(frozen=True)
class Evaluation:
    """One run of a program."""

    policy: Policy

    def program(self, program: ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
        """The results, which may be views."""
        return walk(program, arguments, self.equation, lambda value: value)

    def equation(self, eqn: JaxprEqn, reads: list[Any]) -> Sequence[Any]:
        """The results of one equation, of which the program still says whose part it is."""
        names = source_info_util.current_name_stack() + eqn.source_info.name_stack
        with source_info_util.set_name_stack(names):
            return self._results(eqn, reads)

    def _results(self, eqn: JaxprEqn, reads: list[Any]) -> Sequence[Any]:
        beside = [place for place, x in enumerate(reads) if isinstance(x, Beside)]
        if beside:
            return self._of_beside(eqn, reads, *beside)
        if not any(map(is_held, reads)):
            return self.policy.plain(eqn, bind(eqn, reads))
        if eqn.primitive.name == "concatenate" and all(map(is_held, reads)):
            return [Beside(tuple(reads), eqn.params["dimension"])]
        calls = calls_of(eqn)
        if calls is not None:
            return self.calls(eqn, calls, reads)
        values = [x.value if is_held(x) else NOTHING for x in reads]
        passed = passed_on(eqn, values)
        if passed is not None and eqn.primitive.name in UNCHANGED:
            return reads
        if passed is not None:
            return [
                reads[0].viewed(eqn, value, number, reads) for number, value in enumerate(passed)
            ]
        (operand, *more) = (k for k, x in enumerate(reads) if is_held(x))
        try:
            if more and eqn.primitive.name in READERS:
                raise Unreadable("with another weight")
            product = product_of(eqn, reads[operand].place(operand))
        except Unreadable as error:
            reader = ", ".join([f"by {eqn.primitive.name}", *filter(None, [str(error)])])
            return bind(eqn, self.released(reads, reader))
        return [self.policy.product(reads[operand], product, eqn, reads)]

    def _of_beside(self, eqn: JaxprEqn, reads: list[Any], number: int, *more: int) -> Sequence[Any]:
        """The results of an equation with views side by side, of which each is multiplied alone."""
        name, held = eqn.primitive.name, reads[number]
        if name in ENTRYWISE:
            parts = [self._results(eqn, [part])[0] for part in held.parts]
            return [held.joined(parts)]
        axis = held.axis_of_product(eqn, number) if name == "dot_general" else None
        if axis is None or more:
            return self._results(eqn, self.released(reads, "by concatenate"))
        products: list[Any] = []
        for part in held.parts:
            own = [*reads]
            own[number] = part
            products += self._results(eqn, own)
        return [jnp.concatenate(products, axis)]

    def released(self, values: Sequence[Any], reader: str) -> list[Any]:
        """Arrays in place of views."""
        return [self._released(x, reader) for x in values]

    def _released(self, value: Any, reader: str) -> Any:
        if isinstance(value, Beside):
            parts = [self._released(part, reader) for part in value.parts]
            return jnp.concatenate(parts, value.axis)
        return self.policy.released(value, reader) if is_held(value) else value

    def calls(self, eqn: JaxprEqn, calls: Calls, reads: list[Any]) -> Sequence[Any]:
        """The results of an equation that calls programs."""
        if calls.how is How.UNKNOWN:
            return bind(eqn, self.released(reads, f"by {eqn.primitive.name}"))
        if calls.how is How.IN_PLACE:
            (called,) = calls.programs

            def run(*reads: Any) -> list[Any]:
                return self.program(called.program, called.arguments(reads))

            def whole(*reads: Any) -> list[Any]:
                return self.released(run(*reads), f"as a result of {eqn.primitive.name}")

            return self.policy.ruled(eqn, whole, reads) if calls.ruled else run(*reads)
        if calls.how is How.COND:
            reads[:1] = self.released(reads[:1], "by a condition")
            return run_calls(eqn, calls, reads, self._branch, {}, {})[0]
        body = calls.programs[-1]
        reads = self._carried(body, reads)
        return self._scan(eqn, calls, reads) if calls.how is How.SCAN else _loop(eqn, self, reads)

    def _branch(self, program: ClosedJaxpr, arguments: Sequence[Any], _: Any) -> Any:
        found = self.program(program, arguments)
        return self.released(found, "as a result of a condition"), {}

    def _carried(self, body: Called, reads: list[Any]) -> list[Any]:
        """What a loop begins with: views only of what no turn changes."""
        invars, outvars = body.program.jaxpr.invars, body.program.jaxpr.outvars
        assert body.operands is not None
        for result, place in enumerate(body.carried):
            if outvars[result] is not invars[place]:
                operand = body.operands[place]
                reads[operand : operand + 1] = self.released(
                    reads[operand : operand + 1], "by a loop that changes it"
                )
        return reads

    def _scan(self, eqn: JaxprEqn, calls: Calls, reads: list[Any]) -> Sequence[Any]:
        (body,) = calls.programs
        for place in body.sliced:
            if is_held(reads[place]):
                turns = can_turn(reads[place])
                reader = "by a loop over a part of an axis"
                reads[place] = (
                    reads[place].in_turns() if turns else self.policy.released(reads[place], reader)
                )

        def run(program: ClosedJaxpr, arguments: Sequence[Any], _: Any) -> Any:
            own = list(arguments)
            for place in body.sliced:
                if is_held(own[place]):
                    own[place] = own[place].of_turn(id(eqn))
            found, number = self.program(program, own), len(body.carried)
            given = self.released(found[number:], "as a result of a loop")
            return [*found[:number], *given], {}

        return run_calls(eqn, calls, reads, run, {}, {})[0]


def _loop(eqn: Any, evaluation: Evaluation, reads: Sequence[Any]) -> list[Any]:
    """A while loop."""
    first, second = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    own, start = reads[: first + second], list(reads[first + second :])

    def condition(carry: Any) -> Any:
        return evaluation.program(eqn.params["cond_jaxpr"], [*own[:first], *carry])[0]

    def body(carry: Any) -> Any:
        return evaluation.program(eqn.params["body_jaxpr"], [*own[first:], *carry])

    return list(jax.lax.while_loop(condition, body, start))
