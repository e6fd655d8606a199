"""The experiment itself: train or read, collect moments, decompose, measure, fine-tune."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from experiments.data import Examples, stratified_subset
from experiments.data_aware.report import write_report
from experiments.data_aware.settings import SCHEMA, DataAware, Trial, enumerate_trials
from experiments.network.arrays import with_layer
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
from experiments.network.train_on import moments_file, moments_for, scored
from experiments.runner import Experiment, baseline, finish, measure, once
from experiments.workdir.devices import here
from experiments.workdir.fields import FieldError
from experiments.workdir.journal import Journal
from experiments.workdir.places import Place
from experiments.workdir.record_fields import Identity
from experiments.workdir.threads import Further, Records, Units, last_units
from experiments.workdir.work import Work, begin
from tdjax.dispatch import make_plan
from tdjax.params.bias import can_correct, mean_output, shifted
from tdjax.params.factorize import reconstruct_params
from tdjax.params.tree import copied, layer_params, put
from tdjax.plan.plan import Plan
from tdjax.plan.rules import Rule


def run(
    network: Network,
    settings: DataAware,
    workdir: Path,
    *,
    tensorboard: bool = False,
    place: Place | None = None,
) -> Path:
    """Measure everything that is asked for and not measured yet, then report.

    The work directory also holds `moments/`. Returns the path of the report's page; see
    `experiments.runner.carry_out`.
    """
    press = planned(network, settings)
    options: dict[str, Any] = {"tensorboard": tensorboard, "place": place}
    with begin(EXPERIMENT.name, settings, SCHEMA, workdir, **options) as work:
        trials = enumerate_trials(settings)
        names = [
            name for own in trials.values() for t in own for name in _names(work.journal, press, t)
        ]
        measure(work, names, [partial(_begun, press, work)])
        return finish(work, expected(network, settings, work.journal), write_report)


def planned(network: Network, settings: DataAware) -> Press:
    """What makes the networks of all trials, of a network that is not trained yet.

    Raises ValueError for what the network or its data do not have.
    """
    if any(settings.correct_bias) and not network.has_biases:
        problem = "has True: of a function's arrays it is not known which are biases; use (False,)"
        raise FieldError("correct_bias", problem)
    layer_test = layer_examples(settings, network.splits.test)
    plans = plan_networks(network, settings)
    check_refine(network, settings.refine)
    return Press(network, settings, network.start, plans, layer_test)


def expected(network: Network, settings: DataAware, journal: Journal) -> list[Identity]:
    """What identifies each record that is asked for."""
    press, trials = planned(network, settings), enumerate_trials(settings)
    names = [_names(journal, press, trial) for own in trials.values() for trial in own]
    return [journal.identity("baseline", {}), *itertools.chain.from_iterable(names)]


EXPERIMENT = Experiment("data_aware", DataAware, run, write_report, SCHEMA, expected, ("moments",))


def _names(journal: Journal, press: Press, trial: Trial) -> list[Identity]:
    """What identifies each record of a trial."""
    layers = [{"layer": path, **trial.fields} for path in press.layers_of(trial)]
    names = [journal.identity("network", trial.fields)]
    names += [journal.identity("layer", fields) for fields in layers]
    if press.settings.reestimate:
        names.append(journal.identity("reestimated", trial.fields))
    if press.settings.refine.epochs:
        names.append(journal.identity("refined", trial.fields))
    subsets = press.settings.finetune_subsets
    if press.settings.finetune.epochs and trial.calibration.subset < subsets:
        names.append(journal.identity("tuned", trial.fields))
    return names


def _begun(press: Press, work: Work) -> Iterator[Records | Units | Further]:
    """Train the network where it is not trained yet; each calibration is a task of its own."""
    network = press.network
    sizes = [
        {"method": method, "keep": keep, "params": plan.size, "macs": math.ceil(plan.macs)}
        for (method, keep), plan in press.plans.items()
    ]

    def describe(models: Variables, epoch: int) -> dict[str, Any]:
        return {**baseline_record(network, models, epoch, ("test",)), "sizes": sizes}

    model = yield from baseline(work, network, "baseline", describe)
    press = replace(press, model=model)
    trials = enumerate_trials(press.settings)
    yield Further(
        [partial(_measure, press, calibration, own, work) for calibration, own in trials.items()]
    )


def _measure(
    press: Press, calibration: Calibration, trials: Sequence[Trial], work: Work
) -> Iterator[Records | Units | Further]:
    """Yield the records of one calibration that are missing, as soon as each group is there."""
    network, journal, moments = press.network, work.journal, None
    names = {trial: _names(journal, press, trial) for trial in trials}
    missing = [trial for trial in trials if not journal.holds(names[trial])]
    if not missing:
        return
    batches = batches_for(network, press.settings, calibration)
    if calibration.images:
        gradients, folder = press.settings.needs_gradients, work.workdir / "moments"
        own = (network, press.model, batches, calibration, folder)
        moments = yield from once(
            f"moments on {calibration}",
            moments_file(calibration, folder).exists,
            partial(moments_for, *own, gradients=gradients),
        )
    records = partial(_records, press, moments, batches)
    yield last_units(
        [
            work.unit(f"{trial}", names[trial], partial(records, trial, names[trial]))
            for trial in missing
        ]
    )


def _records(
    press: Press,
    moments: Moments | None,
    batches: Sequence[Batch],
    trial: Trial,
    names: Sequence[Identity],
    journal: Journal,
) -> Iterator[Records]:
    """Yield the records of a trial that are missing."""
    kinds = [name[0] for name in names if name not in journal.found]
    press = replace(press, model=here(press.model))
    made = press.compressed(trial, moments, batches)
    for kind in dict.fromkeys(kinds):
        if kind == "layer":
            # A write is one piece, but a reader may have cut it: what is there stays as it is.
            yield press.layer_records(trial, made)
        else:
            name = f"{trial.calibration.subset}"
            yield [made.measured(kind, trial.fields, batches, name)[0]]


@dataclass(frozen=True, eq=False)
class Press:
    """Makes the compressed networks of trials; decompositions that see no data are kept.

    Arguments:
        model: the network before compression.
        plans: by method and share kept.
        layer_test: the test images for networks with one layer compressed; None for no such.
    """

    network: Network
    settings: DataAware
    model: Variables
    plans: Mapping[tuple[str, float], Plan]
    layer_test: Examples | None
    _kept: dict[Any, dict[str, Any]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def layers_of(self, trial: Trial) -> list[str]:
        """The layers of a trial that are tried one at a time."""
        # Where layers depend on one another none can be tried alone.
        if self.layer_test is None or trial.norm.startswith(SEQUENTIAL):
            return []
        return [entry.layer.path for entry in self.plans[trial.method, trial.keep].factorised]

    def compressed(
        self, trial: Trial, moments: Moments | None, batches: Sequence[Batch]
    ) -> Compressed:
        """The network of a trial.

        Arguments:
            moments: on the trial's calibration; None where that has no images.
            batches: its images.
        """
        network, model = self.network, self.model
        plan, correct = self.plans[trial.method, trial.keep], trial.correct_bias
        if trial.norm == FROBENIUS:
            factors = self._blind(trial, plan)
            if correct and moments is not None:
                factors = _corrected(factors, model.params, plan, moments)
        else:
            data = (trial.norm, batches, moments)
            factors = decomposed(network, model, plan, trial.start, *data, correct_bias=correct)
        return Compressed(network, model, plan, factors, model.state, self.settings.refine)

    def _blind(self, trial: Trial, plan: Plan) -> dict[str, Any]:
        start = trial.calibration.subset if trial.method == "cp" else 0
        name = (trial.method, trial.keep, start)
        with self._lock:
            if name not in self._kept:
                self._kept[name] = decomposed(self.network, self.model, plan, trial.start)
            return self._kept[name]

    def layer_records(self, trial: Trial, made: Compressed) -> list[dict[str, Any]]:
        """A record for each layer of a trial's network compressed alone."""
        records = []
        for path in self.layers_of(trial):
            assert self.layer_test is not None
            layer = made.plan[path].layer
            params = with_layer(self.model.params, made.dense.params, layer)
            test = scored(self.network, Variables(params, made.state), self.layer_test)
            records.append({"kind": "layer", "layer": path, **trial.fields, "test": test})
        return records


