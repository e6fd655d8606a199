"""Compressed networks, made for each trial: allocated, decomposed, and trained on in rounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.compress.settings import Compress
from experiments.compress.trials import Trial
from experiments.network.calibrate import Batch
from experiments.network.compressed import FROBENIUS, SEQUENTIAL, Compressed, Moments, decomposed
from experiments.network.network import Network
from experiments.network.train_on import moments_for
from experiments.network.training import Variables
from tdjax.allocation.measures import operator_bound
from tdjax.dispatch import allocate
from tdjax.params.tree import layer_params
from tdjax.plan.plan import Plan


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
    norm = trial.norm
    if settings.sequential and norm != FROBENIUS:
        norm = SEQUENTIAL + norm
    for number in range(1, settings.rounds + 1):
        if made is not None:
            model = made.tuned(f"{trial.name}, {number}")[1].dense
        moments = None
        if trial.calibration.images:
            # Only the uncompressed network's moments are shared between trials.
            own = folder if number == 1 else folder / f"{trial.name}-{number}"
            moments = moments_for(network, model, batches, trial.calibration, own, gradients=True)
        plan = planned(network, settings, model, trial, number, moments)
        factors = decomposed(network, model, plan, trial.name, norm, batches, moments)
        made = Compressed(network, plan, factors, model.state)
    assert made is not None
    return made


def planned(
    network: Network,
    settings: Compress,
    model: Variables,
    trial: Trial,
    number: int = 1,
    moments: Moments | None = None,
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
