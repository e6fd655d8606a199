"""The experiment itself: train or read, allocate, decompose, measure, train on, keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.compress.networks import Compressed, greatest_bound, planned, press
from experiments.compress.records import Measured, identity, read_records
from experiments.compress.report import write_report
from experiments.compress.settings import Compress, settings_to_dict
from experiments.compress.trials import Trial, enumerate_trials
from experiments.network.baseline import baseline_record
from experiments.network.calibrate import Calibration
from experiments.network.network import ReadWeights, Subject, set_up
from experiments.network.train_on import reestimated, scored, tuned
from experiments.network.training import Model
from experiments.workdir.journal import append_records, claim_workdir
from experiments.workdir.progress import Progress
from experiments.workdir.threads import Records
from tdjax.linen import factorize
from tdjax.params.saving import load_factorised, save_factorised
from tdjax.plan.timing import profile_calls


def run_compress(
    settings: Compress, workdir: Path, read_weights: ReadWeights | None = None
) -> Path:
    """Compress and measure everything that is asked for and not measured yet, then report.

    Work directory: `config.json`, `metrics.jsonl` (one line a measurement), `checkpoints/`,
    `moments/`, `compressed/` (one folder a network, for `tdjax.load_factorised`), `report/`.
    Whatever is wrong with configuration, data or weights is found before any work; a run killed
    at any moment continues when started again, and ends with the same tables but for the times.

    Arguments:
        read_weights: reads the file that `settings.weights` names, see `subject.bench.set_up`.

    Returns the path of the report's page.

    Raises ValueError or `experiments.data.DataError` that names what is wrong.
    """
    images = settings.reestimate or settings.norms != ("frobenius",)
    subject = set_up(settings, read_weights, images=images)
    trials = enumerate_trials(settings)
    for trial in trials:
        if trial.strategy == "uniform":
            # Needs no weights, and tells at once whether the budget is within reach.
            planned(settings, subject, subject.start, trial)
    claim_workdir(workdir, settings_to_dict(dataclasses.replace(settings, experiment="compress")))
    journal = workdir / "metrics.jsonl"
    measured = read_records(journal)
    models, epoch = subject.trained(workdir / "checkpoints" / "baseline")
    if measured.baseline is None:
        record_of = baseline_record(
            subject.network, subject.splits, subject.dense, models, epoch, ("test",)
        )
        append_records(journal, [record_of])
    model = jax.tree.map(lambda leaf: leaf[0], models)
    expected = [name for trial in trials for name in _names(settings, trial)]
    done = sum(name in measured.found for name in expected)
    with Progress("measurements", len(expected), done) as progress:

        def record(records: Records) -> None:
            append_records(journal, records)
            progress.advance(len(records))

        for records in _measure(settings, subject, model, trials, measured, workdir):
            record(records)
    if settings.timed_images:
        _time(settings, subject, model, trials, workdir)
    return write_report(workdir)


def _names(settings: Compress, trial: Trial) -> list[tuple]:
    """What identifies each record of a trial, the times apart."""
    kinds = ["network"]
    if settings.reestimate:
        kinds.append("reestimated")
    if settings.finetune.epochs:
        kinds.append("tuned")
    return [identity({"kind": kind, **trial.fields}) for kind in kinds]


def _measure(
    settings: Compress,
    subject: Subject,
    model: Model,
    trials: Sequence[Trial],
    measured: Measured,
    workdir: Path,
) -> Iterator[Records]:
    """Yield the records that are missing, a trial at a time, its checkpoint written before."""
    for trial in trials:
        if all(name in measured.found for name in _names(settings, trial)):
            continue
        images = trial.calibration
        if not images.images and settings.reestimate:
            first = settings.calibration
            images = Calibration(first.sources[0], first.images[0], 0)
        batches = subject.batches(images) if images.images else []
        made = press(settings, subject, model, trial, batches, workdir / "moments")
        kept, test = made, subject.splits.test
        records: list[dict[str, Any]] = [
            {
                "kind": "network",
                **trial.fields,
                "plan": made.plan.to_json(),
                "test": scored(subject, made.dense, test),
            }
        ]
        if trial.strategy.startswith("alds") and settings.rounds == 1:
            records[0]["bound"] = greatest_bound(model, made.plan)
        if settings.reestimate:
            again = reestimated(subject, made.dense, batches)
            kept = Compressed(made.plan, made.factors, again.state)
            found = scored(subject, again, test)
            records.append({"kind": "reestimated", **trial.fields, "test": found})
        if settings.finetune.epochs:
            name = f"{trial.name}, last"
            epoch, best = tuned(subject, made.factors, made.state, made.plan, name)
            kept = Compressed(made.plan, best.params, best.state)
            found = scored(subject, kept.dense, test)
            records.append({"kind": "tuned", **trial.fields, "epoch": epoch, "test": found})
        variables = {**kept.state, "params": dict(kept.factors)}
        save_factorised(workdir / "compressed" / trial.name, variables, kept.plan)
        yield [record for record in records if identity(record) not in measured.found]


def _time(
    settings: Compress, subject: Subject, model: Model, trials: Sequence[Trial], workdir: Path
) -> None:
    """Inference of each network against that of the original, in turns, nothing beside it."""
    journal = workdir / "metrics.jsonl"
    measured = read_records(journal)
    images = jnp.asarray(subject.splits.test.images[: settings.timed_images])
    whole = {**model.state, "params": model.params}
    before = jax.jit(lambda variables: subject.module.apply(variables, images))
    for trial in trials:
        name = identity({"kind": "timed", **trial.fields})
        if name in measured.found:
            continue
        small, variables = _loaded(subject, workdir / "compressed" / trial.name)
        after = jax.jit(lambda variables, small=small: small.apply(variables, images))
        profile = profile_calls(partial(before, whole), partial(after, variables))
        append_records(
            journal,
            [
                {
                    "kind": "timed",
                    **trial.fields,
                    "before": profile.before,
                    "after": profile.after,
                    "speedup": profile.speedup,
                    "least": profile.least,
                    "most": profile.most,
                }
            ],
        )


def _loaded(subject: Subject, folder: Path) -> tuple[Any, Any]:
    variables, plan = load_factorised(folder)
    return factorize(subject.module, plan), variables
