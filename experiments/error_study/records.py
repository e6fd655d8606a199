"""What a study records in its journal, and what must be true of that."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.error_study.error_names import DATA_ERRORS, ERRORS
from experiments.error_study.protocol import Choice, Key, Protocol
from experiments.network.curves import CURVE, EPOCH
from experiments.workdir.journal import Journal, read_workdir
from experiments.workdir.record_fields import Fields, Kind, Schema, checked, required

SUBSETS = ("test", "validation")


def read_study(workdir: Path) -> tuple[dict[str, Any], Protocol, Journal]:
    """What a study was asked, as it is written and as settings, and what it has measured.

    Raises as `experiments.workdir.journal.read_workdir` and `check_records` do.
    """
    raw, settings, measured = read_workdir(workdir, Protocol, SCHEMA)
    check_records(settings, measured)
    return raw, settings, measured


def check_records(settings: Protocol, measured: Journal) -> None:
    """Refuse records that do not belong together.

    Raises ValueError for a choice, network or run that the configuration does not list, and for a
    fine-tuned network that was never compressed.
    """
    listed = set(settings.keys)
    for record in measured.of_kind("baseline"):
        if not 0 <= record["network"] < settings.networks:
            raise ValueError(f"{measured.path}: network {record['network']} is not in config.json")
    for record in measured.of_kind("compressed", "finetuned"):
        choice = Choice(*(record[name] for name in ("layer", "method", "compression")))
        key = Key(record["network"], choice, record["run"])
        named = f"({key})"
        if measured.identity("compressed", record) not in measured.found:
            raise ValueError(f"{measured.path}: {named} is fine-tuned but never compressed")
        if key not in listed:
            raise ValueError(
                f"{measured.path}: {named} is not in config.json; "
                "write each configuration's measurements to a work directory of their own"
            )


def choice_fields(key: Key) -> dict[str, Any]:
    """The fields of a record that say what was measured."""
    return {**asdict(key.choice), "network": key.network, "run": key.run}


def lacking_data_errors(measured: Journal) -> int:
    """How many records lack the errors in the norms of the data, which earlier versions did."""
    return sum(DATA_ERRORS[0] not in one["errors"] for one in measured.of_kind("compressed"))


def common_errors(measured: Journal) -> tuple[str, ...]:
    """The errors that every record holds; of no record, those of the published study."""
    whole = measured.of_kind("compressed") and not lacking_data_errors(measured)
    return ERRORS + DATA_ERRORS if whole else ERRORS


def _share_removed(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise ValueError(f"{name} {value!r} is not a number in [0, 1)")
    # 1 - 0.9 and 0.1 must be the same choice.
    return round(float(value), 6)


def _errors(name: str, value: Any) -> dict[str, float]:
    found = required({name: value}, name, dict)
    # All errors in the norms of the data or none of them.
    names = ERRORS + (DATA_ERRORS if any(error in found for error in DATA_ERRORS) else ())
    errors = checked(found, dict.fromkeys(names, float))
    for error in names:
        if not (math.isfinite(errors[error]) and errors[error] >= 0):
            raise ValueError(
                f"error '{error}' is {errors[error]}, not a finite number of at least 0"
            )
    return errors


def _ranks(name: str, value: Any) -> tuple[int, ...]:
    return tuple(required({name: rank}, name, int) for rank in required({name: value}, name, list))


def _performance(name: str, value: Any) -> dict[str, Any]:
    # A network that a low rank broke may have an infinite cross-entropy; only accuracy is
    # ranked, so that is no reason to refuse the record.
    kinds = {"accuracy": float, "cross_entropy": float, "count": int}
    found = checked(required({name: value}, name, dict), kinds)
    if not 0 <= found["accuracy"] <= 1 or found["count"] < 1:
        raise ValueError(f"'{name}' has accuracy {found['accuracy']} of {found['count']} images")
    return found


# Studies of earlier versions have one network.
_NETWORK: Fields = {"network": (int, 0)}
_CHOICE: Fields = {"layer": str, "method": str, "compression": _share_removed}
_RUN: Fields = {**_CHOICE, **_NETWORK, "run": int}
_SUBSETS: Fields = {"validation": _performance, "test": _performance}
_SIZES: Fields = {
    "params": int, "macs": (int, None), "epoch": (int, None), "chance": (float, None)
}  # fmt: skip
SCHEMA: Schema = {
    "baseline": Kind(_NETWORK, {**_SIZES, "train": (_performance, None), **_SUBSETS}),
    "compressed": Kind(
        _RUN, {"ranks": _ranks, "kept": float, "saves": bool, "errors": _errors, **_SUBSETS}
    ),
    "finetuned": Kind(_RUN, {"epoch": int, "curve": (CURVE, None), **_SUBSETS}),
    "epoch": EPOCH,
}
