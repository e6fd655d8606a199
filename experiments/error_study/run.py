"""The study itself: train, decompose, measure, fine-tune, measure again."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path

from experiments.data.gather import SETS
from experiments.error_study.candidates import Factors, decompose_runs, kernel_of
from experiments.error_study.choices import PlannedStudy, plan_study
from experiments.error_study.measure import (
    compressed_records,
    few_images,
    finetune_records,
    moments_of_layers,
)
from experiments.error_study.protocol import Choice, Key, Protocol, Run
from experiments.error_study.records import (
    SCHEMA,
    check_records,
    choice_fields,
    lacking_data_errors,
)
from experiments.error_study.report import write_report
from experiments.network.baseline import check_baseline
from experiments.network.forward import Variables
from experiments.network.network import DECOMPOSE, Network
from experiments.runner import Experiment, baseline, begin, measure
from experiments.workdir.devices import here
from experiments.workdir.journal import Identity, Journal
from experiments.workdir.threads import Further, Records
from tdjax.moments.collect import LayerMoments


def run(network: Network, settings: Protocol, workdir: Path, *, tensorboard: bool = False) -> Path:
    """Measure everything that the protocol asks for and is not measured yet, then report.

    Returns the path of the report's page; see `experiments.runner.carry_out`.
    """
    study = plan_study(network, settings)
    settings = study.protocol
    with begin(EXPERIMENT.name, settings, SCHEMA, workdir, tensorboard=tensorboard) as journal:
        check_records(settings, journal)
        errors = _has_data_errors(settings, journal)
        expected = product(settings.kinds, settings.keys)
        with few_images():
            measure(
                journal,
                [journal.identity(kind, choice_fields(key)) for kind, key in expected],
                [
                    partial(_measure_network, study, number, journal, workdir, data_errors=errors)
                    for number in range(settings.networks)
                ],
            )
        return write_report(workdir)


def expected(network: Network, settings: Protocol, journal: Journal) -> list[Identity]:
    """What identifies each record that a study asks for."""
    settings = plan_study(network, settings).protocol
    check_records(settings, journal)
    baselines = [("baseline", {"network": number}) for number in range(settings.networks)]
    fields = [(kind, choice_fields(key)) for kind, key in product(settings.kinds, settings.keys)]
    return [journal.identity(*one) for one in (*baselines, *fields)]


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


def _measure_network(
    study: PlannedStudy, number: int, journal: Journal, workdir: Path, *, data_errors: bool
) -> Iterator[Records | Further]:
    """Train one of the networks where it is not trained yet; its layers are tasks of their own.

    Arguments:
        study: of the first network; others, with their data, are held while they are measured.
    """
    settings = study.protocol
    keys = [key for key in settings.keys if key.network == number]
    missing = {kind: _missing(journal, kind, keys) for kind in settings.kinds}
    if number and journal.get("baseline", network=number) and not any(missing.values()):
        return
    study = study.of_network(number)
    model = baseline(study.network, journal, workdir, SETS, network=number)
    found = journal.again().found
    if not settings.poor_baseline:
        check_baseline(found[journal.identity("baseline", {"network": number})], study.network)
    moments = moments_of_layers(study, model) if data_errors and missing["compressed"] else {}
    yield Further(
        [
            partial(_measure_layer, study, model, path, journal, moments.get(path))
            for path in settings.layers
        ]
    )


def _missing(journal: Journal, kind: str, keys: Iterable[Key]) -> list[Key]:
    """Those of some measurements that are not recorded."""
    return [key for key in keys if journal.get(kind, **choice_fields(key)) is None]


def _measure_layer(
    study: PlannedStudy,
    model: Variables,
    path: str,
    journal: Journal,
    moments: LayerMoments | None,
) -> Iterator[Records | Further]:
    """Yield the records of one layer that are missing, as soon as each group is there.

    Those of fine-tuning are tasks of their own.
    """
    settings, key, model = study.protocol, study.network.key(DECOMPOSE), here(model)
    plans = {choice: plan for choice, plan in study.plans.items() if choice.layer == path}
    keys = [own for own in settings.keys if own.network == study.number and own.choice in plans]
    missing = {kind: _missing(journal, kind, keys) for kind in settings.kinds}
    if not any(missing.values()):
        return
    kernel = kernel_of(model, next(iter(plans.values())).layer)
    factors = decompose_runs(kernel, plans, settings.runs_of, settings.decompose, key)
    if missing["compressed"]:
        # All of them, also those that are there: a layer's candidates are one computation, whose
        # numbers must not depend on where an earlier run was killed.
        records = compressed_records(study, model, path, plans, factors, moments)
        yield [records[own.choice, own.run] for own in keys]
    untuned = dict.fromkeys(own.choice for own in missing.get("finetuned", ()))
    # Not of the layer as a whole: the last of few large tasks would leave all cores but one idle.
    yield Further(
        [
            partial(_tune, study, model, [own for own in untuned if own.method == method], factors)
            for method in dict.fromkeys(own.method for own in untuned)
        ]
    )


def _tune(
    study: PlannedStudy,
    model: Variables,
    choices: Sequence[Choice],
    factors: Mapping[Run, Factors],
) -> Iterator[Records]:
    """Yield the records of fine-tuning of some choices of one layer and method.

    Arguments:
        factors: of all choices of the layer.
    """
    model = here(model)
    alike = [
        own
        for (other, run), own in factors.items()
        if run == 0 and other.method == choices[0].method
    ]
    for choice in choices:
        tuned = finetune_records(study, model, choice, study.plans[choice], factors, alike)
        yield list(tuned.values())
