"""The experiment itself: train or read, allocate, decompose, measure, train on, keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.compress.reach import ANY, least_share, nearest_share
from experiments.compress.report import write_report
from experiments.compress.settings import SCHEMA, Compress, Trial, enumerate_trials
from experiments.data import rows
from experiments.network.arrays import array_of
from experiments.network.baseline import baseline_record
from experiments.network.calibrate import Batch, Calibration
from experiments.network.compressed import (
    FROBENIUS,
    SEQUENTIAL,
    Compressed,
    Moments,
    batches_for,
    decomposed,
)
from experiments.network.forward import Variables
from experiments.network.network import Network
from experiments.network.refine import check_refine
from experiments.network.train_on import moments_file, moments_for
from experiments.runner import Experiment, baseline, finish, measure
from experiments.workdir.devices import here
from experiments.workdir.fields import FieldError
from experiments.workdir.journal import Journal
from experiments.workdir.places import Place
from experiments.workdir.record_fields import Identity
from experiments.workdir.threads import Further, Records, Unit, Units, last_units
from experiments.workdir.work import Work, begin
from tdjax.allocation.limits import TOLERANCE
from tdjax.allocation.measures import operator_bound
from tdjax.dispatch import allocate
from tdjax.dispatch.saving import load_factorised, save_factorised
from tdjax.params.saving import CheckpointError
from tdjax.plan.plan import Plan
from tdjax.plan.timing import profile_calls


def run(
    network: Network,
    settings: Compress,
    workdir: Path,
    *,
    tensorboard: bool = False,
    place: Place | None = None,
) -> Path:
    """Compress and measure everything that is asked for and not measured yet, then report.

    The work directory also holds `moments/` and `compressed/`, one folder a network, for
    `tdjax.load_factorised`; the times are not those of an unbroken run. Returns the path of the
    report's page; see `experiments.runner.carry_out`.
    """
    check_reach(network, settings)
    check_refine(network, settings.refine)
    trials = enumerate_trials(settings)
    options: dict[str, Any] = {"tensorboard": tensorboard, "place": place}
    with begin(EXPERIMENT.name, settings, SCHEMA, workdir, **options) as work:
        names = [name for trial in trials for name in _names(work.journal, settings, trial)]
        models: list[Variables] = []
        measure(work, names, [partial(_measure, network, settings, models, trials, work)])
        if settings.timed_images:
            measure(
                work,
                _timed_names(work.journal, trials),
                [partial(_time, network, settings, models[0], trials, work)],
            )
        return finish(work, expected(network, settings, work.journal), write_report)


def expected(network: Network, settings: Compress, journal: Journal) -> list[Identity]:
    """What identifies each record that is asked for."""
    check_reach(network, settings)
    check_refine(network, settings.refine)
    trials = enumerate_trials(settings)
    names = [name for trial in trials for name in _names(journal, settings, trial)]
    if settings.timed_images:
        names += _timed_names(journal, trials)
    return [journal.identity("baseline", {}), *names]


EXPERIMENT = Experiment(
    "compress", Compress, run, write_report, SCHEMA, expected, ("moments", "compressed")
)


def check_reach(network: Network, settings: Compress) -> None:
    """Refuse, before any work, what the network or its data do not have.

    Raises ValueError for budgets that no ranks meet, and for more timed images than there are.
    """
    images = len(network.splits.test.labels)
    if settings.timed_images > images:
        raise FieldError(
            "timed_images",
            f"is {settings.timed_images}, but there are {images} test images: use fewer",
        )
    others = [strategy for strategy in settings.strategies if strategy != "loss"]
    if network.embeddings and "kronecker" in settings.norms and others:
        raise FieldError(
            "norms",
            f"has 'kronecker', which strategy {others[0]!r} cannot follow for the embedding "
            f"{network.embeddings[0]!r}: only strategy 'loss' keeps it dense; use 'covariance'",
        )
    for strategy, budget in product(settings.strategies, settings.budgets):
        for number in range(1, settings.rounds + 1):
            try:
                _check_budget(network, settings, strategy, budget ** (number / settings.rounds))
            except ValueError as error:
                raise FieldError("budgets", f"has {budget}: {error}") from error


def _check_budget(network: Network, settings: Compress, strategy: str, budget: float) -> None:
    """Raise ValueError where no ranks that a strategy may choose meet a budget."""
    if strategy == "uniform":
        # Needs no weights.
        allocated(network, settings, network.start, strategy, budget)
        return
    # ALDS alone chooses from others, whatever its objective.
    known = strategy.partition(" ")[0] if strategy.startswith("alds") else ANY
    options = (network.dense, settings.cost, methods_for(settings, strategy))
    least = least_share(*options, strategy=known)
    # What rounding may take from the budget.
    if budget < least - 1e-9:
        raise ValueError(
            f"strategy {strategy!r} reaches {_rounded(least)} of the {settings.cost} to 1"
        )
    found = nearest_share(*options, budget, strategy=known)
    if found < budget - TOLERANCE - 1e-9:
        raise ValueError(
            f"strategy {strategy!r} cannot meet it within {TOLERANCE:.1%} of the {settings.cost}: "
            f"the steps between ranks are too large; {_rounded(found)} is within reach"
        )


def _rounded(share: float) -> str:
    """A share in four decimals that is not below it, since less cannot be met."""
    return f"{math.ceil(1e4 * share - 1e-6) / 1e4:g}"


def _names(journal: Journal, settings: Compress, trial: Trial) -> list[Identity]:
    """What identifies each record of a trial, the times apart."""
    kinds = ["network"]
    if settings.reestimate:
        kinds.append("reestimated")
    if settings.refine.epochs:
        kinds.append("refined")
    if settings.finetune.epochs:
        kinds.append("tuned")
    return [journal.identity(kind, trial.fields) for kind in kinds]


def _timed_names(journal: Journal, trials: Sequence[Trial]) -> list[Identity]:
    return [journal.identity("timed", trial.fields) for trial in trials]


def _measure(
    network: Network,
    settings: Compress,
    models: list[Variables],
    trials: Sequence[Trial],
    work: Work,
) -> Iterator[Records | Units | Further]:
    """Yield the records that are missing, a trial at a time, its checkpoint written before.

    Arguments:
        models: gets the network before compression.
    """
    describe = partial(baseline_record, network, subsets=("test",))
    model = yield from baseline(work, network, "baseline", describe)
    models.append(model)
    units, calibrations = [], set()
    for trial in trials:
        names = _names(work.journal, settings, trial)
        if not work.journal.holds(names):
            kinds = [kind for kind, *_ in names]
            made = partial(_made, network, settings, model, trial, kinds, work.workdir)
            units.append(work.unit(f"trial {trial.name}", names, partial(_tried, made)))
            calibrations.add(trial.calibration)
    folder = work.workdir / "moments"
    # What many trials need is made by one process each, before all of them.
    yield Units(
        [
            _moments_unit(network, settings, model, calibration, folder)
            for calibration in sorted(calibrations)
            if calibration.images
        ]
    )
    yield last_units(units)


def _moments_unit(
    network: Network, settings: Compress, model: Variables, calibration: Calibration, folder: Path
) -> Unit:
    """The moments of the uncompressed network on a calibration, in their file."""

    def work() -> Iterator[Records]:
        batches = batches_for(network, settings, calibration)
        moments_for(network, here(model), batches, calibration, folder, gradients=True)
        yield []

    is_done = moments_file(calibration, folder).exists
    return Unit(f"moments on {calibration}", is_done, work)


def _tried(made: Callable[[], Records], _: Journal) -> Iterator[Records]:
    yield made()


def _made(
    network: Network,
    settings: Compress,
    model: Variables,
    trial: Trial,
    kinds: Sequence[str],
    workdir: Path,
) -> Records:
    """The records of a trial, once its checkpoint is written."""
    model = here(model)
    batches = batches_for(network, settings, trial.calibration)
    kept = made = press(network, settings, model, trial, batches, workdir / "moments")
    records = []
    for kind in kinds:
        fields = trial.fields
        if kind == "network":
            fields["plan"] = made.plan.to_json()
        # The last is kept: refined or, before all, trained on with labels, if asked.
        record, kept = made.measured(kind, fields, batches, f"{trial.name}, last")
        records.append(record)
    if trial.strategy.startswith("alds") and settings.rounds == 1:
        records[0]["bound"] = greatest_bound(model, made.plan)
    saved = network.apply.saved(Variables(kept.factors, kept.state))
    save_factorised(workdir / "compressed" / trial.name, saved, kept.plan)
    return records


def _time(
    network: Network, settings: Compress, model: Variables, trials: Sequence[Trial], work: Work
) -> Iterator[Units]:
    """Inference of each network against that of the original, in turns, nothing beside it."""
    names = _timed_names(work.journal, trials)
    times = partial(_times, network, settings, model, trials, work.workdir)
    yield Units([work.unit("times of inference", names, times)])


def _times(
    network: Network,
    settings: Compress,
    model: Variables,
    trials: Sequence[Trial],
    workdir: Path,
    journal: Journal,
) -> Iterator[Records]:
    """Yield the records of the times that are missing."""
    timed = rows(network.splits.test.images, slice(settings.timed_images))
    images = jax.tree.map(jnp.asarray, timed)
    before = jax.jit(lambda model: network.apply(model.params, model.state, images, None)[0])
    for trial in trials:
        if journal.get("timed", **trial.fields):
            continue
        folder = workdir / "compressed" / trial.name
        if not folder.exists():
            # Removed, as it is measured already.
            kinds = [kind for kind, *_ in _names(journal, settings, trial)]
            _made(network, settings, model, trial, kinds, workdir)
        try:
            variables, plan = load_factorised(folder, like=network.apply.like(model))
        except CheckpointError as error:
            raise CheckpointError(f"{error}; remove {folder} to have it made again") from error
        small = network.apply.factorised(plan)
        after = jax.jit(lambda variables, small=small: small(variables, images))
        profile = profile_calls(partial(before, model), partial(after, variables))
        times = ("before", "after", "speedup", "least", "most")
        measured = {name: getattr(profile, name) for name in times}
        yield [{"kind": "timed", **trial.fields, **measured}]


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
