"""The study itself: train, decompose, measure, fine-tune, measure again."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tdjax import checkpoints
from tdjax.data import DataSplits, Examples, load, prepare
from tdjax.errors import candidate_feature_errors, evaluate_candidates, weight_errors
from tdjax.factorize import layer_params
from tdjax.linen import layer_table
from tdjax.models import GaripovNet, ResNet18
from tdjax.plan import Plan, PlannedLayer
from tdjax.study.candidates import (
    CompressedNetwork,
    Factors,
    choice_key,
    decompose_runs,
    dense_kernel,
    widened,
    without_kernel,
)
from tdjax.study.choices import enumerate_choices
from tdjax.study.journal import append_records, claim_workdir
from tdjax.study.progress import Progress
from tdjax.study.protocol import ModelSettings, Protocol, protocol_to_dict
from tdjax.study.records import Choice, Key, Measurements, read_measurements
from tdjax.study.report import write_report
from tdjax.training import (
    Fit,
    FitSettings,
    LinenNetwork,
    Model,
    Scores,
    evaluate,
    example_scores,
    fit_epochs,
    start_fit,
    steps_per_epoch,
)

NETWORKS: dict[str, type[nn.Module]] = {"garipovnet": GaripovNet, "resnet18": ResNet18}

# Keys of the study's random streams.
INIT, TRAIN, DECOMPOSE, FINETUNE = range(4)


@dataclass(frozen=True, eq=False)
class Bench:
    """What every measurement of a study shares."""

    protocol: Protocol
    model: nn.Module
    splits: DataSplits
    plans: Mapping[Choice, PlannedLayer]
    journal: Path
    key: jax.Array

    def stream(self, name: int) -> jax.Array:
        """The key of one of the random streams."""
        return jax.random.fold_in(self.key, name)

    @property
    def network(self) -> LinenNetwork:
        """The uncompressed network's forward function."""
        return LinenNetwork(self.model)


def run_study(protocol: Protocol, workdir: Path) -> Path:
    """Measure everything that the protocol asks for and is not measured yet, then report.

    Work directory: `config.json`, `metrics.jsonl` (one line a measurement), `checkpoints/`,
    `report/`. Whatever is wrong with configuration, data or ranks is found before any work; a
    run killed at any moment continues when started again, and ends with the same tables.

    Returns the path of the report's page.

    Raises ValueError or `tdjax.data.DataError` that names what is wrong.
    """
    bench, table_plan, state = _prepare(protocol, workdir)
    measured = read_measurements(bench.journal) if bench.journal.exists() else _nothing()
    model = _train_baseline(bench, state, workdir / "checkpoints" / "baseline")
    if measured.baseline is None:
        append_records(bench.journal, [_baseline_record(bench, model, table_plan)])
    best = jax.tree.map(lambda leaf: leaf[0], model.best)

    phases = 2 if protocol.finetune.epochs else 1
    total = phases * protocol.runs * len(bench.plans)
    done = len(measured.compressed) + len(measured.finetuned)
    with Progress("measurements", total, done) as progress:
        for path in protocol.layers:
            for records in _measure_layer(bench, best, path, measured):
                append_records(bench.journal, records)
                progress.advance(len(records))
    return write_report(workdir)


def _prepare(protocol: Protocol, workdir: Path) -> tuple[Bench, Plan, Model]:
    """Find all that may be wrong before the work directory is claimed."""
    data = protocol.data
    raw = load(data.name, data.folder)
    splits = prepare(
        raw,
        data.validation_share,
        protocol.seed,
        data.train_size,
        data.validation_size,
        data.test_size,
    )
    if protocol.measure.feature_images > len(splits.train.labels):
        raise ValueError(
            f"config field 'measure.feature_images' is {protocol.measure.feature_images}, but "
            f"there are {len(splits.train.labels)} training images"
        )
    steps_per_epoch(splits.train, protocol.train)
    model = build_network(protocol.model, splits.num_classes)
    key = jax.random.key(protocol.seed)
    sample = jax.ShapeDtypeStruct((1, *splits.train.images.shape[1:]), jnp.float32)
    # Straight from the initialiser, without the model's arithmetic compiled a second time.
    variables = jax.jit(model.init)(jax.random.fold_in(key, INIT), jnp.zeros(sample.shape))
    table = layer_table(model, variables, sample)
    other = sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) - sum(
        layer.size for layer in table
    )
    plans = enumerate_choices(protocol, table)

    config = protocol_to_dict(dataclasses.replace(protocol, experiment="study"))
    claim_workdir(workdir, config)
    state = {name: value for name, value in variables.items() if name != "params"}
    bench = Bench(protocol, model, splits, plans, workdir / "metrics.jsonl", key)
    dense = Plan(tuple(PlannedLayer(layer) for layer in table), other)
    return bench, dense, Model(variables["params"], state)


