"""Seconds of a network and of its layers, measured on one device and kept as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tdjax.files import one_line, open_regular, write_atomically
from tdjax.plan.reading import parsed, read_fields
from tdjax.timings.layer import FormTimings, LayerTimings, check_seconds

__all__ = ["FormTimings", "LayerTimings", "Timings"]

# Of the files that `Timings.save` writes.
VERSION = 1


@dataclass(frozen=True)
class Timings:
    """What a network and its layers take on one device; from `tdjax.time_layers`.

    >>> import numpy as np, tdjax
    >>> from tdjax.timings.timings import FormTimings, LayerTimings
    >>> low_rank = FormTimings(tdjax.Form("svd"), ((16,), (32,)), (1e-3, 2e-3), ((), ()))
    >>> layer = LayerTimings(4e-3, (low_rank,), (64, 64))
    >>> timings = tdjax.Timings("cpu", {}, 1, network=5e-3, layers={"conv": layer})
    >>> round(timings.rest, 4), layer.seconds(tdjax.Form("svd"), np.array([[16], [24]])).tolist()
    (0.001, [0.001, 0.002])

    Arguments:
        device: where they were measured, see `tdjax.timings.device.this_device`.
        versions: of packages, by name.
        batch: number of examples in a call.
        network: seconds of one call of the whole dense network.
        layers: by path; those that no form can take are not among them.
        rest: seconds of a call that are no layer's: normalisation, activations, attention. Where
            it is not given, what the layers leave of the network. `tdjax.time_layers` fits it to
            networks with plans: with all layers it is the network, but where that as it is, is
            slower than its parts (docs/guides/speed.md). Budgets in time are shares of the network.
    """

    device: str
    versions: Mapping[str, str]
    batch: int
    network: float
    layers: Mapping[str, LayerTimings]
    rest: float = math.nan

    def __post_init__(self) -> None:
        """Refuse what cannot have been measured."""
        check_seconds("network", [self.network])
        if math.isnan(self.rest):
            left = self.network - sum(layer.dense for layer in self.layers.values())
            object.__setattr__(self, "rest", max(0.0, left))
        if not 0 <= self.rest < math.inf:
            raise ValueError(f"rest: seconds that no clock shows: {self.rest}")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")

    def __repr__(self) -> str:
        """Device, batch, and the time of the network; of the layers their number."""
        of = f"{self.device}, batch {self.batch}, {len(self.layers)} layers"
        return f"Timings({of}, network {1e3 * self.network:.3g} ms)"

    def save(self, path: str | Path) -> None:
        """Write them as JSON, at once: a kill leaves the old file or the new one."""
        layers = {name: asdict(layer) for name, layer in self.layers.items()}
        raw = {**_shallow(self), "layers": layers}
        write_atomically(Path(path), json.dumps({"version": VERSION, **raw}, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Timings:
        """Read what `save` wrote.

        Raises ValueError that names the file where it is damaged, of another version or something
        else, FileNotFoundError where it is missing. Whether they are those of this device is for
        those to say who use them.
        """
        with open_regular(path) as file:
            text = file.read()
        try:
            return _read(parsed(text.decode("utf-8")))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is no file of timings: {one_line(error)}") from error


@dataclass(frozen=True)
class _Head:
    """All but the layers, whose names are no fields."""

    version: int
    device: str
    batch: int
    network: float
    rest: float


def _shallow(timings: Timings) -> dict[str, Any]:
    return {own.name: getattr(timings, own.name) for own in fields(timings)}


def _read(raw: Any) -> Timings:
    if not isinstance(raw, dict):
        raise ValueError("it must hold fields")
    if raw.get("version") != VERSION:
        raise ValueError(f"version {raw.get('version')!r}, this library reads {VERSION}")
    raw = dict(raw)
    layers, versions = (_named(raw, name) for name in ("layers", "versions"))
    head = read_fields(_Head, raw, "")
    for name, version in versions.items():
        if not isinstance(version, str):
            raise ValueError(f"field 'versions.{name}' must be of type str")
    known = {path: read_fields(LayerTimings, own, f"layers.{path}") for path, own in layers.items()}
    return Timings(head.device, versions, head.batch, head.network, known, head.rest)


def _named(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """A field whose own names are free, taken out."""
    found = raw.pop(name, None)
    if not isinstance(found, dict):
        raise ValueError(f"field {name!r} must hold fields")
    return found
