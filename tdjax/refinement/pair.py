"""A dense network beside its factorised one, and what of the latter is trained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from tdjax.params.arrays import VALUES, Factors
from tdjax.params.shared import joined_entry, joined_factors, parted
from tdjax.params.tree import join_path
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.plan.sharing import units_of
from tdjax.plan.stage import CORRECTION, INPUT
from tdjax.refinement.balance import balanced
from tdjax.refinement.objective import Network
from tdjax.trace.names import Names

SCALES = ("scale", "gamma")
BIASES = ("bias", "beta", "b")


@dataclass(frozen=True, eq=False)
class Pair:
    """A dense network and its factorised one.

    Arguments:
        dense, small: the networks, and their variables.
        names: for each leaf of the small network's variables the names along its path, None of
            what is no parameter.
        modules: the paths of the modules whose outputs can be had.
        renewed: from variables of the small network to those with batch statistics estimated
            again; None where there are none, or these stay.
    """

    plan: Plan
    dense: tuple[Network, Any]
    small: tuple[Network, Any]
    names: Sequence[Names | None]
    modules: Sequence[str] = ()
    renewed: Callable[[Any], Any] | None = None

    @property
    def leaves(self) -> list[Any]:
        """Of the small network's variables."""
        return jax.tree.leaves(self.small[1])

    @property
    def structure(self) -> Any:
        """Of the small network's variables."""
        return jax.tree.structure(self.small[1])

    def places(self, trained: Collection[str]) -> tuple[int, ...]:
        """Of what is trained, among the leaves.

        Raises ValueError where there is nothing of it.
        """
        factors = set(_factors(self.names, self.plan).values())
        found = tuple(
            place
            for place, (names, leaf) in enumerate(zip(self.names, self.leaves, strict=True))
            if names is not None and jnp.issubdtype(leaf.dtype, jnp.floating)
            if ("factors" if place in factors else _sort(names, leaf)) in trained
        )
        if not found:
            raise ValueError(
                f"refine: the factorised network has no {' or '.join(trained)} to train"
            )
        return found

    @cached_property
    def readers(self) -> dict[int, tuple[str, ...]]:
        """By place of a shared input factor among the leaves, the paths of the layers it is of."""
        factors, found = _factors(self.names, self.plan), {}
        for unit in units_of(self.plan.factorised):
            if len(unit) > 1:
                paths = tuple(entry.layer.path for entry in unit)
                found[factors[_input_of(paths[0])]] = paths
        return found


def balanced_leaves(leaves: Sequence[Any], names: Sequence[Names | None], plan: Plan) -> list[Any]:
    """Leaves of a factorised network, the factors of each layer balanced.

    Arguments:
        names: along the paths of the leaves, see `Pair`.
    """
    made, factors = list(leaves), _factors(names, plan)
    for unit in units_of(plan.factorised):
        places = [
            {stage.name: factors[join_path(own.layer.path, stage.name, "kernel")]
             for stage in own.stages}
            for own in unit
        ]  # fmt: skip
        found = _balanced([{n: leaves[k] for n, k in own.items()} for own in places], unit)
        for own, kernels in zip(places, found, strict=True):
            for name, place in own.items():
                made[place] = kernels[name].astype(leaves[place].dtype)
    return made


def _balanced(kernels: Sequence[Factors], unit: Sequence[PlannedLayer]) -> Sequence[Factors]:
    """The kernels of the stages of a layer, or of all that share an input factor."""
    if len(unit) == 1:
        return [balanced(kernels[0], unit[0])]
    return parted(balanced(joined_factors(kernels, unit), joined_entry(unit)), unit)


def _factors(names: Sequence[Names | None], plan: Plan) -> dict[str, int]:
    """By path, the places of all factors among the leaves; of shared ones by that of the lender."""
    paths = {
        join_path(entry.layer.path, *rest)
        for entry in plan.factorised
        for rest in (*((stage.name, "kernel") for stage in entry.stages), (CORRECTION, VALUES))
    }
    # NNX names what is at several paths by any of them.
    lent = {_input_of(e.layer.path): _input_of(e.shares) for e in plan.factorised if e.shares}
    every = {join_path(*own): k for k, own in enumerate(names) if own is not None}
    found = {lent.get(path, path): place for path, place in every.items()}
    return {path: found[path] for path in paths & found.keys()}


def _input_of(path: str) -> str:
    return join_path(path, INPUT, "kernel")


def _sort(names: Names, leaf: Any) -> str:
    """What a parameter is that is no factor."""
    if names[-1:] and names[-1] in SCALES:
        return "scales"
    return "biases" if leaf.ndim <= 1 or names[-1] in BIASES else "rest"
