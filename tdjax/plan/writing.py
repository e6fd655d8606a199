"""One entry of a plan as JSON has it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tdjax.plan.planned import PlannedLayer
from tdjax.plan.reading import (
    FIFTH_VERSION,
    FOURTH_VERSION,
    PLAN_VERSION,
    SIXTH_VERSION,
    THIRD_VERSION,
)


def planned_to_dict(entry: PlannedLayer, version: int) -> dict[str, Any]:
    """One entry as a version writes it, its form spread among its other fields."""
    form = {"method": None, "ranks": (), "spatial": "separate"}
    variant = {"splits": 1, "fold": "channel", "nonzeros": 0}
    if entry.form is not None:
        own = asdict(entry.form)
        form, variant = ({name: own[name] for name in part} for part in (form, variant))
    layer = asdict(entry.layer)
    if version < THIRD_VERSION:
        del layer["dilated"]
    later: dict[str, Any] = {"ways": entry.ways} if version >= FOURTH_VERSION else {}
    if version >= FIFTH_VERSION:
        later["dtype"] = entry.dtype
    if version >= SIXTH_VERSION:
        later["shares"] = entry.shares
    if version >= PLAN_VERSION:
        later["feeds"] = entry.feeds
    return {"layer": layer, **form, "reason": entry.reason, **variant, **later}
