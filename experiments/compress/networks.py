"""Compressed networks, made for each trial: allocated, decomposed, and trained on in rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from experiments.compress.settings import Compress
from experiments.compress.trials import Trial
from experiments.network.calibrate import Batch
from experiments.network.network import DECOMPOSE, Network
from experiments.network.train_on import moments_for, named_key, tuned
from experiments.network.training import Variables
from tdjax.allocation.measures import operator_bound
from tdjax.dispatch import allocate, factorize_sequentially
from tdjax.moments.collect import LayerMoments
from tdjax.params.factorize import factorize_params, reconstruct_params
from tdjax.params.tree import layer_params
from tdjax.plan.plan import Plan


@dataclass(frozen=True)
class Compressed:
    """A compressed network.

    Arguments:
        plan: what became of each layer.
        factors: its parameters.
        state: its other collections.
    """

    plan: Plan
    factors: Mapping[str, Any]
    state: Any

    @property
    def dense(self) -> Variables:
        """With its kernels multiplied out."""
        return Variables(reconstruct_params(self.factors, self.plan), self.state)


def press(
    network: Network,
    settings: Compress,
    model: Variables,
    trial: Trial,
    batches: Sequence[Batch],
    folder: Path,
) -> Compressed:
    """The network of a trial as the last compression leaves it.

    Arguments:
        model: the network before compression.
        batches: the calibration's images; none where it has none.
        folder: of the moments of the uncompressed network.
    """
    made = None
    for number in range(1, settings.rounds + 1):
        if made is not None:
            name = f"{trial.name}, {number}"
            _, best = tuned(network, made.factors, made.state, made.plan, name)
            model = Variables(reconstruct_params(best.params, made.plan), best.state)
        moments = None
        if trial.calibration.images:
            # Only the uncompressed network's moments are shared between trials.
            own = folder if number == 1 else folder / f"{trial.name}-{number}"
            moments = moments_for(network, model, batches, trial.calibration, own, gradients=True)
        plan = planned(network, settings, model, trial, number, moments)
        made = Compressed(
            plan, _decomposed(network, settings, model, trial, plan, batches, moments), model.state
        )
    assert made is not None
    return made


def planned(
    network: Network,
    settings: Compress,
    model: Variables,
    trial: Trial,
    number: int = 1,
    moments: Mapping[str, LayerMoments] | None = None,
) -> Plan:
    """What the strategy of a trial chooses in one of the rounds.

    Raises ValueError for a budget that cannot be met.
    """
    strategy, _, released = trial.strategy.partition(" ")
    return allocate(
        network.module,
        model.collections,
        network.sample,
        budget=trial.budget ** (number / settings.rounds),
        cost=settings.cost,
        strategy=strategy,
        methods=settings.methods,
        moments=moments,
        objective=released or "bound",
        seed=settings.seed,
    )


def greatest_bound(model: Variables, plan: Plan) -> float:
    """The bound that ALDS makes least: of the relative operator-norm error of any layer."""
    return max(
        operator_bound(
            layer_params(model.params, entry.layer.path)[entry.layer.storage.name], entry
        )
        for entry in plan.layers
        if entry.layer.obstacle is None
    )


def _decomposed(
    network: Network,
    settings: Compress,
    model: Variables,
    trial: Trial,
    plan: Plan,
    batches: Sequence[Batch],
    moments: Mapping[str, LayerMoments] | None,
) -> dict[str, Any]:
    key = named_key(network.key(DECOMPOSE), trial.name)
    options: dict[str, Any] = {"max_iters": settings.solver.max_iters, "tol": settings.solver.tol}
    if trial.norm == "frobenius":
        return factorize_params(model.params, plan, key=key, **options)
    if not settings.sequential:
        return factorize_params(
            model.params, plan, key=key, moments=moments, norm=trial.norm, **options
        )
    return factorize_sequentially(
        network.module,
        model.collections,
        plan,
        [jnp.asarray(batch.images) for batch in batches],
        moments=moments if trial.norm == "kronecker" else None,
        key=key,
        **options,
    )
