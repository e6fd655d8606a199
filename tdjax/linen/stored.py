"""What Flax's own functions for checkpoints, `flax.serialization`, make of stored arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import serialization

from tdjax.params.quantised import ARRAYS, Quantised


def _state(stored: Quantised) -> dict[str, Any]:
    return {name: getattr(stored, name) for name in ARRAYS}


def _restored(stored: Quantised, state: Mapping[str, Any]) -> Quantised:
    """An array like another. Raises ValueError for a state of something else."""
    if not isinstance(state, Mapping) or set(state) != set(ARRAYS):
        raise ValueError(
            f"an array of shape {stored.shape} is stored as {' and '.join(ARRAYS)}, which the "
            "state does not hold"
        )
    return Quantised(*(state[name] for name in ARRAYS))


serialization.register_serialization_state(Quantised, _state, _restored, override=True)
