"""The approximation errors that a study measures: the one list of their names.

What is compared, or the norm it is compared in, and how the difference is set in proportion.
"""

from __future__ import annotations

from collections.abc import Iterable

WEIGHT_ERRORS = ("weights/absolute", "weights/relative", "weights/scaled")
FEATURE_ERRORS = ("features/absolute", "features/relative", "features/scaled")
# The six of the published study, on which its findings are judged.
ERRORS = WEIGHT_ERRORS + FEATURE_ERRORS
# Those in the norms of the data, which the published study does not have.
DATA_ERRORS = (
    *("covariance/absolute", "covariance/relative"),
    *("kronecker/absolute", "kronecker/relative"),
)
RELATIVE_WEIGHTS = "weights/relative"


def error_name(error: str) -> str:
    """The name to show: "weights/relative" is "Relative Weights"."""
    of, kind = error.split("/")
    return f"{kind.title()} {of.title()}"


def error_names(errors: Iterable[str]) -> dict[str, str]:
    """Errors, each with the name to show."""
    return {error: error_name(error) for error in errors}
