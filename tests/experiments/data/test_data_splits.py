import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from experiments.data import (
    Examples,
    RawDataset,
    check_finite,
    prepare,
    stratified_split,
    stratified_subset,
)

LABELS = st.lists(st.integers(0, 4), min_size=2, max_size=120).map(
    lambda labels: np.array(labels, np.int32)
)


@settings(max_examples=150, deadline=None)
@given(LABELS, st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_split_is_a_partition_with_equal_class_shares(labels, share, seed):
    size = round(share * len(labels))
    assume(0 < size < len(labels))
    train, held_out = stratified_split(labels, share, seed)
    assert len(held_out) == size
    np.testing.assert_array_equal(
        np.sort(np.concatenate([train, held_out])), np.arange(len(labels))
    )
    quotas = share * np.bincount(labels)
    assert np.all(np.abs(np.bincount(labels[held_out], minlength=len(quotas)) - quotas) < 1 + 1e-9)
    for part, again in zip((train, held_out), stratified_split(labels, share, seed), strict=True):
        np.testing.assert_array_equal(part, again)


@settings(max_examples=100, deadline=None)
@given(LABELS, st.data(), st.integers(0, 2**32))
def test_subset_has_the_size_and_the_class_shares(labels, data, seed):
    size = data.draw(st.integers(1, len(labels)))
    chosen = stratified_subset(labels, size, seed)
    assert len(chosen) == size
    assert np.all(np.diff(chosen) > 0)
    quotas = size * np.bincount(labels) / len(labels)
    assert np.all(np.abs(np.bincount(labels[chosen], minlength=len(quotas)) - quotas) < 1 + 1e-9)


def test_split_by_largest_remainder():
    labels = np.repeat([0, 1, 2], [14, 13, 13])
    _, held_out = stratified_split(labels, 0.25, 0)
    # Quotas 3.5, 3.25, 3.25: the tenth example is of class 0.
    np.testing.assert_array_equal(np.bincount(labels[held_out]), [4, 3, 3])


def test_split_depends_on_the_seed():
    labels = np.arange(100) % 10
    parts = [stratified_split(labels, 0.3, seed)[1].tolist() for seed in range(3)]
    assert parts[0] != parts[1] != parts[2]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_share_out_of_range(share):
    with pytest.raises(ValueError, match="expected a number between 0 and 1"):
        stratified_split(np.zeros(10, np.int32), share, 0)


@pytest.mark.parametrize(("count", "share"), [(3, 0.1), (3, 0.95), (0, 0.5), (1, 0.5)])
def test_split_with_an_empty_part(count, share):
    with pytest.raises(ValueError, match=f"of {count} examples .* a part is empty"):
        stratified_split(np.zeros(count, np.int32), share, 0)


@pytest.mark.parametrize("size", [0, -1, 11])
def test_subset_size_out_of_range(size):
    with pytest.raises(ValueError, match=f"size {size} asked of 10 examples"):
        stratified_subset(np.zeros(10, np.int32), size, 0)


def make_raw(train=200, test=50, classes=5, shape=(6, 4, 3)):
    rng = np.random.default_rng(0)
    return RawDataset(
        "made",
        rng.integers(0, 256, (train, *shape), np.uint8),
        (np.arange(train) % classes).astype(np.int32),
        rng.integers(0, 200, (test, *shape), np.uint8),
        (np.arange(test) % classes).astype(np.int32),
        classes,
    )


@pytest.fixture
def raw():
    return make_raw()


def test_standardised_by_the_kept_training_examples(raw):
    splits = prepare(raw, 0.2, seed=3, train_size=80, validation_size=20, test_size=25)
    kept, held_out = stratified_split(raw.train_labels, 0.2, 3)
    train = kept[stratified_subset(raw.train_labels[kept], 80, 3)]
    validation = held_out[stratified_subset(raw.train_labels[held_out], 20, 3)]
    test = stratified_subset(raw.test_labels, 25, 3)

    pixels = raw.train_images[train].astype(np.float64)
    mean, std = pixels.mean(axis=(0, 1, 2)), pixels.std(axis=(0, 1, 2))
    np.testing.assert_allclose(splits.mean, mean, rtol=1e-13)
    np.testing.assert_allclose(splits.std, std, rtol=1e-13)
    assert splits.num_classes == 5
    for examples, images, labels in (
        (splits.train, raw.train_images[train], raw.train_labels[train]),
        (splits.validation, raw.train_images[validation], raw.train_labels[validation]),
        (splits.test, raw.test_images[test], raw.test_labels[test]),
    ):
        assert examples.images.dtype == np.float32
        assert examples.labels.dtype == np.int32
        np.testing.assert_allclose(examples.images, (images - mean) / std, rtol=2e-7, atol=1e-7)
        np.testing.assert_array_equal(examples.labels, labels)


def test_all_examples_are_kept_by_default(raw):
    splits = prepare(raw)
    assert [len(part.labels) for part in (splits.train, splits.validation, splits.test)] == [
        180,
        20,
        50,
    ]
    images = splits.train.images.astype(np.float64)
    np.testing.assert_allclose(images.mean(axis=(0, 1, 2)), 0, atol=1e-7)
    np.testing.assert_allclose(images.std(axis=(0, 1, 2)), 1, atol=1e-7)


def test_statistics_over_more_than_one_chunk():
    raw = make_raw(train=3000, shape=(2, 2, 1))
    splits = prepare(raw, 0.1, seed=1)
    kept, _ = stratified_split(raw.train_labels, 0.1, 1)
    pixels = raw.train_images[kept].astype(np.float64)
    np.testing.assert_allclose(splits.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-13)
    np.testing.assert_allclose(splits.std, pixels.std(axis=(0, 1, 2)), rtol=1e-13)


def test_black_is_what_a_zero_pixel_becomes(raw):
    images = raw.test_images.copy()
    images[0] = 0
    splits = prepare(dataclasses.replace(raw, test_images=images))
    np.testing.assert_allclose(splits.test.images[0, 0, 0], splits.black, rtol=1e-7)


def test_equal_seeds_give_equal_splits_and_sizes_do_not_move_the_split(raw):
    first, second = prepare(raw, seed=7), prepare(raw, seed=7)
    np.testing.assert_array_equal(first.train.images, second.train.images)
    np.testing.assert_array_equal(first.validation.labels, second.validation.labels)
    # The held-out examples are the same whatever part of the others is kept.
    smaller = prepare(raw, seed=7, train_size=50)
    np.testing.assert_allclose(
        first.validation.images * first.std + first.mean,
        smaller.validation.images * smaller.std + smaller.mean,
        atol=1e-3,
    )
    assert not np.array_equal(first.train.images, prepare(raw, seed=8).train.images)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"train_size": 181}, "train_size is 181; the train split has 180 examples"),
        ({"validation_size": 21}, "validation_size is 21; the validation split has 20 examples"),
        ({"test_size": 51}, "test_size is 51; the test split has 50 examples"),
        ({"train_size": 0}, "train_size is 0; the train split has 180 examples"),
        ({"test_size": -3}, "test_size is -3"),
        ({"train_size": 4}, "no example of class 4 in the train split of 4 examples"),
        ({"validation_size": 3}, "no example of class 3, 4 in the validation split"),
        ({"test_size": 2}, "no example of class 2, 3, 4 in the test split"),
        ({"validation_share": 0.01}, "in the validation split of 2 examples"),
        ({"validation_share": 0.001}, "a part is empty"),
        ({"validation_share": 1.0}, "expected a number between 0 and 1"),
    ],
)
def test_sizes_that_cannot_be_had(raw, sizes, expected):
    with pytest.raises(ValueError, match=expected):
        prepare(raw, **sizes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train_labels": np.zeros(199, np.int32)}, "200 images but 199 labels"),
        ({"test_labels": np.zeros(49, np.int32)}, "test part of made has 50 images but 49"),
        ({"test_labels": np.full(50, 5, np.int32)}, "labels 5 to 5; expected 0 to 4"),
        ({"test_labels": np.full(50, -1, np.int32)}, "labels -1 to -1; expected 0 to 4"),
        ({"num_classes": 6}, "no example of class 5 in the train split"),
        ({"test_labels": np.zeros(50, np.int32)}, "class 1, 2, 3, 4 in the test split"),
        (
            {"test_images": np.zeros((0, 6, 4, 3), np.uint8), "test_labels": np.zeros(0, np.int32)},
            "test part of made is empty",
        ),
    ],
)
def test_raw_data_that_cannot_be_split(raw, changes, expected):
    # A raw set whose lengths disagree is refused by the shape checks of the constructor already
    # where these are on.
    broken = object.__new__(RawDataset)
    for field in dataclasses.fields(RawDataset):
        object.__setattr__(broken, field.name, changes.get(field.name, getattr(raw, field.name)))
    with pytest.raises(ValueError, match=expected):
        prepare(broken)


