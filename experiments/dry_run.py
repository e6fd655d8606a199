"""What a run would measure, how much of that is there, and how long the rest takes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise
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
from experiments.workdir.journal import JOURNAL, Journal
from experiments.workdir.record_fields import Identity

# Steps that are timed together, how often at most, and seconds after which no more are.
STEPS, OFTEN, ENOUGH = 2, 10, 3.0
# Seconds of a started run from which its pace is taken.
KNOWN = 20.0
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

    def of(self, kind: str) -> float:
        """That of one record, without the training before compression."""
        if kind in ("finetuned", "tuned"):
            return self.tuned + self.measured
        return self.refined + self.measured if kind == "refined" else self.measured

    def done(self, names: Iterable[Identity], journal: Journal) -> float:
        """Of all that is recorded among some records."""
        epochs = [one["network"] for one in journal.of_kind("epoch")]
        found = 0.0
        for name in names:
            if name in journal.found:
                found += self.of(name[0]) + self.train * (name[0] == "baseline")
            elif name[0] == "baseline":
                found += epochs.count(name[1] if len(name) > 1 else 0)
        return found

    def asked(self, names: Iterable[Identity]) -> float:
        """Of all of them."""
        return sum(self.of(kind) + self.train * (kind == "baseline") for kind, *_ in names)


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
            if value not in (None, ""):
                found.setdefault(field, {})[value] = None
    return [f"{field}: {_listed(field, list(values))}" for field, values in found.items()]


def _listed(field: str, values: Sequence[Any]) -> str:
    if field in COUNTED and len(values) > 1:
        return f"{min(values)} to {max(values)}"
    return ", ".join(f"{value:g}" if type(value) is float else str(value) for value in values)


def _duration(network: Network, settings: Any, names: Sequence[Identity], journal: Journal) -> str:
    if all(name in journal.found for name in names):
        return "nothing is left to do"
    work = _work(network, settings)
    done, known = work.done(names, journal), spent(journal)
    left = work.asked(names) - done
    if done and known is not None and known.total_seconds() >= KNOWN:
        rest = left / done * known
        return f"about {in_words(rest)} more, at the pace of the {in_words(known)} until now"
    step, measured = _timed(network)
    steps = steps_per_epoch(network.splits.train, network.settings.train)
    epoch = steps * step + measured * len(network.splits.validation.labels)
    total = timedelta(seconds=left * epoch)
    return (
        f"about {in_words(total)} of training and evaluation, an estimate ({left:,.0f} epochs of "
        f"{steps:,} steps, {1000 * step:.3g} ms each); decompositions and compiling come on top"
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
    settings = replace(network.settings.train, epochs=OFTEN, patience=None)
    few = splits.train.taken(np.arange(STEPS * settings.batch_size) % len(splits.train.labels))
    # Few beside the steps, so that what is taken off for them is little.
    count = min(settings.batch_size, len(splits.validation.labels))
    some = splits.validation.taken(np.arange(count))
    own = replace(splits, train=few, validation=some)
    model = network.start.alone()
    keys = jax.random.split(network.key(TRAIN), 1)

    def evaluated(examples: Examples) -> float:
        spent = []
        for _ in range(4):
            start = time.perf_counter()
            evaluate(model, network.apply, examples, judge=judge)
            spent.append(time.perf_counter() - start)
        # The first is compiled; whatever else runs on the machine only adds to the others.
        return min(spent[1:])

    many = splits.validation.taken(np.arange(min(500, len(splits.validation.labels))))
    once, example = evaluated(some), evaluated(many) / len(many.labels)
    times = []
    for _ in fit_epochs(start_fit(model, settings), network.apply, settings, own, keys, judge):
        times.append(time.perf_counter())
        if len(times) > 1 and times[-1] - times[0] > ENOUGH:
            break
    least = min(after - before for before, after in pairwise(times))
    return max(least - once, 0.5 * least) / STEPS, example


def _files(network: Network, experiment: Experiment, *, tensorboard: bool) -> list[str]:
    folders = [*experiment.keeps, "report"]
    if not network.is_trained:
        folders.insert(0, "checkpoints")
    if tensorboard:
        folders.append("tensorboard")
    return [CONFIG, JOURNAL, *(f"{folder}/" for folder in folders)]
