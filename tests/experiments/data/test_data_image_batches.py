import json
import sys

import numpy as np
import pytest
from absl import flags
from photograph_trees import write_imagenet

from experiments.data import DataError, evaluation_view, image_batches, imagenet_files

pytest.importorskip("PIL")
pytest.importorskip("grain")
SMALL = {"size": 12, "resize": 14, "threads": 2}
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    write_imagenet(folder)
    return folder


@pytest.fixture(scope="module")
def train(folder):
    return imagenet_files(folder, "train")


def same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])


def views(batches):
    """Every image of an iteration, as bytes."""
    return [image.tobytes() for batch in batches for image in batch["image"]]


def test_evaluation_in_order_against_numpy(folder):
    files = imagenet_files(folder, "val")
    batches = list(image_batches(files, 5, train=False, **SMALL))
    assert [len(batch["label"]) for batch in batches] == [5, 5, 2]
    found = np.concatenate([batch["image"] for batch in batches])
    assert found.dtype == np.float32
    for index, image in enumerate(found):
        pixels = evaluation_view(files[index]["image"], 12, 14) / 255.0
        np.testing.assert_allclose(image, (pixels - MEAN) / DEVIATION, atol=2e-6)
    labels = np.concatenate([batch["label"] for batch in batches])
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, files.labels)
    twice = image_batches(files, 5, train=False, epochs=2, **SMALL)
    same(twice, batches + batches)


def test_training_is_fixed_by_the_seed_alone(train):
    first = list(image_batches(train, 4, train=True, seed=3, **SMALL))
    assert [batch["image"].shape for batch in first] == [(4, 12, 12, 3)] * 4
    same(first, image_batches(train, 4, train=True, seed=3, **{**SMALL, "threads": 5}))
    other = list(image_batches(train, 4, train=True, seed=4, **SMALL))
    assert any((a["label"] != b["label"]).any() for a, b in zip(first, other, strict=True))
    assert not set(views(first)) & set(views(other))


def test_every_image_once_an_epoch_and_epochs_differ(train):
    batches = list(image_batches(train, 6, train=True, epochs=2, **SMALL))
    epochs = batches[:3], batches[3:]
    for epoch in epochs:
        labels = np.concatenate([batch["label"] for batch in epoch])
        np.testing.assert_array_equal(np.bincount(labels), [6, 6, 6])
    assert not set(views(epochs[0])) & set(views(epochs[1]))
    assert any((a["label"] != b["label"]).any() for a, b in zip(*epochs, strict=True))
    # Without an end the same batches come, and then more.
    endless = iter(image_batches(train, 6, train=True, epochs=None, **SMALL))
    same([next(endless) for _ in range(6)], batches)
    next(endless)


def test_an_iteration_goes_on_where_it_was_left(train):
    def started():
        return iter(image_batches(train, 4, train=True, epochs=3, seed=1, **SMALL))

    whole = list(started())
    for taken in (0, 3, 5):
        first = started()
        same([next(first) for _ in range(taken)], whole[:taken])
        state = json.loads(json.dumps(first.get_state()))
        second = started()
        second.set_state(state)
        same(second, whole[taken:])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_images_of_one_order(train, count):
    (alone,) = image_batches(train, 18, train=True, seed=5, **SMALL)
    share = 18 // count
    parts = []
    for index in range(count):
        dataset = image_batches(train, share, train=True, seed=5, shard=(index, count), **SMALL)
        (batch,) = dataset
        parts.append(batch)
    for index, part in enumerate(parts):
        chosen = slice(index, share * count, count)
        np.testing.assert_array_equal(part["image"], alone["image"][chosen])
        np.testing.assert_array_equal(part["label"], alone["label"][chosen])


def test_processes_that_evaluate_leave_nothing_out(folder):
    files = imagenet_files(folder, "val")
    whole = views(image_batches(files, 3, train=False, **SMALL))
    shards = [
        views(image_batches(files, 3, train=False, shard=(index, 5), **SMALL)) for index in range(5)
    ]
    assert [len(shard) for shard in shards] == [3, 3, 2, 2, 2]
    assert sorted(image for shard in shards for image in shard) == sorted(whole)


@pytest.fixture
def parsed_flags():
    was_parsed = flags.FLAGS.is_parsed()
    flags.FLAGS.mark_as_parsed()
    yield
    if not was_parsed:
        flags.FLAGS.unparse_flags()


def test_other_processes_need_parsed_flags(train):
    if flags.FLAGS.is_parsed():
        pytest.skip("another test has parsed them")
    with pytest.raises(RuntimeError, match="num_workers is 2, but grain's processes need absl's"):
        image_batches(train, 4, train=True, num_workers=2)


def test_other_processes_make_the_same_batches(train, parsed_flags):
    here = image_batches(train, 4, train=True, epochs=2, **SMALL)
    iterator = iter(image_batches(train, 4, train=True, epochs=2, num_workers=2, **SMALL))
    same(iterator, here)


def test_a_damaged_photograph_is_named(tmp_path):
    write_imagenet(tmp_path)
    files = imagenet_files(tmp_path, "val")
    (tmp_path / "val" / files.files[5]).write_bytes(b"no image")
    iterator = iter(image_batches(files, 4, train=False, **SMALL))
    next(iterator)
    with pytest.raises(DataError, match=files.files[5]):
        next(iterator)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; expected 1 or more"),
        ({"epochs": 0}, "epochs is 0"),
        ({"size": 0}, "size is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"num_workers": -1}, "num_workers is -1; expected 0 or more"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32 - 1}, "seed is 4294967295"),
        ({"shard": (2, 2)}, "shard is 2 of 2"),
        ({"shard": (0, 0)}, "shard is 0 of 0"),
        ({"train": False, "resize": 11}, "size is 12, resize 11"),
        ({"mean": (0.5, 0.5)}, "expected three of both"),
        ({"deviation": (0.5, 0.0, 0.5)}, "deviations above 0"),
        ({"deviation": (0.5, np.inf, 0.5)}, "deviations above 0"),
        ({"mean": (0.5, np.nan, 0.5)}, "NaN or Inf"),
        ({"batch_size": 19}, "gives each of 1 processes 18 images, less than one batch of 19"),
        ({"shard": (0, 5), "batch_size": 4}, "gives each of 5 processes 3 images"),
        ({"train": False, "shard": (0, 19)}, "gives each of 19 processes 0 images"),
    ],
)
def test_batches_that_cannot_be_had(train, changes, message):
    with pytest.raises(ValueError, match=message):
        image_batches(train, **{"batch_size": 4, "train": True, **SMALL, **changes})


def test_without_grain_the_extra_is_named(train, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r"tdjax\[images\]"):
        image_batches(train, 4, train=True)