def build_network(settings: ModelSettings, classes: int) -> nn.Module:
    """The network of a configuration. Raises ValueError for a name or argument it lacks."""
    if settings.name not in NETWORKS:
        raise ValueError(
            f"config field 'model.name' is {settings.name!r}: known are {', '.join(NETWORKS)}"
        )
    try:
        return NETWORKS[settings.name](classes=classes, **settings.arguments)
    except TypeError as error:
        raise ValueError(f"config field 'model.arguments': {error}") from error


def _train_baseline(bench: Bench, start: Model, folder: Path) -> Fit:
    protocol = bench.protocol
    settings, splits = protocol.train, bench.splits
    steps = steps_per_epoch(splits.train, settings)
    fit = start_fit(jax.tree.map(lambda leaf: leaf[None], start), settings, steps)
    restored = checkpoints.restore_latest(folder, fit)
    if restored is not None:
        fit = restored[1]
    done = int(fit.epoch.max())
    keys = jax.random.split(bench.stream(TRAIN), 1)
    with Progress("training epochs", settings.epochs, done) as progress:
        for fit in fit_epochs(
            fit,
            bench.network,
            settings,
            splits.train,
            splits.validation,
            keys,
            jnp.asarray(splits.black),
        ):
            done += 1
            if done % protocol.checkpoint_every == 0 or done == settings.epochs:
                checkpoints.save(folder, done, fit)
            progress.advance(1)
    return fit


def _baseline_record(bench: Bench, fit: Fit, plan: Plan) -> dict[str, Any]:
    def performance(examples: Examples) -> dict[str, Any]:
        scores = evaluate(fit.best, bench.network, examples)
        return _performance(scores, 0, len(examples.labels))

    return {
        "kind": "baseline",
        "params": plan.size,
        "macs": plan.macs,
        "epoch": int(fit.best_epoch[0]),
        "train": performance(bench.splits.train),
        "validation": performance(bench.splits.validation),
        "test": performance(bench.splits.test),
    }


def _measure_layer(
    bench: Bench, model: Model, path: str, measured: Measurements
) -> Iterator[list[dict[str, Any]]]:
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
    factors = decompose_runs(
        kernel, plans, protocol.runs, protocol.decompose, bench.stream(DECOMPOSE)
    )
    if uncompressed:
        # All of them, also those that are there: a layer's candidates are one computation, whose
        # numbers must not depend on where an earlier run was killed.
        records = _compressed_records(bench, model, path, plans, factors)
        yield [records[key] for key in uncompressed]
    for choice, plan in plans.items():
        missing = [run for run in range(protocol.runs) if (choice, run) in untuned]
        if missing:
            alike = [factors[other, 0] for other in plans if other.method == choice.method]
            records = _finetune(bench, model, choice, plan, factors, alike)
            yield [records[choice, run] for run in missing]


def _compressed_records(
    bench: Bench,
    model: Model,
    path: str,
    plans: Mapping[Choice, PlannedLayer],
    factors: Mapping[Key, Factors],
) -> dict[Key, dict[str, Any]]:
    """Six errors and the performance of every decomposition of one layer, no training."""
    settings, splits = bench.protocol.measure, bench.splits
    # Runs that share one decomposition are evaluated once.
    distinct = {id(found): (key, found) for key, found in factors.items()}
    place = {name: index for index, name in enumerate(distinct)}
    kernels = jnp.stack(
        [_kernel_of(found, plans[key[0]]) for key, found in distinct.values()]
    )
    variables = {**model.state, "params": model.params}
    size = settings.batch_size
    scores = {
        name: evaluate_candidates(
            bench.model,
            variables,
            path,
            kernels,
            list(_batches(examples, size)),
            _metrics,
            chunk=settings.chunk,
        )
        for name, examples in (("validation", splits.validation), ("test", splits.test))
    }
    images = splits.train.images[: settings.feature_images]
    inputs = [images[start : start + size] for start in range(0, len(images), size)]
    chunks = range(0, len(kernels), settings.chunk)
    features = [
        candidate_feature_errors(
            bench.model, variables, path, kernels[start : start + settings.chunk], inputs
        )
        for start in chunks
    ]
    feature_errors = {
        name: np.concatenate([part[name] for part in features]) for name in features[0]
    }
    original = layer_params(model.params, path)["kernel"]
    weights = jax.vmap(lambda kernel: weight_errors(original, kernel))(kernels)

    records: dict[Key, dict[str, Any]] = {}
    for key, found in factors.items():
        k, plan = place[id(found)], plans[key[0]]
        records[key] = {
            "kind": "compressed",
            **_choice_fields(key),
            "ranks": list(plan.ranks),
            "kept": plan.kept,
            "saves": plan.size < plan.layer.size,
            "errors": {f"weights/{name}": float(values[k]) for name, values in weights.items()}
            | {f"features/{name}": float(values[k]) for name, values in feature_errors.items()},
            **{
                name: _performance(Scores(*found_scores), k, len(examples.labels))
                for (name, found_scores), examples in zip(
                    scores.items(), (splits.validation, splits.test), strict=True
                )
            },
        }
    return records


