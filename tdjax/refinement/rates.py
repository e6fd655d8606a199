"""Learning rates of Adam: one that is found, and their course over all steps."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

# Tried one after another, step by step.
LEAST, MOST, TRIED = 3e-5, 0.3, 16
# Of all steps, those over which the rate grows to its height.
WARM_UP = 0.05


def tried_rates() -> Float[np.ndarray, " n"]:
    """Growing rates, a step for each."""
    return np.geomspace(LEAST, MOST, TRIED)


def best_rate(losses: Float[np.ndarray, " n"]) -> float:
    """A rate that is large and safe, from the losses before steps at `tried_rates`.

    The loss falls until the rates are too large for it: this is the first that no longer lowers it,
    on the minibatch that all steps see. In training a rate stands at its height for a moment alone,
    and steps see all examples. All that comes after a loss that is not finite, or twice that of the
    start, is not looked at.
    """
    bad = ~np.isfinite(losses) | (losses > 2 * losses[0])
    seen = losses[: int(np.argmax(bad)) if bad.any() else len(losses)]
    if not len(seen):
        return LEAST
    least = int(np.argmin(seen))
    return float(tried_rates()[least])


def schedule(total: int) -> Float[np.ndarray, " n"]:
    """Shares of the rate, step by step: a short rise, and half a cosine down to zero."""
    turns = np.arange(total)
    rise = np.minimum(1.0, (turns + 1) / max(1, math.ceil(WARM_UP * total)))
    return (rise * 0.5 * (1 + np.cos(np.pi * turns / max(total, 1)))).astype(np.float32)
