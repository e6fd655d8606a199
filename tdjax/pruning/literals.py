"""The numbers that a program computes with, which it may owe to the sizes of its arrays."""

from __future__ import annotations

from collections import Counter

import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from tdjax.trace.programs import calls_of


def numbers_in(program: ClosedJaxpr) -> Counter[tuple[str, str]]:
    """How often each number stands in a program, as text, with the name of the equation.

    Those are scalar constants, as the count that a mean divides by, and exponents. Shapes, axes
    and all else that says where things lie are left out.
    """
    found = Counter(("constant", str(value)) for value in program.consts if np.shape(value) == ())
    for eqn in program.jaxpr.eqns:
        values = [atom.val for atom in eqn.invars if isinstance(atom, Literal)]
        if eqn.primitive.name == "integer_pow":
            values.append(eqn.params["y"])
        found.update((eqn.primitive.name, str(value)) for value in values)
        calls = calls_of(eqn)
        for called in calls.programs if calls is not None else ():
            found += numbers_in(called.program)
    return found
