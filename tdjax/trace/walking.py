"""Walks through a traced program that learn what is known of its values.

A walk goes into the programs that equations call in place. Marks of layers, and all other
equations, are its own matter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from jax.extend.core import ClosedJaxpr, JaxprEqn

from tdjax.trace.marks import mark_p
from tdjax.trace.programs import How, calls_of, walk

# What is known of a value.
Known = TypeVar("Known")


class Walk(ABC, Generic[Known]):
    """One walk."""

    def program(self, program: ClosedJaxpr, arguments: Sequence[Known]) -> list[Known]:
        """Walk through a program; what is known of its results."""
        return walk(program, arguments, self.equation, self.constant)

    def equation(self, eqn: JaxprEqn, reads: Sequence[Known]) -> list[Known]:
        """What is known of the results of an equation."""
        if eqn.primitive is mark_p:
            return [self.mark(eqn, reads[0])]
        calls = calls_of(eqn)
        if calls is not None and calls.how is How.IN_PLACE:
            (called,) = calls.programs
            return self.program(called.program, called.arguments(reads))
        return self.computed(eqn, reads)

    @abstractmethod
    def constant(self, value: Any) -> Known:
        """What is known of a constant array or number."""

    @abstractmethod
    def mark(self, eqn: Any, value: Known) -> Known:
        """What is known of a value behind the mark at a layer's end."""

    @abstractmethod
    def computed(self, eqn: JaxprEqn, reads: Sequence[Known]) -> list[Known]:
        """What is known of what an equation computes, or programs that it calls otherwise."""
