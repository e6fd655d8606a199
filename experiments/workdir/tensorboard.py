"""Curves of training as event files of TensorBoard, beside the journal that they are made from."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.workdir.journal import Journal
from experiments.workdir.record_fields import Record, Schema
from experiments.workdir.stops import undone

FOLDER = "tensorboard"
# What a record of an epoch says of it.
FIGURES = ("train_loss", "validation_loss", "validation_accuracy", "learning_rate")
# A point: its tag, its step, which is the epoch, and its value.
Point = tuple[str, int, float]


@contextmanager
def followed(journal: Journal, workdir: Path) -> Iterator[Journal]:
    """A block in which the curves of a journal, and those that it gets, are written as events.

    `workdir/tensorboard` is made anew from what the journal holds: points that a kill lost come
    back, none comes twice, and a TensorBoard that looks on forgets those of before.

    Raises ImportError that names the extra where tensorboardX is not installed.
    """
    make = writer_class()
    shutil.rmtree(workdir / FOLDER, ignore_errors=True)
    # All steps from 0 on are to be forgotten.
    writer = make(str(workdir / FOLDER), purge_step=0, max_queue=1000, flush_secs=5)
    with undone(writer.close):

        def write(record: Record) -> None:
            for tag, step, value in points_of(record, journal.schema):
                writer.add_scalar(tag, value, step)

        for record in journal.found.values():
            write(record)
        yield replace(journal, told=write)


def writer_class() -> Callable[..., Any]:
    """What writes event files. Raises ImportError that names the extra where it is missing."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        message = "--tensorboard needs tensorboardX: install the extra 'tensorboard'"
        raise ImportError(message) from error
    found: Callable[..., Any] = SummaryWriter
    return found


def points_of(record: Record, schema: Schema) -> Iterator[Point]:
    """The points of a record: of one epoch, or of a curve where it has one."""
    kind, names = record["kind"], schema[record["kind"]].names
    if kind == "epoch":
        where = _tag("training", record, [name for name in names if name != "epoch"])
        for name in FIGURES:
            if name in record:
                yield f"{where}/{name}", record["epoch"], record[name]
    for name, values in (record.get("curve") or {}).items():
        where = _tag(kind, record, names)
        # The loss before the first epoch is a point of the curve that begins there.
        if name == "start":
            yield f"{where}/validation_loss", 0, values
            continue
        for epoch, value in enumerate(values, 1):
            yield f"{where}/{name}", epoch, value


def _tag(kind: str, record: Record, names: Any) -> str:
    """What a record is about, in the characters that TensorBoard takes."""
    parts = [kind]
    for name in names:
        value = record.get(name)
        if value is not None:
            parts.append(f"{name}-{value}" if type(value) is int else str(value))
    return "/".join(re.sub(r"[^-/\w.]", "_", part) for part in parts)
