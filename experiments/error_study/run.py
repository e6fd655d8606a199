"""The study itself: train, decompose, measure, fine-tune, measure again."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import jax

from experiments.error_study.bench import Bench, set_up
from experiments.error_study.candidates import decompose_runs
from experiments.error_study.finetune import finetune_records
from experiments.error_study.measure import compressed_records, moments_of_layers
from experiments.error_study.protocol import Protocol, protocol_to_dict
from experiments.error_study.records import Measurements, read_measurements
from experiments.error_study.report import write_report
from experiments.network.baseline import Training, baseline_record, train_baseline
from experiments.network.network import DECOMPOSE, TRAIN
from experiments.network.training import Model
from experiments.workdir.journal import append_records, claim_workdir
from experiments.workdir.progress import Progress
from experiments.workdir.threads import Records, in_threads
from tdjax.moments.collect import LayerMoments
from tdjax.params.factorize import layer_params


def run_study(protocol: Protocol, workdir: Path) -> Path:
    """Measure everything that the protocol asks for and is not measured yet, then report.

    Work directory: `config.json`, `metrics.jsonl` (one line a measurement), `checkpoints/`,
    `report/`. Whatever is wrong with configuration, data or ranks is found before any work; a
    run killed at any moment continues when started again, and ends with the same tables.

    Returns the path of the report's page.

    Raises ValueError or `experiments.data.DataError` that names what is wrong.
    """
    bench = set_up(protocol)
    claim_workdir(workdir, protocol_to_dict(dataclasses.replace(protocol, experiment="study")))
    journal = workdir / "metrics.jsonl"
    measured = read_measurements(journal) if journal.exists() else Measurements(None, {}, {})

    training = Training(
        bench.network,
        bench.start,
        bench.splits,
        protocol.train,
        bench.key(TRAIN),
        protocol.checkpoint_every,
    )
    fit = train_baseline(training, workdir / "checkpoints" / "baseline")
    if measured.baseline is None:
        epoch = int(fit.best_epoch[0])
        record_of = baseline_record(bench.network, bench.splits, bench.dense, fit.best, epoch)
        append_records(journal, [record_of])
    model = jax.tree.map(lambda leaf: leaf[0], fit.best)
    moments = _moments_for(bench, model, measured, workdir)

    phases = 2 if protocol.finetune.epochs else 1
    total = phases * protocol.runs * len(bench.plans)
    done = len(measured.compressed) + len(measured.finetuned)
    with Progress("measurements", total, done) as progress:

        def record(records: Records) -> None:
            append_records(journal, records)
            progress.advance(len(records))

        in_threads(
            [
                partial(_measure_layer, bench, model, path, measured, moments.get(path))
                for path in protocol.layers
            ],
            record,
        )
    return write_report(workdir)


def _moments_for(
    bench: Bench, model: Model, measured: Measurements, workdir: Path
) -> Mapping[str, LayerMoments]:
    """Moments of all layers, or none where no error in their norms is to be measured."""
    if len(measured.compressed) == bench.protocol.runs * len(bench.plans):
        return {}
    if measured.lacking_data_errors:
        # A column that only some choices have orders nothing.
        warnings.warn(
            f"measurements in {workdir} lack the errors in the norms of the data, so the study "
            "goes on without them; to have them, use another workdir",
            stacklevel=3,
        )
        return {}
    return moments_of_layers(bench, model)


def _measure_layer(
    bench: Bench,
    model: Model,
    path: str,
    measured: Measurements,
    moments: LayerMoments | None,
) -> Iterator[Records]:
    """Yield the records of one layer that are missing, as soon as each group is there."""
    protocol = bench.protocol
    plans = {choice: plan for choice, plan in bench.plans.items() if choice.layer == path}
    keys = [(choice, run) for choice in plans for run in range(protocol.runs)]
    uncompressed = [key for key in keys if key not in measured.compressed]
    untuned = [key for key in keys if key not in measured.finetuned]
    if not protocol.finetune.epochs:
        untuned = []
    if not uncompressed and not untuned:
        return
    kernel = layer_params(model.params, path)["kernel"]
    factors = decompose_runs(kernel, plans, protocol.runs, protocol.decompose, bench.key(DECOMPOSE))
    if uncompressed:
        # All of them, also those that are there: a layer's candidates are one computation, whose
        # numbers must not depend on where an earlier run was killed.
        records = compressed_records(bench, model, path, plans, factors, moments)
        yield [records[key] for key in uncompressed]
    for choice, plan in plans.items():
        missing = [run for run in range(protocol.runs) if (choice, run) in untuned]
        if missing:
            alike = [factors[other, 0] for other in plans if other.method == choice.method]
            records = finetune_records(bench, model, choice, plan, factors, alike)
            yield [records[choice, run] for run in missing]
