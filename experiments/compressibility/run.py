"""The experiment itself: train, look at the layers, prune, measure, train on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax

from experiments.compressibility.layers import layer_records, layers_of, leaves_of
from experiments.compressibility.measure import Pruner, baseline_record, pruned_record, tuned_record
from experiments.compressibility.report import write_report
from experiments.compressibility.settings import SCHEMA, Compressibility, Trial, enumerate_trials
from experiments.network.calibrate import Calibration, images_of, seen
from experiments.network.forward import Variables
from experiments.network.network import Network, reseeded
from experiments.network.train_on import moments_file, moments_for
from experiments.runner import Experiment, baseline, finish, measure, once
from experiments.workdir.devices import own_devices
from experiments.workdir.fields import FieldError
from experiments.workdir.journal import Journal
from experiments.workdir.places import Place
from experiments.workdir.ranges import SEEDS
from experiments.workdir.record_fields import Identity
from experiments.workdir.threads import Records, Units
from experiments.workdir.work import Work, begin
from tdjax.dispatch import remove_dead
from tdjax.params.digests import tree_digest
from tdjax.plan.layers import LEAF


def run(
    network: Network,
    settings: Compressibility,
    workdir: Path,
    *,
    tensorboard: bool = False,
    place: Place | None = None,
) -> Path:
    """Prune and measure everything that is asked for and not measured yet, then report.

    The work directory holds a folder for each run in `checkpoints/` and `moments/`. Returns the
    path of the report's page; see `experiments.runner.carry_out`.

    Arguments:
        network: of the first run; those of others differ from it in all that is random.
    """
    _check(network, settings)
    options: dict[str, Any] = {"tensorboard": tensorboard, "place": place}
    with begin(EXPERIMENT.name, settings, SCHEMA, workdir, **options) as work:
        names, runs = _asked(settings, work.journal), range(settings.runs)
        tasks = [partial(_measure, network, settings, run, work) for run in runs]
        # Each has its own data: no more of them at once than keep the devices busy.
        measure(work, names, tasks, most=len(own_devices()))
        paths = [leaf.path for leaf in leaves_of(network, network.start)]
        order = [name for run in runs for name in _of_run(settings, work.journal, paths, run)]
        return finish(work, order, write_report)


def expected(network: Network, settings: Compressibility, journal: Journal) -> list[Identity]:
    """What identifies each record that is asked for."""
    _check(network, settings)
    return _asked(settings, journal)


EXPERIMENT = Experiment(
    "compressibility", Compressibility, run, write_report, SCHEMA, expected, ("moments",)
)


def _check(network: Network, settings: Compressibility) -> None:
    """Refuse, before any work, what the network does not have."""
    if network.is_given and settings.runs > 1:
        raise FieldError("runs", f"is {settings.runs}: a network that was given has one")
    if settings.seed + settings.runs - 1 > SEEDS:
        problem = f"is {settings.seed}: that of run {settings.runs} is above {SEEDS}"
        raise FieldError("seed", problem)
    check_layers(network, settings.model.name)
    if "abp-l" in settings.methods:
        check_chain(network)


def _asked(settings: Compressibility, journal: Journal) -> list[Identity]:
    names = [journal.identity("baseline", {"run": number}) for number in range(settings.runs)]
    for number, trial in product(range(settings.runs), enumerate_trials(settings)):
        names += _names(journal, settings, trial, number)
    return names


def _of_run(
    settings: Compressibility, journal: Journal, paths: Sequence[str], run: int
) -> list[Identity]:
    """What identifies all records of one run, in their order."""
    trials = enumerate_trials(settings)
    return [
        journal.identity("baseline", {"run": run}),
        *_layer_names(journal, paths, [run]),
        *(name for trial in trials for name in _names(journal, settings, trial, run)),
    ]


def check_layers(network: Network, name: str) -> None:
    """Refuse a network with a layer that cannot be pruned, or whose inputs are not seen.

    Raises FieldError that names the layer.
    """
    told = set()

    def look(images: Any) -> None:
        network.apply.watched(network.start, images, lambda path, *_: told.add(path))

    jax.eval_shape(look, network.sample)
    for layer in (entry.layer for entry in network.dense.layers if not entry.layer.obstacle):
        problem, own = None, layer.storage.name
        if layer.kind == "embed":
            problem = "has no kernel to prune"
        elif own not in ("kernel", LEAF):
            problem = (
                f"has its weights in {own!r}, and only those in 'kernel' are pruned; the pair of "
                "the module's apply and its variables, a function, has layers of any name"
            )
        elif layer.storage.stack is not None or layer.path not in told:
            problem = "is one of a stack or in a loop, where what goes through it is not seen"
        if problem:
            raise FieldError("model", f"is {name!r}: layer {layer.path!r} {problem}")


def check_chain(network: Network) -> None:
    """Refuse a network whose layers do not follow each other.

    Raises ValueError that names a layer and what its neurons meet, and for a function.
    """
    if not network.has_biases:
        raise FieldError(
            "methods",
            "has 'abp-l', which needs layers that follow each other: of a function that is not "
            "known, since its biases are not; leave it out",
        )
    *inner, _ = [entry.layer.path for entry in network.dense.layers]
    obstacles = network.call(remove_dead, network.start, network.sample).obstacles
    for path in inner:
        if path in obstacles:
            raise ValueError(
                "config field 'methods': 'abp-l' needs layers that follow each other, but layer "
                f"{path!r}: {obstacles[path]}; leave it out"
            )


def _names(journal: Journal, settings: Compressibility, trial: Trial, run: int) -> list[Identity]:
    """What identifies the records of a trial."""
    kinds = ("pruned", "tuned") if settings.finetune.epochs else ("pruned",)
    return [journal.identity(kind, {"run": run, **trial.fields}) for kind in kinds]


def _layer_names(journal: Journal, paths: Sequence[str], runs: Iterable[int]) -> list[Identity]:
    """What identifies the records of the layers, in forward order."""
    fields = [{"run": run, "layer": path} for run, path in product(runs, paths)]
    return [journal.identity("layer", own) for own in fields]


def _measure(
    network: Network, settings: Compressibility, run: int, work: Work
) -> Iterator[Records | Units]:
    """Yield the records of one run: of the network and its layers where missing, of the trials."""
    journal, trials = work.journal, enumerate_trials(settings)
    names = {trial: _names(journal, settings, trial, run) for trial in trials}
    paths = [leaf.path for leaf in leaves_of(network, network.start)]
    layer_names = _layer_names(journal, paths, [run])
    lacking = [trial for trial in trials if not journal.holds(names[trial])]
    whole = journal.identity("baseline", {"run": run})
    if not lacking and journal.holds([whole, *layer_names]):
        return
    network = reseeded(network, settings.seed + run) if run else network

    def describe(models: Variables, epoch: int) -> dict[str, Any]:
        own = baseline_record(network, models.of_run(0), epoch, run)
        return {**own, "weights": tree_digest(models)}

    model = yield from baseline(work, network, f"run-{run}", describe, run=run)
    calibration = seen(settings.calibration, Calibration())
    batches = network.batches(calibration)
    layers = layers_of(network, model, images_of(batches))

    def about_layers(journal: Journal) -> Iterator[Records]:
        test = journal.found[whole]["test"]
        yield layer_records(settings, layers, run, test)

    moments: dict[str, Any] = {}
    if "abp-l" in settings.methods:
        folder = work.workdir / "moments" / f"run-{run}"
        own = (network, model, batches, calibration, folder)
        moments = yield from once(
            f"moments of run {run}",
            moments_file(calibration, folder).exists,
            partial(moments_for, *own, gradients=False),
        )
    pruner = Pruner(layers, moments)
    units = [work.unit(f"layers of run {run}", layer_names, about_layers)]
    for trial in lacking:
        tried = partial(_tried, settings, pruner, trial, run)
        units.append(work.unit(f"run {run}, {trial.name}", names[trial], tried))
    yield Units(units)


def _tried(
    settings: Compressibility, pruner: Pruner, trial: Trial, run: int, _: Journal
) -> Iterator[Records]:
    """Yield the records of a trial."""
    cut = pruner.cut(trial)
    records = [pruned_record(pruner, trial, run, cut)]
    if settings.finetune.epochs:
        records.append(tuned_record(pruner, trial, run, cut))
    yield records