def plan_networks(network: Network, settings: DataAware) -> dict[tuple[str, float], Plan]:
    """Every plan of compression, by method and share kept.

    Raises ValueError where it would make no layer smaller.
    """
    plans = {}
    for method in settings.methods:
        for keep in settings.keeps:
            try:
                rules = tuple(
                    Rule(path=path, method=method, compression=1 - keep) for path in settings.layers
                )
                plan = network.call(make_plan, network.start, rules, network.sample)
            except ValueError as error:
                raise FieldError("layers", f"is {settings.layers}: {error}") from error
            if not plan.factorised:
                raise FieldError(
                    "keeps", f"has {keep:g}: no layer gets smaller with {method} at that"
                )
            plans[method, keep] = plan
    chosen = {entry.layer.path for plan in plans.values() for entry in plan.factorised}
    looked_up = chosen.intersection(network.embeddings)
    if looked_up and settings.needs_gradients:
        path = min(looked_up)
        raise FieldError(
            "layers",
            f"is {settings.layers}: {path!r} is an embedding, which norms with 'kronecker' do not "
            f"know; leave it out: '(?!{path}$).*'",
        )
    return plans


def layer_examples(settings: DataAware, test: Examples) -> Examples | None:
    """The test images for networks with one layer compressed; None for no such networks.

    Raises ValueError where there are fewer than asked for.
    """
    count = settings.test.layer_images
    if count is None:
        return test
    if count > len(test.labels):
        raise FieldError(
            "test.layer_images",
            f"is {count}, but there are {len(test.labels)} test examples: use fewer, or None for "
            "all",
        )
    if count == 0:
        return None
    return test.taken(stratified_subset(test.labels, count, settings.seed))


def _corrected(
    factors: Mapping[str, Any], params: Mapping[str, Any], plan: Plan, moments: Moments
) -> dict[str, Any]:
    """The biases take on what the mean input of each layer loses."""
    dense, result = reconstruct_params(factors, plan), copied(factors)
    for entry in plan.factorised:
        path, name = entry.layer.path, entry.layer.storage.name
        own, mean = layer_params(params, path), moments[path].mean
        if mean is not None and can_correct(entry, own):
            lost = own[name] - layer_params(dense, path)[name]
            put(result, path, {"bias": shifted(own["bias"], mean_output(lost, entry, mean))})
    return result
