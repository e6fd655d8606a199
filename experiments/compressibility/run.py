"""The experiment itself: train, look at the layers, prune, measure, train on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.compressibility.layers import layer_records, layers_of
from experiments.compressibility.measure import baseline_record, pruned_record, tuned_record
from experiments.compressibility.paper import published_pruning
from experiments.compressibility.pruner import Pruner
from experiments.compressibility.records import Measured, identity, read_records
from experiments.compressibility.report import write_report
from experiments.compressibility.settings import Compressibility, settings_to_dict
from experiments.compressibility.trials import Trial, enumerate_trials
from experiments.network.calibrate import Calibration, moments_for
from experiments.network.network import ReadWeights, Subject, set_up
from experiments.workdir.journal import append_records, claim_workdir
from experiments.workdir.progress import Progress
from experiments.workdir.threads import Records
from tdjax.linen.removal import remove_dead


def run_compressibility(
    settings: Compressibility, workdir: Path, read_weights: ReadWeights | None = None
) -> Path:
    """Prune and measure everything that is asked for and not measured yet, then report.

    Work directory: `config.json`, `metrics.jsonl` (one line a measurement), `checkpoints/` and
    `moments/` (one folder a run), `report/`. Whatever is wrong with configuration, data or weights
    is found before any work; a run killed at any moment continues when started again, and ends
    with the same tables.

    Arguments:
        read_weights: reads the file that `settings.weights` names, see `subject.bench.set_up`.

    Returns the path of the report's page.

    Raises ValueError or `experiments.data.DataError` that names what is wrong.
    """
    published_pruning(settings.published)
    first = _subject(settings, 0, read_weights)
    if "abp-l" in settings.methods:
        check_chain(first)
    claim_workdir(
        workdir, settings_to_dict(dataclasses.replace(settings, experiment="compressibility"))
    )
    journal = workdir / "metrics.jsonl"
    measured = read_records(journal)
    trials = enumerate_trials(settings)
    expected = [name for run in range(settings.runs) for name in _names(settings, trials, run)]
    done = sum(name in measured.found for name in expected)
    with Progress("measurements", len(expected), done) as progress:
        for run in range(settings.runs):
            wanted = _names(settings, trials, run)
            if all(name in measured.found for name in wanted) and measured.layers(run):
                continue
            subject = first if run == 0 else _subject(settings, run, read_weights)
            for records in _measure(settings, subject, trials, measured, run, workdir):
                new = [record for record in records if identity(record) not in measured.found]
                append_records(journal, new)
                progress.advance(sum(record["kind"] != "layer" for record in new))
    return write_report(workdir)


def check_chain(subject: Subject) -> None:
    """Refuse a network whose layers do not follow each other.

    Raises ValueError that names a layer and what its neurons meet.
    """
    variables = {**subject.start.state, "params": subject.start.params}
    *inner, _ = [entry.layer.path for entry in subject.dense.layers]
    obstacles = remove_dead(subject.module, variables, subject.sample).obstacles
    for path in inner:
        if path in obstacles:
            raise ValueError(
                "config field 'methods': 'abp-l' needs layers that follow each other, but layer "
                f"{path!r}: {obstacles[path]}; leave it out"
            )


def _subject(settings: Compressibility, run: int, read_weights: ReadWeights | None) -> Subject:
    """The network of a run, which differs from others in all that is random."""
    seeded = dataclasses.replace(settings, seed=settings.seed + run)
    return set_up(seeded, read_weights, tables=True)


def _names(settings: Compressibility, trials: Sequence[Trial], run: int) -> list[tuple]:
    """What identifies the records of a run, those of its layers apart."""
    kinds = ("pruned", "tuned") if settings.finetune.epochs else ("pruned",)
    return [
        ("baseline", run),
        *(
            identity({"kind": kind, "run": run, **trial.fields})
            for trial in trials
            for kind in kinds
        ),
    ]


def _measure(
    settings: Compressibility,
    subject: Subject,
    trials: Sequence[Trial],
    measured: Measured,
    run: int,
    workdir: Path,
) -> Iterator[Records]:
    """Yield the records of one run that are missing: the network, its layers, each trial."""
    models, epoch = subject.trained(workdir / "checkpoints" / f"run-{run}")
    model = jax.tree.map(lambda leaf: leaf[0], models)
    whole = measured.baseline(run)
    if whole is None:
        whole = baseline_record(subject, model, epoch, run)
        yield [dict(whole)]
    calibration = Calibration("same", settings.calibration.images[0], 0)
    batches = subject.batches(calibration)
    table = [entry.layer for entry in subject.dense.layers]
    layers = layers_of(subject, model, table, [batch.images for batch in batches])
    if len(measured.layers(run)) < len(layers.leaves):
        yield layer_records(settings, layers, run, whole["test"])
    moments: dict[str, Any] = {}
    if "abp-l" in settings.methods:
        folder = workdir / "moments" / f"run-{run}"
        moments = moments_for(
            settings, subject.module, model, batches, calibration, folder, gradients=False
        )
    pruner = Pruner(model.params, table, moments, layers.relative_bounds)
    for trial in trials:
        wanted = _names(settings, [trial], run)[1:]
        if all(name in measured.found for name in wanted):
            continue
        cut = pruner.cut(trial)
        records = [pruned_record(subject, model, pruner, trial, run, cut)]
        if settings.finetune.epochs:
            records.append(tuned_record(subject, model, trial, run, cut))
        yield records
