"""Tables of numbers with a number to predict: readers of the published files, and splits."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64

from experiments.data.errors import DataError, data_error
from experiments.data.published import Form, read_published
from experiments.data.splits import DataSplits, Examples

CALIFORNIA_HOME = "https://www.dcc.fc.up.pt/~ltorgo/Regression/cal_housing.html"
CALIFORNIA_FILE = "cal_housing.data"
TABLES = ("diabetes", "california_housing")

_CALIFORNIA = Form("CaliforniaHousing", "cal_housing.tgz", (CALIFORNIA_FILE,), most=1 << 23)
_CALIFORNIA_SHAPE = (20640, 9)
_TEST_SHARE = 0.2
_TEST_SEED = 0


@dataclass(frozen=True, eq=False)
class RawTable:
    """A table as published: rows float64 (n, d) and the numbers to predict, float64 (n,)."""

    name: str
    rows: Float64[np.ndarray, "n d"]
    targets: Float64[np.ndarray, "n"]


@dataclass(frozen=True, eq=False)
class TableExamples(Examples):
    """Rows of a table in place of images, float32 (n, d), labelled with numbers, float32 (n,).

    ValueError if empty or not finite.
    """

    images: Float32[np.ndarray, "n d"]
    labels: Float32[np.ndarray, "n"]

    def __post_init__(self) -> None:
        """Check that there are rows, as many as numbers to predict, and finite ones only."""
        if len(self.images) != len(self.labels) or not self.images.size:
            raise ValueError(f"rows of shape {self.images.shape} and {len(self.labels)} targets")
        if not (np.isfinite(self.images).all() and np.isfinite(self.labels).all()):
            raise ValueError("a row or a target holds NaN or Inf")


def load_table(name: str, folder: str | Path | None = None) -> RawTable:
    """Load a table by name.

    Args:
        name: "diabetes", 442 rows of 10 columns, which comes with scikit-learn; or
            "california_housing", 20,640 rows of 8.
        folder: of "california_housing", the folder that holds the published file
            `cal_housing.data`, the folder `CaliforniaHousing` with it, or the archive
            `cal_housing.tgz`.

    Returns:
        The table. Of California Housing the columns are those of scikit-learn: median income,
        house age, average rooms, average bedrooms, population, average occupancy, latitude,
        longitude; the median house value in units of 100,000 is to be predicted.

    Raises:
        ValueError: the name is unknown.
        DataError: a file is missing or damaged, or `folder` is not given for a table that needs it.
        ImportError: "diabetes" without scikit-learn.

    Source: Efron et al. 2004 (diabetes); Pace and Barry 1997, `CALIFORNIA_HOME`.
    """
    if name == "diabetes":
        return _diabetes()
    if name != "california_housing":
        raise ValueError(f"unknown table {name!r}; known are {', '.join(TABLES)}")
    if folder is None:
        raise DataError(
            f"{name} is read from a file: give the folder that holds {CALIFORNIA_FILE}. "
            f"The data set is published at {CALIFORNIA_HOME}"
        )
    return _california(Path(folder))


def prepare_table(
    raw: RawTable,
    validation_share: float = 0.1,
    seed: int = 0,
    train_size: int | None = None,
    validation_size: int | None = None,
    test_size: int | None = None,
) -> DataSplits:
    """Split a table in three and standardise, by the training rows that are kept.

    The test set is a fixed fifth; `seed` splits the rest. Rows and numbers to predict have mean 0
    and (population) deviation 1 over the training rows.

    Args:
        raw: the table.
        validation_share: share of what is left beside the test set to hold out for validation.
        seed: seed of the split.
        train_size, validation_size, test_size: number of rows to keep; None keeps all.

    Returns:
        The sets; `mean` and `std` are those of the columns (d,), `num_classes` is 1.

    Raises:
        ValueError: a share or size is out of range, a set is empty, or a column or the number to
            predict is constant.
    """
    if not 0.0 < validation_share < 1.0:
        raise ValueError(f"validation_share is {validation_share}: between 0 and 1 is needed")
    order = np.random.default_rng(_TEST_SEED).permutation(len(raw.targets))
    test, rest = np.split(order, [round(_TEST_SHARE * len(order))])
    rest = np.random.default_rng(seed).permutation(rest)
    validation, train = np.split(rest, [round(validation_share * len(rest))])
    train = first(train, train_size, "train")
    validation = first(validation, validation_size, "validation")
    test = first(test, test_size, "test")
    rows, targets = raw.rows[train], raw.targets[train]
    mean, std = rows.mean(axis=0), rows.std(axis=0)
    middle, spread = targets.mean(), targets.std()
    # The deviation of equal numbers may be off zero by rounding.
    if not (np.ptp(rows, axis=0) > 0).all() or not np.ptp(targets) > 0:
        raise ValueError(
            f"a column, or the number to predict, is constant over {len(train)} training rows of "
            f"{raw.name}: it cannot be standardised"
        )

    def examples(chosen: np.ndarray) -> TableExamples:
        return TableExamples(
            ((raw.rows[chosen] - mean) / std).astype(np.float32),
            ((raw.targets[chosen] - middle) / spread).astype(np.float32),
        )

    return DataSplits(examples(train), examples(validation), examples(test), mean, std, 1)


def first(rows: np.ndarray, size: int | None, split: str) -> np.ndarray:
    """The first of some rows, in order; all for None. ValueError for more than there are."""
    wanted = len(rows) if size is None else size
    if not 1 <= wanted <= len(rows):
        raise ValueError(
            f"{split}_size is {wanted}; the {split} split has {len(rows)} rows to take from, "
            "expected 1 to that number"
        )
    # Sorted as all other splits are; the order of a permutation says nothing.
    return np.sort(rows[:wanted])


def _diabetes() -> RawTable:
    try:
        from sklearn.datasets import load_diabetes
    except ImportError as error:
        message = "the data set diabetes is in scikit-learn: install the extra 'experiments'"
        raise ImportError(message) from error
    rows, targets = load_diabetes(return_X_y=True, scaled=False)
    return RawTable("diabetes", np.asarray(rows, np.float64), np.asarray(targets, np.float64))


def _california(folder: Path) -> RawTable:
    expected = f"{CALIFORNIA_FILE}, {_CALIFORNIA.folder}/{CALIFORNIA_FILE} or {_CALIFORNIA.archive}"
    problem = f"California Housing is not in this folder; expected {expected}"
    _, [(origin, content)] = read_published(folder, (_CALIFORNIA,), CALIFORNIA_HOME, problem)
    try:
        values = np.loadtxt(io.BytesIO(content), delimiter=",", ndmin=2)
    except ValueError as error:
        problem = f"is no table of numbers between commas ({error})"
        raise data_error(origin, problem, CALIFORNIA_HOME) from error
    if values.shape != _CALIFORNIA_SHAPE:
        rows, columns = _CALIFORNIA_SHAPE
        problem = f"has the shape {values.shape}; expected {rows} lines of {columns} numbers"
        raise data_error(origin, problem, CALIFORNIA_HOME)
    longitude, latitude, age, rooms, bedrooms, population, households, income, value = values.T
    if not np.isfinite(values).all() or not (households > 0).all():
        problem = "holds NaN or Inf, or no households in a line"
        raise data_error(origin, problem, CALIFORNIA_HOME)
    chosen = (
        income, age, rooms / households, bedrooms / households, population,
        population / households, latitude, longitude,
    )  # fmt: skip
    return RawTable("california_housing", np.stack(chosen, axis=1), value / 1e5)