def _finetune(
    bench: Bench,
    model: Model,
    choice: Choice,
    plan: PlannedLayer,
    factors: Mapping[Key, Factors],
    alike: Sequence[Factors],
) -> dict[Key, dict[str, Any]]:
    """Train all runs of one choice on and measure them; shapes are those of all `alike`."""
    runs, settings = range(bench.protocol.runs), bench.protocol.finetune_fit
    layer = plan.layer
    network = CompressedNetwork(
        bench.network, layer.path, layer.kernel_shape, layer.groups, str(plan.method)
    )
    dense = without_kernel(model.params, layer.path)
    models = [
        Model({"dense": dense, "factors": widened(factors[choice, run], alike)}, model.state)
        for run in runs
    ]
    keys = [choice_key(bench.stream(FINETUNE), choice, run) for run in runs]
    splits = bench.splits
    records: dict[Key, dict[str, Any]] = {}
    for group in _side_by_side(runs):
        fit = _fit_group(
            network,
            settings,
            jax.tree.map(lambda *leaves: jnp.stack(leaves), *[models[run] for run in group]),
            jnp.stack([keys[run] for run in group]),
            splits,
        )
        scores = {
            name: (evaluate(fit.best, network, examples), len(examples.labels))
            for name, examples in (("validation", splits.validation), ("test", splits.test))
        }
        for k, run in enumerate(group):
            records[choice, run] = {
                "kind": "finetuned",
                **_choice_fields((choice, run)),
                "epoch": int(fit.best_epoch[k]),
                **{name: _performance(s, k, count) for name, (s, count) in scores.items()},
            }
    return records


def _fit_group(
    network: CompressedNetwork,
    settings: FitSettings,
    models: Model,
    keys: jax.Array,
    splits: DataSplits,
) -> Fit:
    fit = start_fit(models, settings, steps_per_epoch(splits.train, settings))
    black = jnp.asarray(splits.black)
    for fit in fit_epochs(
        fit, network, settings, splits.train, splits.validation, keys, black
    ):
        pass
    return fit


def _side_by_side(runs: Sequence[int]) -> list[Sequence[int]]:
    """Which runs share one program: all on an accelerator, each alone on CPU.

    Networks whose parameters all differ become grouped convolutions under vmap, for which XLA has
    no fast path on CPU (a small CNN's step: 15 ms alone, 190 ms for five under vmap). The numbers
    are the same either way.
    """
    if jax.default_backend() == "cpu":
        return [[run] for run in runs]
    return [runs]


def _kernel_of(factors: Factors, plan: PlannedLayer) -> jax.Array:
    layer = plan.layer
    return dense_kernel(factors, layer.kernel_shape, layer.groups, str(plan.method))


def _metrics(outputs: jax.Array, batch: Any) -> tuple[jax.Array, jax.Array]:
    return example_scores(outputs, batch[1])


def _batches(examples: Examples, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(examples.labels), size):
        part = slice(start, start + size)
        yield examples.images[part], examples.labels[part]


def _choice_fields(key: Key) -> dict[str, Any]:
    choice, run = key
    return {
        "layer": choice.layer,
        "method": choice.method,
        "compression": choice.compression,
        "run": run,
    }


def _performance(scores: Scores, index: int, count: int) -> dict[str, Any]:
    return {
        "accuracy": float(scores.accuracy[index]),
        "cross_entropy": float(scores.cross_entropy[index]),
        "count": count,
    }


def _nothing() -> Measurements:
    return Measurements(None, {}, {})
