"""The approximation errors that a study measures: the one list of their names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Errors that compare the same two things in different units.

    Arguments:
        name: what is compared, or the norm it is compared in.
        kinds: how the norm of the difference is set in proportion.
    """

    name: str
    kinds: tuple[str, ...]

    @property
    def errors(self) -> tuple[str, ...]:
        """The names of the errors in files and tables, such as "weights/relative"."""
        return tuple(f"{self.name}/{kind}" for kind in self.kinds)


WEIGHTS = Family("weights", ("absolute", "relative", "scaled"))
FEATURES = Family("features", ("absolute", "relative", "scaled"))
COVARIANCE = Family("covariance", ("absolute", "relative"))
KRONECKER = Family("kronecker", ("absolute", "relative"))

WEIGHT_ERRORS, FEATURE_ERRORS = WEIGHTS.errors, FEATURES.errors
# The six of the published study, on which its findings are judged.
ERRORS = WEIGHT_ERRORS + FEATURE_ERRORS
# Those in the norms of the data, which the published study does not have.
DATA_ERRORS = COVARIANCE.errors + KRONECKER.errors
RELATIVE_WEIGHTS = "weights/relative"


def error_name(error: str) -> str:
    """The name to show: "weights/relative" is "Relative Weights"."""
    of, kind = error.split("/")
    return f"{kind.title()} {of.title()}"


def error_names(errors: tuple[str, ...]) -> dict[str, str]:
    """Errors, each with the name to show."""
    return {error: error_name(error) for error in errors}
