"""How often a call inside a traced program runs: under scan and vmap it is seen only once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

PREFIX = "tdjax:"


@dataclass(frozen=True)
class Marks:
    """Marks on the results of calls, found again in the program that was traced.

    A name is given to each result. Transformations keep it: a scan holds it in its body and vmap
    gives the named array another axis. A trace that is thrown away leaves none.

    Arguments:
        sizes: elements of the array under each mark, as its call returned it.
    """

    sizes: list[int] = field(default_factory=list)

    def mark(self, result: Any) -> tuple[Any, int]:
        """The result of a call, marked, and the number of the mark.

        Arguments:
            result: pytree with an array or more, as the call returns it.
        """
        leaves, structure = jax.tree.flatten(result)
        place = next(k for k, leaf in enumerate(leaves) if hasattr(leaf, "shape"))
        number = len(self.sizes)
        self.sizes.append(max(math.prod(leaves[place].shape), 1))
        leaves[place] = checkpoint_name(leaves[place], f"{PREFIX}{number}")
        return jax.tree.unflatten(structure, leaves), number

    def runs(self, jaxpr: Any) -> dict[int, int]:
        """How often each marked call runs in a program, by the number of its mark.

        The body of a while loop counts once; of the branches of a condition, that with most runs.
        """
        return {
            number: elements // self.sizes[number] for number, elements in _elements(jaxpr).items()
        }


def _elements(jaxpr: Any) -> Counter[int]:
    """Elements of all arrays that are made under each mark."""
    found: Counter[int] = Counter()
    for eqn in jaxpr.eqns:
        inner = [_elements(sub) for sub in _programs(eqn.params.values())]
        if eqn.primitive.name == "name" and eqn.params["name"].startswith(PREFIX):
            size = max(math.prod(eqn.outvars[0].aval.shape), 1)
            found[int(eqn.params["name"].removeprefix(PREFIX))] += size
        elif eqn.primitive.name == "cond":
            for branch in inner[1:]:
                inner[0] |= branch
            found += inner[0]
        else:
            times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            for body in inner:
                found += Counter({number: times * size for number, size in body.items()})
    return found


def _programs(values: Iterable[Any]) -> Iterator[Any]:
    """The programs among the parameters of an equation."""
    for value in values:
        program = getattr(value, "jaxpr", value)
        if hasattr(program, "eqns"):
            yield program
        elif isinstance(value, (list, tuple)):
            yield from _programs(value)
