import numpy as np
import pytest
from photograph_trees import CLASSES, VARIANTS, write_aircraft, write_imagenet

from experiments.data import (
    DataError,
    DecodedWhenTaken,
    ImageArray,
    RawDataset,
    evaluation_view,
    imagenet_files,
    load,
    prepare,
    stratified_split,
    stratified_subset,
)
from experiments.network.schedule import FitSettings
from experiments.network.training import steps_per_epoch

pytest.importorskip("PIL")


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs") / "imagenet"
    write_imagenet(folder, train=10)
    return folder


def test_views_of_the_photographs_that_are_taken(imagenet):
    files = imagenet_files(imagenet, "train")
    images = DecodedWhenTaken(files, size=16, resize=20, threads=3)
    assert isinstance(images, ImageArray)
    assert (len(images), images.shape, images.dtype) == (30, (30, 16, 16, 3), np.uint8)
    indices = np.array([4, 29, 0, 4])
    taken = images[indices]
    assert taken.dtype == np.uint8
    for view, index in zip(taken, indices, strict=True):
        np.testing.assert_array_equal(view, evaluation_view(files[index], 16, 20))
    assert images[np.array([], int)].shape == (0, 16, 16, 3)


def test_what_cannot_be_taken(imagenet, tmp_path):
    write_imagenet(tmp_path)
    files = imagenet_files(tmp_path, "val")
    images = DecodedWhenTaken(files, size=8, resize=8)
    with pytest.raises(IndexError, match="no image 12 in imagenet val"):
        images[np.array([0, 12])]
    (tmp_path / "val" / files.files[5]).write_bytes(b"")
    images[np.array([4, 6])]
    with pytest.raises(DataError, match=files.files[5]):
        images[np.arange(12)]


def test_imagenet_by_name(imagenet):
    raw = load("imagenet", imagenet)
    assert raw.num_classes == len(CLASSES)
    assert raw.train_images.shape == (30, 224, 224, 3)
    assert raw.test_images.shape == (12, 224, 224, 3)
    np.testing.assert_array_equal(raw.train_labels, np.repeat([0, 1, 2], 10))
    splits = prepare(raw, 0.2, seed=1, train_size=6, test_size=9)
    kept, held_out = stratified_split(raw.train_labels, 0.2, 1)
    train = kept[stratified_subset(raw.train_labels[kept], 6, 1)]
    test = stratified_subset(raw.test_labels, 9, 1)
    files, tests = imagenet_files(imagenet, "train"), imagenet_files(imagenet, "val")
    pixels = np.stack([evaluation_view(files[i]) for i in train]).astype(float)
    mean, std = pixels.mean(axis=(0, 1, 2)), pixels.std(axis=(0, 1, 2))
    np.testing.assert_allclose(splits.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(splits.train.images, (pixels - mean) / std, atol=1e-5)
    np.testing.assert_array_equal(splits.train.labels, raw.train_labels[train])
    np.testing.assert_array_equal(splits.validation.labels, raw.train_labels[held_out])
    last = evaluation_view(tests[test[-1]]).astype(float)
    np.testing.assert_allclose(splits.test.images[-1], (last - mean) / std, atol=1e-5)
    assert steps_per_epoch(splits.train, FitSettings(epochs=1, batch_size=3)) == 2


def test_aircraft_by_name(tmp_path):
    write_aircraft(tmp_path)
    raw = load("fgvc_aircraft", tmp_path)
    assert raw.num_classes == len(VARIANTS)
    assert (len(raw.train_images), len(raw.test_images)) == (16, 8)
    np.testing.assert_array_equal(raw.test_labels, np.arange(8) % 4)


class Vast:
    """Images that nothing can hold, and nothing may take."""

    shape, dtype = (10, 10**6, 10**6, 3), np.dtype(np.uint8)

    def __len__(self):
        return 10

    def __getitem__(self, indices):
        raise AssertionError("taken")


def test_what_does_not_fit_in_memory_is_not_decoded():
    labels = np.zeros(10, np.int32)
    raw = RawDataset("vast", Vast(), labels, Vast(), labels, 1)
    with pytest.raises(ValueError, match=r"13 images of vast need 156000 GB .* set train_size"):
        prepare(raw, 0.1, train_size=2, validation_size=1, test_size=None, seed=0)


@pytest.mark.parametrize("images", [np.zeros((4, 2, 2, 3), np.float32), np.zeros((4, 2), np.uint8)])
def test_images_of_another_kind(images):
    labels = np.zeros(4, np.int32)
    with pytest.raises(
        ValueError, match=r"training part of odd has images .*expected uint8 \(n, h"
    ):
        prepare(RawDataset("odd", images, labels, images, labels, 1))