def test_class_with_fewer_examples_than_splits(raw):
    labels = raw.train_labels.copy()
    labels[labels == 2] = 0
    labels[0] = 2
    with pytest.raises(ValueError, match="no example of class 2 in the validation split"):
        prepare(dataclasses.replace(raw, train_labels=labels))


def test_constant_channel(raw):
    images = raw.train_images.copy()
    images[..., 1] = 7
    with pytest.raises(ValueError, match="channel 1 of the training images is constant"):
        prepare(dataclasses.replace(raw, train_images=images))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite(value):
    images = np.zeros((4, 2, 2, 1), np.float32)
    check_finite(images)
    images[2, 1, 0, 0] = value
    with pytest.raises(ValueError, match="1 of 4 images hold NaN or Inf, the first is 2"):
        check_finite(images)
    with pytest.raises(ValueError, match="NaN or Inf"):
        Examples(images, np.zeros(4, np.int32))


def test_examples_that_are_empty():
    with pytest.raises(ValueError, match="no pixels"):
        Examples(np.zeros((0, 2, 2, 1), np.float32), np.zeros(0, np.int32))


def test_examples_whose_numbers_disagree():
    # ValueError from the library, TypeError from the shape checks where these are on.
    with pytest.raises((ValueError, TypeError)):
        Examples(np.zeros((3, 2, 2, 1), np.float32), np.zeros(2, np.int32))


def test_given_statistics_in_place_of_those_of_the_training_images():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 2, 2, 3), np.uint8)
    labels = np.arange(40, dtype=np.int32) % 2
    raw = RawDataset("random", images, labels, images[:8], labels[:8], 2)
    mean, std = (100.0, 120.0, 80.0), (50.0, 60.0, 70.0)
    splits = prepare(raw, 0.25, statistics=(mean, std))
    expected = (images[:8] - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(splits.test.images, expected, rtol=1e-6)
    np.testing.assert_allclose(splits.black, -np.array(mean) / np.array(std), rtol=1e-6)
    for wrong in (((1.0,), (1.0,)), (mean, (50.0, 0.0, 70.0))):
        with pytest.raises(ValueError, match="of 3 channels is needed, deviations above 0"):
            prepare(raw, 0.25, statistics=wrong)
