"""What a trial makes: ranks by a strategy, factors, and the network that they give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.compress.settings import Compress, Trial
from experiments.network.arrays import array_of
from experiments.network.calibrate import Batch
from experiments.network.compressed import FROBENIUS, SEQUENTIAL, Compressed, Moments, decomposed
from experiments.network.forward import Variables
from experiments.network.network import Network
from experiments.network.train_on import moments_for
from tdjax.allocation.measures import operator_bound
from tdjax.dispatch import allocate
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
    made, norm, before = None, trial.norm, model
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
        budget = trial.budget ** (number / settings.rounds)
        plan = allocated(network, settings, model, trial.strategy, budget, moments)
        factors = decomposed(network, model, plan, trial.name, norm, batches, moments)
        made = Compressed(network, before, plan, factors, model.state, settings.refine)
    assert made is not None
    return made


def allocated(
    network: Network,
    settings: Compress,
    model: Variables,
    named: str,
    budget: float,
    moments: Moments | None = None,
) -> Plan:
    """What a strategy, by its name in the settings, chooses.

    Raises ValueError for a budget that cannot be met.
    """
    strategy, _, released = named.partition(" ")
    plan: Plan = network.call(
        allocate,
        model,
        network.sample,
        budget=budget,
        cost=settings.cost,
        strategy=strategy,
        methods=methods_for(settings, strategy),
        moments=moments,
        objective=released or "bound",
        seed=settings.seed,
    )
    return plan


def methods_for(settings: Compress, strategy: str) -> tuple[str, ...]:
    """The formats that a strategy chooses from: ALDS knows low rank alone."""
    return ("svd",) if strategy.startswith("alds") else tuple(settings.methods)


def greatest_bound(model: Variables, plan: Plan) -> float:
    """The bound that ALDS makes least: of the relative operator-norm error of any layer."""
    return max(
        operator_bound(array_of(model.params, entry.layer), entry)
        for entry in plan.layers
        if entry.layer.obstacle is None
    )
