"""What a work directory was asked for: its `config.json`, which no other configuration takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from experiments.workdir.claim import BESIDE, FILE, PROCESSES
from experiments.workdir.files import naming, read_json
from tdjax.files import write_atomically

CONFIG = "config.json"
# In place of a field that one of two configurations lacks.
OFF: Mapping[str, Any] = MappingProxyType({})


def check_workdir(
    workdir: Path,
    config: Mapping[str, Any],
    free: Collection[str] = (),
    earlier: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
) -> bool:
    """Whether the configuration of a work directory is to be written; nothing is touched.

    A field that only one of them knows, as one written by another version, must be off: None, 0,
    False, empty, or a section of no epochs.

    Arguments:
        config: plain JSON values.
        free: paths of the fields that may change; what is there then takes the new values.
        earlier: makes of the configuration that is there one with fields that it did not know.

    Raises ValueError where the folder holds another configuration or things that are not an
    experiment's, or cannot be one.
    """
    with naming(workdir):
        # Before the configuration is looked for: whoever begins here meanwhile writes it first.
        found = [path.name for path in workdir.iterdir()] if workdir.exists() else []
        if (workdir / CONFIG).exists():
            present = earlier(read_config(workdir))
        elif not all(map(_is_begun, found)):
            raise ValueError(
                f"{workdir} is not empty and holds no config.json; use another workdir"
            )
        else:
            return True
    changed = _differences(present, json.loads(json.dumps(config)))
    differing = sorted(set(changed) - set(free))
    if differing:
        raise ValueError(
            f"{workdir} holds another configuration; fields that differ: "
            f"{', '.join(differing)}; use another workdir"
        )
    return bool(changed)


def claim_workdir(
    workdir: Path,
    config: Mapping[str, Any],
    free: Collection[str] = (),
    earlier: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
) -> None:
    """Make the work directory this configuration's, or find that it is already.

    Arguments and what is raised are those of `check_workdir`; then nothing is touched.
    """
    if check_workdir(workdir, config, free, earlier):
        workdir.mkdir(parents=True, exist_ok=True)
        write_atomically(workdir / CONFIG, json.dumps(config, indent=2) + "\n")


def read_config(workdir: Path) -> dict[str, Any]:
    """The configuration of a work directory, as it is written.

    Raises FileNotFoundError where there is none, ValueError where it cannot be understood.
    """
    path = workdir / CONFIG
    try:
        found = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); use another workdir") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged (it holds no fields); use another workdir")
    return found


def _differences(a: Any, b: Any, where: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            found
            for key in a.keys() | b.keys()
            for found in _differences(
                a.get(key, OFF), b.get(key, OFF), f"{where}.{key}" if where else key
            )
        ]
    if a is OFF or b is OFF:
        return [] if _is_off(a) and _is_off(b) else [where]
    return [] if a == b else [where]


def _is_off(value: Any) -> bool:
    return not value or (isinstance(value, dict) and value.get("epochs") == 0)


def _is_begun(name: str) -> bool:
    """Whether a file may be of a process that is about to claim the folder, or was killed then."""
    # With one point more where the right to take it over was taken over.
    return name in (FILE, PROCESSES) or name.startswith((BESIDE, f".{BESIDE}", f".{CONFIG}."))
