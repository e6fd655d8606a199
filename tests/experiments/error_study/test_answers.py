"""What a study's page says at its top."""

import numpy as np
import pytest

from experiments.error_study.answers import what_to_use
from experiments.error_study.error_names import DATA_ERRORS, ERRORS
from experiments.error_study.paper import published_study
from experiments.report.correlate import estimate_tau


def taus(noises, choices):
    """Of errors that follow the performance but for some noise; equal draws are equal errors."""
    right, found = np.arange(choices, dtype=float), {}
    for error, (noise, seed) in noises.items():
        own = right + noise * choices * np.random.default_rng(seed).standard_normal(choices)
        groups = np.zeros(choices, int)
        found["error", "test", "before", error] = estimate_tau(
            own[None, None], right[None, None], groups, resamples=200
        )
    return found


def drawn(noise):
    return {error: (noise, seed) for seed, error in enumerate(ERRORS)}


ALIKE = dict.fromkeys(ERRORS, (0.3, 0))
EXACT = (0.0, 0)


@pytest.mark.parametrize(
    ("noises", "choices", "said"),
    [
        (drawn(0.5) | {"features/scaled": EXACT}, 40, "use Scaled Features (tau 1.00): it pred"),
        # Those of weights, where they do as well: they need no data.
        (ALIKE, 40, "use Absolute Weights (tau 0."),
        (drawn(0.3) | {"weights/absolute": (9.0, 7)}, 40, "use one of "),
        (drawn(0.5), 12, "which of the six is best is not decidable: "),
        (drawn(99.0), 12, "none is known to: of no tau is it decided that it lies above 0."),
        ({}, 12, "Before fine-tuning: too few choices are measured in every run."),
        (
            ALIKE | dict.fromkeys(DATA_ERRORS, EXACT),
            40,
            "In the norms of the data, Absolute Covariance (tau 1.00) is better still.",
        ),
    ],
    ids=["best", "as good", "some", "open", "unrelated", "unmeasured", "data"],
)
def test_what_to_use_is_what_bounds_prove(noises, choices, said):
    text = what_to_use(taus(noises, choices), published_study(None), ("before",))
    assert said in text
    assert ("is better still" in text) == ("covariance/absolute" in noises)
    if "one of" in said:
        assert "Absolute Weights" not in text
    if "not decidable:" in said:
        assert text.count("(tau ") == 6
