"""The study itself: train, decompose, measure, fine-tune, measure again."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

from experiments.data.gather import SETS
from experiments.error_study.candidates import Factors, decompose_runs, kernel_of
from experiments.error_study.choices import PlannedStudy, plan_study
from experiments.error_study.measure import (
    compressed_records,
    few_images,
    finetune_records,
    moments_of_layers,
    tuned_together,
)
from experiments.error_study.protocol import Choice, Key, Protocol, Run
from experiments.error_study.records import (
    SCHEMA,
    check_records,
    choice_fields,
    lacking_data_errors,
)
from experiments.error_study.report import write_report
from experiments.network.baseline import baseline_record, check_baseline
from experiments.network.forward import Variables
from experiments.network.network import DECOMPOSE, Network
from experiments.runner import Experiment, baseline, finish, measure
from experiments.workdir.devices import here
from experiments.workdir.journal import Journal
from experiments.workdir.places import Place
from experiments.workdir.record_fields import Identity
from experiments.workdir.threads import Further, Records, Units
from experiments.workdir.work import Work, begin
from tdjax.moments.collect import LayerMoments
from tdjax.plan.plan import PlannedLayer


def run(
    network: Network,
    settings: Protocol,
    workdir: Path,
    *,
    tensorboard: bool = False,
    place: Place | None = None,
) -> Path:
    """Measure everything that the protocol asks for and is not measured yet, then report.

    Returns the path of the report's page; see `experiments.runner.carry_out`.
    """
    study = plan_study(network, settings)
    settings = study.protocol
    options: dict[str, Any] = {"tensorboard": tensorboard, "place": place}
    with begin(EXPERIMENT.name, settings, SCHEMA, workdir, **options) as work:
        check_records(settings, work.journal)
        errors = _has_data_errors(settings, work.journal)
        asked = product(settings.kinds, settings.keys)
        with few_images():
            measure(
                work,
                [work.journal.identity(kind, choice_fields(key)) for kind, key in asked],
                [
                    partial(_measure_network, study, number, work, data_errors=errors)
                    for number in range(settings.networks)
                ],
            )
        return finish(work, _names(settings, work.journal), write_report)


def expected(network: Network, settings: Protocol, journal: Journal) -> list[Identity]:
    """What identifies each record that a study asks for."""
    settings = plan_study(network, settings).protocol
    check_records(settings, journal)
    return _names(settings, journal)


EXPERIMENT = Experiment("study", Protocol, run, write_report, SCHEMA, expected)


def _has_data_errors(settings: Protocol, journal: Journal) -> bool:
    """Whether errors in the norms of the data are measured: not where an earlier version did not.

    A column that only some choices have orders nothing.
    """
    if not lacking_data_errors(journal):
        return True
    if len(journal.of_kind("compressed")) < len(settings.keys):
        warnings.warn(
            f"measurements in {journal.path.parent} lack the errors in the norms of the data, so "
            "the study goes on without them; to have them, use another workdir",
            stacklevel=3,
        )
    return False


def _names(settings: Protocol, journal: Journal) -> list[Identity]:
    """What identifies all records of a study, in their order."""
    baselines = [("baseline", {"network": number}) for number in range(settings.networks)]
    fields = [(kind, choice_fields(key)) for kind, key in product(settings.kinds, settings.keys)]
    return [journal.identity(*one) for one in (*baselines, *fields)]


def _measure_network(
    study: PlannedStudy, number: int, work: Work, *, data_errors: bool
) -> Iterator[Records | Further | Units]:
    """Train one of the networks where it is not trained yet; its layers are tasks of their own.

    Arguments:
        study: of the first network; others, with their data, are held while they are measured.
    """
    settings, journal = study.protocol, work.journal
    keys = [key for key in settings.keys if key.network == number]
    missing = {kind: _missing(journal, kind, keys) for kind in settings.kinds}
    if number and journal.get("baseline", network=number) and not any(missing.values()):
        return
    study = study.of_network(number)

    def describe(models: Variables, epoch: int) -> dict[str, Any]:
        return {**baseline_record(study.network, models, epoch, SETS), "network": number}

    folder = f"baseline-{number}" if number else "baseline"
    model = yield from baseline(work, study.network, folder, describe, network=number)
    if not settings.poor_baseline:
        found = journal.again().found[journal.identity("baseline", {"network": number})]
        check_baseline(found, study.network)
    moments = moments_of_layers(study, model) if data_errors and missing["compressed"] else {}
    tasks = []
    for path, method in product(settings.layers, settings.methods):
        choices = tuple(c for c in study.plans if (c.layer, c.method) == (path, method))
        part = Part(study, model, choices)
        tasks.append(partial(_measure_part, part, work, moments.get(path)))
    yield Further(tasks)


def _missing(journal: Journal, kind: str, keys: Iterable[Key]) -> list[Key]:
    """Those of some measurements that are not recorded."""
    return [key for key in keys if journal.get(kind, **choice_fields(key)) is None]


@dataclass(eq=False)
class Part:
    """The choices of one layer and method in one network: what is decomposed and measured as one.

    Their numbers depend on nothing but themselves, whoever measures the others.

    Arguments:
        choices: all that the study has of these.
    """

    study: PlannedStudy
    model: Variables
    choices: tuple[Choice, ...]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        """In words."""
        return f"network {self.study.number}, {self.choices[0].layer}, {self.choices[0].method}"

    @property
    def plans(self) -> dict[Choice, PlannedLayer]:
        """What becomes of the layer in each choice."""
        return {choice: self.study.plans[choice] for choice in self.choices}

    @property
    def keys(self) -> list[Key]:
        """Every run of every choice."""
        runs = range(self.study.protocol.runs_of(self.choices[0].method))
        return [Key(self.study.number, *own) for own in product(self.choices, runs)]

    @cached_property
    def _factors(self) -> dict[Run, Factors]:
        settings, plans = self.study.protocol, self.plans
        kernel = kernel_of(self.model, next(iter(plans.values())).layer)
        key = self.study.network.key(DECOMPOSE)
        return decompose_runs(kernel, plans, settings.runs_of, settings.decompose, key)

    def factors(self) -> dict[Run, Factors]:
        """All decompositions, made once."""
        with self._lock:
            return self._factors


def _measure_part(
    part: Part, work: Work, moments: LayerMoments | None
) -> Iterator[Records | Further | Units]:
    """Yield the records that are missing; fine-tuning is tasks of its own."""
    journal, study = work.journal, part.study
    names = {
        kind: {key: journal.identity(kind, choice_fields(key)) for key in part.keys}
        for kind in study.protocol.kinds
    }
    if journal.holds(name for own in names.values() for name in own.values()):
        return

    def compressed(_: Journal) -> Iterator[Records]:
        # All of them, also those that are there: they are one computation, whose numbers must not
        # depend on where an earlier run was killed.
        found = compressed_records(
            study, here(part.model), part.choices[0].layer, part.plans, part.factors(), moments
        )
        yield [found[own.choice, own.run] for own in part.keys]

    yield Units([work.unit(part.name, list(names["compressed"].values()), compressed)])
    tuned = names.get("finetuned", {})
    tasks = []
    for choice in part.choices if tuned else ():
        own = {key.run: name for key, name in tuned.items() if key.choice == choice}
        tasks += [
            partial(_tune, part, choice, runs, [own[run] for run in runs], work)
            for runs in tuned_together(list(own))
            if not journal.holds(own[run] for run in runs)
        ]
    # Not of the part as a whole: the last of few large tasks would leave all cores but one idle.
    yield Further(tasks)


def _tune(
    part: Part, choice: Choice, runs: Sequence[int], names: Sequence[Identity], work: Work
) -> Iterator[Units]:
    """Fine-tune some runs of a choice."""

    def tuned(_: Journal) -> Iterator[Records]:
        factors = part.factors()
        alike = [own for (_, run), own in factors.items() if run == 0]
        records = finetune_records(
            part.study, here(part.model), choice, part.plans[choice], factors, alike, runs
        )
        yield list(records.values())

    which = ", ".join(map(str, runs))
    name = f"fine-tuning of network {part.study.number}, {choice}, run {which}"
    yield Units([work.unit(name, names, tuned)])
