import io
import tarfile

import numpy as np
import pytest

from experiments.data import DataError, RawTable, load_table, prepare_table
from experiments.data.tables import TableExamples


def rows_of_numbers(count=20640, seed=0):
    rng = np.random.default_rng(seed)
    values = np.round(rng.uniform(1, 100, size=(count, 9)), 2)
    values[:, 0] -= 150
    return values


def text_of(values):
    return "".join(",".join(f"{x:.6f}" for x in row) + "\n" for row in values).encode()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("california")
    (folder / "cal_housing.data").write_bytes(text_of(rows_of_numbers()))
    return folder


def test_california_housing_has_the_columns_of_scikit_learn(published):
    table = load_table("california_housing", published)
    values = rows_of_numbers()
    # scikit-learn takes these columns in this order, then divides by the households.
    target, *columns = values[:, [8, 7, 2, 3, 4, 5, 6, 1, 0]].T
    columns[2], columns[3] = columns[2] / columns[5], columns[3] / columns[5]
    columns[5] = columns[4] / columns[5]
    np.testing.assert_allclose(table.rows, np.stack(columns, axis=1))
    np.testing.assert_allclose(table.targets, target / 1e5)


def archive(folder, content, name="CaliforniaHousing/cal_housing.data"):
    path = folder / "cal_housing.tgz"
    with tarfile.open(path, "w:gz") as file:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        file.addfile(entry, io.BytesIO(content))
    return path


def test_the_published_archive_is_read_in_place(published, tmp_path):
    content = (published / "cal_housing.data").read_bytes()
    path = archive(tmp_path, content)
    expected = load_table("california_housing", published)
    np.testing.assert_array_equal(load_table("california_housing", tmp_path).rows, expected.rows)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"cal_housing\.tgz: truncated or damaged archive"):
        load_table("california_housing", tmp_path)
    archive(tmp_path, content[:100], name="another.data")
    with pytest.raises(DataError, match="no file CaliforniaHousing/cal_housing"):
        load_table("california_housing", tmp_path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text[:-400], "is no table of numbers|has the shape"),
        (lambda text: text[: text.index(b"\n") + 1], r"has the shape \(1, 9\); expected 20640"),
        (lambda text: b"a" + text[1:], "is no table of numbers between commas"),
        (lambda text: b"nan" + text[text.index(b",") :], "holds NaN or Inf"),
    ],
)
def test_damaged_files_are_named(published, tmp_path, change, problem):
    content = (published / "cal_housing.data").read_bytes()
    (tmp_path / "cal_housing.data").write_bytes(change(content))
    with pytest.raises(DataError, match=problem) as error:
        load_table("california_housing", tmp_path)
    assert str(tmp_path / "cal_housing.data") in str(error.value)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"expected cal_housing\.data, CaliforniaHousing"):
        load_table("california_housing", tmp_path)
    with pytest.raises(DataError, match=r"give the folder that holds cal_housing\.data"):
        load_table("california_housing")
    with pytest.raises(ValueError, match="known are diabetes, california_housing"):
        load_table("boston")


def test_diabetes_is_scikit_learn_s():
    datasets = pytest.importorskip("sklearn.datasets")
    table = load_table("diabetes")
    rows, targets = datasets.load_diabetes(return_X_y=True, scaled=False)
    np.testing.assert_array_equal(table.rows, rows)
    np.testing.assert_array_equal(table.targets, targets)


def numbers(count=100):
    rng = np.random.default_rng(1)
    return RawTable("numbers", rng.normal(3, 2, (count, 4)), rng.normal(5, 7, count))


def test_splits_share_no_row_and_are_standardised():
    raw = numbers()
    splits = prepare_table(raw, 0.25, seed=3)
    sizes = [len(part.labels) for part in (splits.train, splits.validation, splits.test)]
    assert sizes == [60, 20, 20]
    assert splits.num_classes == 1
    train = splits.train
    np.testing.assert_allclose(train.images.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(train.images.std(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose([train.labels.mean(), train.labels.std()], [0, 1], atol=1e-6)
    parts = (splits.train, splits.validation, splits.test)
    together = np.concatenate([part.images for part in parts]) * splits.std + splits.mean
    np.testing.assert_allclose(np.sort(together, axis=0), np.sort(raw.rows, axis=0), rtol=1e-4)
    # Another seed splits the rest differently; the test set stays.
    again = prepare_table(raw, 0.25, seed=4)
    rows = [part.images * s.std + s.mean for s in (splits, again) for part in (s.train, s.test)]
    assert not np.allclose(rows[0], rows[2])
    np.testing.assert_allclose(rows[1], rows[3], rtol=1e-4, atol=1e-5)


def test_fewer_rows():
    splits = prepare_table(numbers(), 0.25, 0, 30, 10, 5)
    assert [len(part.labels) for part in (splits.train, splits.validation, splits.test)] == [
        30,
        10,
        5,
    ]
    with pytest.raises(ValueError, match="train_size is 61; the train split has 60 rows"):
        prepare_table(numbers(), 0.25, 0, 61)
    with pytest.raises(ValueError, match=r"validation_share is 1\.0"):
        prepare_table(numbers(), 1.0)


def test_constant_columns_and_numbers_that_are_none_are_refused():
    raw = numbers()
    with pytest.raises(ValueError, match="is constant over 72 training rows of numbers"):
        prepare_table(
            RawTable("numbers", np.where([True, False, True, True], raw.rows, 0.1), raw.targets)
        )
    with pytest.raises(ValueError, match="is constant over"):
        prepare_table(RawTable("numbers", raw.rows, np.full(100, 0.1)))
    rows, targets = np.ones((3, 2), np.float32), np.ones(3, np.float32)
    with pytest.raises(ValueError, match="NaN or Inf"):
        TableExamples(rows * np.float32(np.nan), targets)
    with pytest.raises(ValueError, match=r"rows of shape \(0, 2\) and 0 targets"):
        TableExamples(rows[:0], targets[:0])
