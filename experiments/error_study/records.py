"""What a study asked for and what it measured, read back from its work directory."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from experiments.error_study.error_names import DATA_ERRORS, ERRORS
from experiments.error_study.settings import StudyConfig, read_config, share_removed
from experiments.workdir.journal import (
    Journal,
    Kind,
    Record,
    Schema,
    checked,
    read_journal,
    required,
)

T = TypeVar("T")
SUBSETS = ("test", "validation")


@dataclass(frozen=True)
class Performance:
    """How a network does on `count` images: share classified right, mean cross-entropy."""

    accuracy: float
    cross_entropy: float
    count: int


@dataclass(frozen=True)
class Choice:
    """One way to compress one layer; `compression` is the share of parameters removed."""

    layer: str
    method: str
    compression: float

    def __str__(self) -> str:
        """Layer, method and compression in one line."""
        return f"{self.layer}, {self.method}, compression {self.compression:g}"


@dataclass(frozen=True)
class Baseline:
    """The trained network before any compression; `epoch` is the one early stopping kept."""

    params: int
    macs: int | None
    epoch: int | None
    train: Performance | None
    validation: Performance
    test: Performance


@dataclass(frozen=True)
class Compressed:
    """One decomposition of one choice; `kept` is the share of parameters it really keeps.

    `errors` holds all of `families.ERRORS`, and all or none of `families.DATA_ERRORS`.
    """

    ranks: tuple[int, ...]
    kept: float
    saves: bool
    errors: Mapping[str, float]
    validation: Performance
    test: Performance


@dataclass(frozen=True)
class Finetuned:
    """The same network after fine-tuning; `epoch` is the one early stopping kept."""

    epoch: int
    validation: Performance
    test: Performance


Key = tuple[Choice, int]


@dataclass(frozen=True)
class Measurements:
    """All records of one `metrics.jsonl`, by choice and run."""

    baseline: Baseline | None
    compressed: Mapping[Key, Compressed]
    finetuned: Mapping[Key, Finetuned]

    @property
    def lacking_data_errors(self) -> int:
        """How many records lack the errors in the norms of the data, which earlier versions did."""
        return sum(DATA_ERRORS[0] not in found.errors for found in self.compressed.values())

    @property
    def errors(self) -> tuple[str, ...]:
        """The errors that every record holds; of none, those of the published study."""
        whole = bool(self.compressed) and not self.lacking_data_errors
        return ERRORS + DATA_ERRORS if whole else ERRORS


@dataclass(frozen=True)
class Study:
    """A study's configuration together with what has been measured so far."""

    config: StudyConfig
    measurements: Measurements

    @property
    def choices(self) -> tuple[Choice, ...]:
        """Every choice that the configuration asks for, in its order."""
        config = self.config
        return tuple(
            Choice(layer, method, compression)
            for layer in config.layers
            for method in config.methods
            for compression in config.compressions
        )

    def records(self, phase: str) -> Mapping[Key, Compressed] | Mapping[Key, Finetuned]:
        """The records that hold the performance before or after fine-tuning."""
        return self.measurements.compressed if phase == "before" else self.measurements.finetuned

    def complete_choices(self, phase: str) -> tuple[Choice, ...]:
        """The choices measured in every run, in the configuration's order."""
        records = self.records(phase)
        runs = range(self.config.runs)
        return tuple(c for c in self.choices if all((c, run) in records for run in runs))


def read_study(workdir: Path) -> Study:
    """The study in `workdir`, from its `config.json` and `metrics.jsonl`.

    Raises `ValueError` for a field that is missing or of the wrong kind, for a line that is not
    JSON, and for a record of a choice or run that the configuration does not list.
    """
    study = Study(
        read_config(workdir / "config.json"), read_measurements(workdir / "metrics.jsonl")
    )
    listed = {(choice, run) for choice in study.choices for run in range(study.config.runs)}
    for choice, run in study.measurements.compressed:
        if (choice, run) not in listed:
            raise ValueError(
                f"{workdir / 'metrics.jsonl'}: ({choice}, run {run}) is not in config.json; "
                "write each configuration's measurements to a work directory of their own"
            )
    return study


def read_measurements(path: Path) -> Measurements:
    """The records of a JSON-lines file, validated; see `experiments.workdir.journal.read_journal`.

    Raises `ValueError` also for a fine-tuned network that was never compressed.
    """
    return measurements(read_journal(path, SCHEMA))


def measurements(journal: Journal) -> Measurements:
    """The records of a journal by choice and run.

    Raises `ValueError` for a fine-tuned network that was never compressed.
    """
    baseline = journal.get("baseline")
    compressed = {_key(record): _of(Compressed, record) for record in journal.of_kind("compressed")}
    finetuned = {_key(record): _of(Finetuned, record) for record in journal.of_kind("finetuned")}
    for choice, run in finetuned:
        if (choice, run) not in compressed:
            raise ValueError(
                f"{journal.path}: ({choice}, run {run}) is fine-tuned but never compressed"
            )
    whole = None if baseline is None else _of(Baseline, baseline)
    return Measurements(whole, compressed, finetuned)


def choice_fields(key: Key) -> dict[str, Any]:
    """The fields of a record that say what was measured."""
    choice, run = key
    return {**asdict(choice), "run": run}


def _key(record: Record) -> Key:
    return _of(Choice, record), record["run"]


def _of(cls: type[T], record: Record) -> T:
    return cls(**{f.name: record.get(f.name) for f in fields(cls)})  # type: ignore[arg-type]


def _errors(name: str, value: Any) -> dict[str, float]:
    found = required({name: value}, name, dict)
    names = ERRORS + (DATA_ERRORS if any(error in found for error in DATA_ERRORS) else ())
    errors = checked(found, dict.fromkeys(names, float))
    for error in names:
        if not (math.isfinite(errors[error]) and errors[error] >= 0):
            raise ValueError(
                f"error '{error}' is {errors[error]}, not a finite number of at least 0"
            )
    return {error: errors[error] for error in names}


def _ranks(name: str, value: Any) -> tuple[int, ...]:
    return tuple(int(rank) for rank in required({name: value}, name, list))


def _performance(name: str, value: Any) -> Performance:
    # A network that a low rank broke may have an infinite cross-entropy; only accuracy is
    # ranked, so that is no reason to refuse the record.
    kinds = {"accuracy": float, "cross_entropy": float, "count": int}
    found = _of(Performance, checked(required({name: value}, name, dict), kinds))
    if not 0 <= found.accuracy <= 1 or found.count < 1:
        raise ValueError(f"'{name}' has accuracy {found.accuracy} of {found.count} images")
    return found


_CHOICE = {"layer": str, "method": str, "compression": share_removed, "run": int}
_SUBSETS = {"validation": _performance, "test": _performance}
SCHEMA: Schema = {
    "baseline": Kind(
        {},
        {"params": int, "macs": (int, None), "epoch": (int, None)}
        | {"train": (_performance, None), **_SUBSETS},
    ),
    "compressed": Kind(
        _CHOICE, {"ranks": _ranks, "kept": float, "saves": bool, "errors": _errors, **_SUBSETS}
    ),
    "finetuned": Kind(_CHOICE, {"epoch": int, **_SUBSETS}),
}
