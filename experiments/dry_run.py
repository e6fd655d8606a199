"""What a run would measure, how much of that is there, and how long the rest takes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.data import Examples
from experiments.network.network import TRAIN, Network, configured
from experiments.network.training import evaluate, fit_epochs, start_fit, steps_per_epoch
from experiments.runner import REPORT, Experiment, experiment_named, recorded
from experiments.workdir.config import CONFIG
from experiments.workdir.environment import in_words, spent
from experiments.workdir.fields import read_fields
from experiments.workdir.journal import Identity, Journal

# Steps that are timed, and seconds of a started run from which its pace is taken.
STEPS, KNOWN = 3, 20.0
# What identifies no thing that is compressed.
COUNTED = ("network", "run", "subset")


@dataclass(frozen=True)
class Work:
    """How long each kind of work takes, in epochs of the training.

    Arguments:
        train: of one network, before compression.
        tuned: of one compressed network.
        refined: the same without labels.
        measured: of one network on the examples that it is measured on.
    """

    train: int
    tuned: float
    refined: float
    measured: float

    def of(self, name: Identity, journal: Journal) -> float:
        """That of one record, if it is not there yet."""
        kind = name[0]
        if kind == "baseline":
            network = name[1] if len(name) > 1 else 0
            known = [one["epoch"] for one in journal.of_kind("epoch") if one["network"] == network]
            return self.train - max(known, default=0) + self.measured
        if kind in ("finetuned", "tuned"):
            return self.tuned + self.measured
        return self.refined + self.measured if kind == "refined" else self.measured


def dry_run(raw: Mapping[str, Any], workdir: Path, *, tensorboard: bool = False) -> str:
    """What `carry_out` would do, as text; everything is checked as there, and nothing is written.

    How long it takes is known from a run of the same folder that was begun; else it is estimated
    from a few steps of the network, which are timed.

    Raises as `carry_out` does.
    """
    name = raw.get("experiment", "study")
    if name == REPORT:
        raise ValueError("--dry-run: the report alone measures nothing")
    experiment = experiment_named(name)
    settings = read_fields(experiment.settings, raw)
    network = configured(settings)
    journal = recorded(experiment, settings, workdir)
    names = experiment.expected(network, settings, journal)
    lines = [
        f"{experiment.name} of {settings.model.name} on {settings.data.name}, nothing is written",
        *_counts(names, journal),
        *_choices(names, experiment),
        f"time: {_duration(network, settings, names, journal)}",
        f"files in {workdir}: {', '.join(_files(network, experiment, tensorboard=tensorboard))}",
    ]
    if (workdir / CONFIG).exists():
        lines.append("the folder holds this configuration: the same command without it goes on")
    return "\n".join(lines)


def _counts(names: Iterable[Identity], journal: Journal) -> list[str]:
    asked = Counter(name[0] for name in names)
    there = Counter(name[0] for name in names if name in journal.found)
    rows = [("records", "asked for", "there", "to do")]
    rows += [
        (kind, f"{count:,}", f"{there[kind]:,}", f"{count - there[kind]:,}")
        for kind, count in asked.items()
    ]
    return [f"  {kind:<12} {a:>10} {b:>10} {c:>10}" for kind, a, b, c in rows]


def _choices(names: Sequence[Identity], experiment: Experiment) -> list[str]:
    """Every field that identifies records, with its values."""
    found: dict[str, dict[Any, None]] = {}
    for kind, *values in names:
        for field, value in zip(experiment.schema[kind].names, values, strict=True):
            if value is not None:
                found.setdefault(field, {})[value] = None
    return [f"{field}: {_listed(field, list(values))}" for field, values in found.items()]


def _listed(field: str, values: Sequence[Any]) -> str:
    if field in COUNTED and len(values) > 1:
        return f"{min(values)} to {max(values)}"
    return ", ".join(f"{value:g}" if type(value) is float else str(value) for value in values)


def _duration(network: Network, settings: Any, names: Sequence[Identity], journal: Journal) -> str:
    work = _work(network, settings)
    left = sum(work.of(name, journal) for name in names if name not in journal.found)
    if not left:
        return "nothing is left to do"
    known = spent(journal)
    if known is not None and known.total_seconds() >= KNOWN:
        nothing = replace(journal, found={})
        done = sum(work.of(name, nothing) for name in names if name in journal.found)
        done += len(journal.of_kind("epoch"))
        if done:
            rest = left / done * known
            return f"about {in_words(rest)} more, at the pace of the {in_words(known)} until now"
    step, measured = _timed(network)
    steps = steps_per_epoch(network.splits.train, network.settings.train)
    epoch = steps * step + measured * len(network.splits.validation.labels)
    total = timedelta(seconds=left * epoch)
    return (
        f"about {in_words(total)}, an estimate: the work of {left:,.0f} epochs of {steps:,} steps, "
        f"{1000 * step:.3g} ms each; decompositions and compiling come on top"
    )


def _work(network: Network, settings: Any) -> Work:
    shared, splits = settings.network, network.splits
    examples = len(splits.train.labels)
    refine = getattr(settings, "refine", None)
    images = max(shared.calibration.images) if network.sources else 0
    # A step goes forward and back, which takes about three times as long as forward alone.
    measured = (len(splits.validation.labels) + len(splits.test.labels)) / (3 * examples)
    return Work(
        0 if network.is_trained else shared.train.epochs,
        shared.finetune.epochs,
        refine.epochs * images / examples if refine else 0.0,
        measured,
    )


def _timed(network: Network) -> tuple[float, float]:
    """Seconds of a step of the training, and of one example that is evaluated, once compiled."""
    splits, judge = network.splits, network.judge
    settings = replace(network.settings.train, epochs=2, patience=None)
    few = splits.train.taken(np.arange(STEPS * settings.batch_size) % len(splits.train.labels))
    some = splits.validation.taken(np.arange(min(500, len(splits.validation.labels))))
    own = replace(splits, train=few, validation=some)
    model = network.start.alone()
    keys = jax.random.split(network.key(TRAIN), 1)

    def evaluated(examples: Examples) -> float:
        start = time.perf_counter()
        evaluate(model, network.apply, examples, judge=judge)
        return time.perf_counter() - start

    evaluated(some)
    example = evaluated(some) / len(some.labels)
    times = [time.perf_counter()]
    for _ in fit_epochs(start_fit(model, settings), network.apply, settings, own, keys, judge):
        times.append(time.perf_counter())
    step = (times[-1] - times[-2] - example * len(some.labels)) / STEPS
    return max(step, 1e-6), example


def _files(network: Network, experiment: Experiment, *, tensorboard: bool) -> list[str]:
    folders = [*experiment.keeps, "report"]
    if not network.is_trained:
        folders.insert(0, "checkpoints")
    if tensorboard:
        folders.append("tensorboard")
    return [CONFIG, "metrics.jsonl", *(f"{folder}/" for folder in folders)]
