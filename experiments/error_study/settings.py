"""The part of a study's `config.json` that its report needs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.workdir.journal import required

PHASES = ("before", "after")


@dataclass(frozen=True)
class StudyConfig:
    """The part of `config.json` that the report needs; `raw` is all of it."""

    model: str
    data: str
    layers: tuple[str, ...]
    methods: tuple[str, ...]
    compressions: tuple[float, ...]
    runs: int
    seed: int
    finetune_epochs: int
    published: str | None
    raw: Mapping[str, Any]

    @property
    def phases(self) -> tuple[str, ...]:
        """When performance is measured: without fine-tuning there is no "after"."""
        return PHASES if self.finetune_epochs > 0 else ("before",)


def read_config(path: Path) -> StudyConfig:
    """The study's configuration; raises `ValueError` that names the file and the field."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("a configuration must be a JSON object")
        if required(raw, "runs", int) < 1:
            raise ValueError(f"field 'runs' is {raw['runs']}, not at least 1")
        finetune = required(raw, "finetune", dict) if raw.get("finetune") else {"epochs": 0}
        return StudyConfig(
            model=required(required(raw, "model", dict), "name", str),
            data=required(required(raw, "data", dict), "name", str),
            layers=tuple(str(layer) for layer in _filled_list(raw, "layers")),
            methods=tuple(str(method) for method in _filled_list(raw, "methods")),
            compressions=tuple(
                share_removed("compression", value) for value in _filled_list(raw, "compressions")
            ),
            runs=raw["runs"],
            seed=required(raw, "seed", int),
            finetune_epochs=required(finetune, "epochs", int),
            published=required(raw, "published", str) if raw.get("published") is not None else None,
            raw=raw,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _filled_list(record: Mapping[str, Any], name: str) -> list[Any]:
    values = required(record, name, list)
    if not values or len(set(values)) != len(values):
        raise ValueError(f"field '{name}' must list at least one thing, and none twice")
    return values


def share_removed(name: str, value: Any) -> float:
    """A compression from JSON: a number in [0, 1), to six decimals."""
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise ValueError(f"{name} {value!r} is not a number in [0, 1)")
    # 1 - 0.9 and 0.1 must be the same choice.
    return round(float(value), 6)
