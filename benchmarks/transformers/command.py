"""The command line that benchmarks of transformers have in common, and their table."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags

from benchmarks.refinement.records import read_records
from benchmarks.timing import describe_machine
from benchmarks.transformers import statistics
from benchmarks.transformers.runs import METHODS, Columns, Measured, measure
from benchmarks.transformers.settings import SCHEMA, Settings
from benchmarks.transformers.task import Classified
from experiments.workdir.record_fields import Schema

RECORDS = flags.DEFINE_string("records", None, "File of JSON lines to go on from and add to.")
NAMES = flags.DEFINE_list("methods", None, "Rows of the table; all where it is not said.")
SHARES = flags.DEFINE_list("shares", ["0.75", "0.5", "0.35", "0.25"], "Of the matrices, kept.")
DRAWS = flags.DEFINE_integer("draws", 1, "Of the loss, for each example.", lower_bound=1)
EPOCHS = flags.DEFINE_integer("epochs", 12, "Of refinement.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the data, of draws and of refinement.")


def names(methods: Sequence[str] = METHODS) -> Sequence[str]:
    """The methods asked for. Raises UsageError for one that is unknown."""
    unknown = set(NAMES.value or ()) - set(methods)
    if unknown:
        raise app.UsageError(f"--methods: {unknown} are not among {', '.join(methods)}")
    return NAMES.value or methods


def of_small_network(
    task_of: Callable[[int], Classified], columns: Columns, methods: Sequence[str]
) -> None:
    """What the dense network has of the columns, then the table of a small network of ours.

    Arguments:
        task_of: a seed.
        methods: those that it can be compressed by.
    """
    asked = names(methods)
    settings = Settings(DRAWS.value, EPOCHS.value, SEED.value)
    task = task_of(settings.seed)
    dense = task.kept(task.variables)._asdict()
    print(", ".join(f"{name} {text(dense)}" for name, text in columns.items()), "before")
    table(Measured(task, settings, task.digest, statistics), SCHEMA, columns, asked)


def table(measured: Measured, schema: Schema, columns: Columns, methods: Sequence[str]) -> None:
    """Measure what is missing, and print a row for each method and share."""
    warnings.filterwarnings("ignore", message="too few rows")
    records = read_records(None if RECORDS.value is None else Path(RECORDS.value), schema)
    print(f"{describe_machine()}\n{measured.settings}\n", flush=True)
    print(f"| method | asked | kept | {' | '.join(columns)} | seconds |")
    print(f"|---|---:|---:|{'---:|' * len(columns)}---:|", flush=True)
    shares = [float(value) for value in SHARES.value]
    for own in measure(measured, methods, shares, records):
        figures = " | ".join(text(own) for text in columns.values())
        print(
            f"| {own['method']} | {own['asked']:.0%} | {own['share']:.1%} | {figures} "
            f"| {own['seconds']:.0f} |",
            flush=True,
        )
