"""What a study asked for and what it measured, read back from its work directory."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.error_study.error_names import DATA_ERRORS, ERRORS
from experiments.error_study.settings import StudyConfig, read_config, share_removed
from experiments.workdir.journal import optional, required

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
    """The records of a JSON-lines file, validated.

    The last line is left out where it lacks its newline: a writer that was killed leaves such a
    line, and measures that record again.

    Raises `ValueError` that names file and line for a line that is not JSON, an unknown kind, a
    field that is missing or of the wrong kind, and a second record of the same thing.
    """
    baselines: dict[str, Baseline] = {}
    compressed: dict[Key, Compressed] = {}
    finetuned: dict[Key, Finetuned] = {}
    for number, line in _terminated_lines(path):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("a record must be a JSON object")
            match record.get("kind"):
                case "baseline":
                    _add(baselines, "the baseline", _baseline(record))
                case "compressed":
                    _add(compressed, _key(record), _compressed(record))
                case "finetuned":
                    _add(finetuned, _key(record), _finetuned(record))
                case kind:
                    raise ValueError(
                        f"kind {kind!r} is unknown; kinds are: baseline, compressed, finetuned"
                    )
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    for choice, run in finetuned:
        if (choice, run) not in compressed:
            raise ValueError(f"{path}: ({choice}, run {run}) is fine-tuned but never compressed")
    return Measurements(baselines.get("the baseline"), compressed, finetuned)


def _terminated_lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        if line.strip():
            yield number, line.decode("utf-8")


def _add(records: dict[Any, Any], key: Any, record: Any) -> None:
    if key in records:
        named = f"({key[0]}, run {key[1]})" if isinstance(key, tuple) else key
        raise ValueError(f"{named} is recorded a second time")
    records[key] = record


def _key(record: dict[str, Any]) -> Key:
    choice = Choice(
        required(record, "layer", str),
        required(record, "method", str),
        share_removed(required(record, "compression", float)),
    )
    return choice, required(record, "run", int)


def _baseline(record: dict[str, Any]) -> Baseline:
    return Baseline(
        params=required(record, "params", int),
        macs=optional(record, "macs", int),
        epoch=optional(record, "epoch", int),
        train=_performance(record, "train") if record.get("train") is not None else None,
        validation=_performance(record, "validation"),
        test=_performance(record, "test"),
    )


def _compressed(record: dict[str, Any]) -> Compressed:
    found = required(record, "errors", dict)
    names = ERRORS + (DATA_ERRORS if any(name in found for name in DATA_ERRORS) else ())
    errors = {name: required(found, name, float) for name in names}
    for name, value in errors.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"error '{name}' is {value}, not a finite number of at least 0")
    return Compressed(
        ranks=tuple(int(rank) for rank in required(record, "ranks", list)),
        kept=required(record, "kept", float),
        saves=required(record, "saves", bool),
        errors=errors,
        validation=_performance(record, "validation"),
        test=_performance(record, "test"),
    )


def _finetuned(record: dict[str, Any]) -> Finetuned:
    return Finetuned(
        epoch=required(record, "epoch", int),
        validation=_performance(record, "validation"),
        test=_performance(record, "test"),
    )


def _performance(record: dict[str, Any], subset: str) -> Performance:
    fields = required(record, subset, dict)
    performance = Performance(
        accuracy=required(fields, "accuracy", float),
        # A network that a low rank broke may have an infinite cross-entropy; only accuracy is
        # ranked, so that is no reason to refuse the record.
        cross_entropy=required(fields, "cross_entropy", float),
        count=required(fields, "count", int),
    )
    if not 0 <= performance.accuracy <= 1 or performance.count < 1:
        raise ValueError(
            f"'{subset}' has accuracy {performance.accuracy} of {performance.count} images"
        )
    return performance
