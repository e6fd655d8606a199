"""The examples of a configuration: read, checked, split, standardised."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from experiments.data import (
    DATASETS,
    TABLES,
    DataError,
    DataSplits,
    Examples,
    load,
    load_table,
    prepare,
    prepare_arrays,
    prepare_table,
    read_arrays,
)
from experiments.network.calibrate import altered
from experiments.network.own import is_own, own_function
from experiments.network.settings import NetworkSettings
from experiments.workdir.fields import FieldError
from experiments.workdir.ranges import shown
from tdjax.files import one_line
from tdjax.hints import known_are


def read_splits(settings: NetworkSettings) -> DataSplits:
    """The three sets of examples that a configuration asks for.

    Raises FieldError for what the data set does not have, `experiments.data.DataError` for files
    that are missing or damaged.
    """
    data = settings.data
    if data.name.endswith(".npz") or is_own(data.name):
        return _own(settings)
    if data.arguments:
        problem = f"is {shown(dict(data.arguments))}: {data.name!r} takes none"
        raise FieldError("data.arguments", problem)
    known = (*DATASETS, *TABLES)
    if data.name not in known:
        raise FieldError("data.name", f"is {shown(data.name)}: {known_are(data.name, known)}")
    check_folder("data.folder", data.folder)
    try:
        return _table(settings) if data.name in TABLES else _images(settings)
    except FieldError:
        raise
    except DataError as error:
        raise DataError(f"config field 'data.folder' is {data.folder!r}: {error}") from error
    except ValueError as error:
        raise FieldError("data", f"is {data.name!r}: {error}") from error


def check_folder(field: str, folder: str | None) -> None:
    """Raise FieldError for a folder that is not there."""
    if folder is not None and not os.path.exists(folder):
        raise FieldError(field, f"is {shown(folder)}: there is no such folder")


def _images(settings: NetworkSettings) -> DataSplits:
    data, mean, deviation = settings.data, settings.inputs.mean, settings.inputs.deviation
    raw, statistics = load(data.name, data.folder), None
    if mean is not None and deviation is not None:
        channels = raw.train_images.shape[-1]
        if len(mean) != channels:
            raise FieldError(
                "inputs.mean", f"is {mean}: one for each of {channels} channels is needed"
            )
        statistics = tuple(255 * v for v in mean), tuple(255 * v for v in deviation)
    splits = prepare(raw, data.validation_share, settings.seed, *_sizes(settings), statistics)
    images = altered(splits.test.images, settings.test.change, settings, splits)
    return replace(splits, test=Examples(images, splits.test.labels))


def _table(settings: NetworkSettings) -> DataSplits:
    data = settings.data
    if not settings.takes_tables:
        raise FieldError(
            "data.name",
            f"is {data.name!r}, a table, which only the experiment 'compressibility' takes",
        )
    _check_only(
        f"no such thing for {data.name!r}, which is a table",
        {
            "model.name": (settings.model.name, "mlp"),
            **_of_images(settings),
            "reestimate": (settings.reestimate, False),
            "loss": (settings.loss, None),
            "metric": (settings.metric, None),
        },
    )
    table = load_table(data.name, data.folder)
    return prepare_table(table, data.validation_share, settings.seed, *_sizes(settings))


def _own(settings: NetworkSettings) -> DataSplits:
    data = settings.data
    _check_only("no such thing for data of your own, which is taken as it is", _of_images(settings))
    if data.name.endswith(".npz"):
        if data.arguments:
            raise FieldError(
                "data.arguments", f"is {shown(dict(data.arguments))}: a file takes none"
            )
        arrays = read_arrays(data.name)
    else:
        make = own_function("data.name", data.name)
        try:
            arrays = make(**data.arguments)
        except Exception as error:
            problem = f"is {data.name!r}: {type(error).__name__}: {one_line(error)}"
            raise FieldError("data", problem) from error
    try:
        shares = data.validation_share, settings.seed, *_sizes(settings)
        return prepare_arrays(arrays, *shares, classes=settings.predicts_classes)
    except ValueError as error:
        raise FieldError("data", f"is {data.name!r}: {error}") from error


def _of_images(settings: NetworkSettings) -> dict[str, tuple[Any, Any]]:
    """What only images of a known range can have: fields, their values, and those of other data."""
    return {
        "inputs.mean": (settings.inputs.mean, None),
        "train.augment": (settings.train.augment, False),
        "test.change": (settings.test.change, "same"),
        "calibration.sources": (settings.calibration.sources, ("same",)),
    }


def _check_only(why: str, fields: Mapping[str, tuple[Any, Any]]) -> None:
    for field, (value, only) in fields.items():
        if value != only:
            raise FieldError(field, f"is {shown(value)}: {why}; use {only!r}")


def _sizes(settings: NetworkSettings) -> tuple[int | None, int | None, int | None]:
    data = settings.data
    return data.train_size, data.validation_size, data.test_size
