"""A dense network with decomposed kernels in place of some of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

import tdjax.nnx
from tdjax.allocation.corrected import Level
from tdjax.arguments.called import Method, example_losses
from tdjax.dispatch.factors import factorize
from tdjax.dispatch.models import kind_of, room_of, with_arrays
from tdjax.evaluate.rises import Losses, mean_and_error
from tdjax.moments.collect import LayerMoments
from tdjax.moments.feeding import Fed
from tdjax.moments.losses import LossFn
from tdjax.params.factorize import factorize_params, reconstruct_params
from tdjax.params.tree import join_path
from tdjax.plan.plan import Plan
from tdjax.progress import Tick
from tdjax.trace.call import Reading


class Dense(NamedTuple):
    """A dense network and what it is decomposed with.

    Arguments:
        moments: of its layers.
        batches: by which batch statistics are renewed; None to leave them.
    """

    model: Any
    variables: Any
    method: Method
    moments: Mapping[str, LayerMoments]
    key: Array
    batches: Iterable[Fed] | None

    @property
    def arrays(self) -> tuple[Any, ...]:
        """The arguments in front of an adapter's functions."""
        return with_arrays(self.model, self.variables)

    def leaves(self, arrays: tuple[Any, ...] | None = None) -> list[Any]:
        """The arrays, of the model or of another like it, in the order of its network."""
        _, variables = room_of(self.model).network_of(*(arrays or self.arrays), method=self.method)
        return jax.tree.leaves(variables)

    def decomposed(self, plan: Plan) -> list[Any]:
        """The arrays with the layers of a plan decomposed and multiplied out again."""
        options: dict[str, Any] = {"key": self.key, "moments": self.moments, "correct_bias": True}
        options["progress"] = False
        kind = kind_of(self.model)
        if kind.held is None:
            small = factorize(self.model, plan, **options)
            return self.leaves((tdjax.nnx.reconstruct(small, plan),))
        whole = self.variables if kind.held == "params" else self.variables["params"]
        dense = reconstruct_params(factorize_params(whole, plan, **options), plan)
        if kind.held != "params":
            dense = {**self.variables, "params": dense}
        return self.leaves((self.model, dense))

    def renewed(self, leaves: Sequence[Any]) -> list[Any]:
        """Arrays with batch statistics as they are then, where these are to be renewed."""
        if self.batches is None:
            return list(leaves)
        room, batches = room_of(self.model), self.batches
        if self.variables is None:
            own = tdjax.nnx.with_leaves(self.model, leaves)
            return self.leaves((room.reestimate_batch_stats(own, batches, method=self.method),))
        variables = jax.tree.unflatten(jax.tree.structure(self.variables), leaves)
        again = room.reestimate_batch_stats(self.model, variables, batches, method=self.method)
        return self.leaves((self.model, again))


def losses_of(dense: Dense, loss_fn: LossFn, reading: Reading, batches: Sequence[Any]) -> Losses:
    """The losses of a dense network's batches, as a function of its arrays."""
    network, variables = room_of(dense.model).network_of(*dense.arrays, method=dense.method)
    structure = jax.tree.structure(variables)
    return Losses(network, structure, example_losses(loss_fn), reading, batches)


def rises_of(
    dense: Dense,
    losses: Losses,
    levels: Sequence[Level],
    groups: Sequence[tuple[str, ...]],
    tick: Tick,
) -> list[list[tuple[float, float]]]:
    """For each level and group the rise of the mean loss, and its standard error."""
    own = dense.leaves()
    names = room_of(dense.model).parameter_names(*dense.arrays)
    before = losses(own)
    wrong = np.flatnonzero(~np.isfinite(before))
    if wrong.size:
        batch = losses.batch_of(int(wrong[0]), len(before))
        raise ValueError(
            f"measure_rises: with batch {batch} (the first is 1) "
            "the loss of the dense network is NaN or Inf: look for them in the batch, the loss and "
            "the model's weights"
        )
    found: list[list[tuple[float, float]]] = []
    counts = losses.counts(len(before))
    for level in levels:
        other, rises = dense.decomposed(level.plan), []
        for group in groups:
            swapped = [
                new if name is not None and _inside(name, group) else old
                for name, old, new in zip(names, own, other, strict=True)
            ]
            after = losses(dense.renewed(swapped))
            if not np.isfinite(after).all():
                raise ValueError(
                    f"measure_rises: the loss is NaN or Inf with {', '.join(group)} compressed: "
                    "give greater budgets, or a loss that stays finite"
                )
            rises.append(mean_and_error(after - before, counts))
            tick(len(found) * len(groups) + len(rises))
        found.append(rises)
    return found


def _inside(name: Sequence[str], paths: Sequence[str]) -> bool:
    """Whether an array belongs to one of some layers."""
    path = join_path(*name)
    return any(not own or path == own or path.startswith(f"{own}/") for own in paths)
