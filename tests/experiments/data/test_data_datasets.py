import sys

import numpy as np
import pytest

from experiments.data import DataError, load


def test_digits_holds_every_image_once():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    bunch = sklearn_datasets.load_digits()
    raw = load("digits")
    assert raw.train_images.shape == (1438, 8, 8, 1)
    assert raw.test_images.shape == (359, 8, 8, 1)
    assert raw.train_images.dtype == np.uint8
    assert raw.train_labels.dtype == np.int32
    assert raw.num_classes == 10

    def rows(images, labels):
        return sorted(map(tuple, np.c_[labels, np.reshape(images, (len(images), -1))].tolist()))

    images = np.concatenate([raw.train_images, raw.test_images])
    labels = np.concatenate([raw.train_labels, raw.test_labels])
    assert rows(images, labels) == rows(bunch.images, bunch.target)


def test_digits_split_is_stratified_and_fixed():
    pytest.importorskip("sklearn")
    first, second = load("digits"), load("digits", folder="unused")
    np.testing.assert_array_equal(first.test_images, second.test_images)
    held_out = np.bincount(first.test_labels)
    whole = held_out + np.bincount(first.train_labels)
    assert np.all(np.abs(held_out - 0.2 * whole) < 1)


def test_digits_without_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="extra 'experiments'"):
        load("digits")


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="'cifar'; known are digits, mnist, fashion_mnist, cifar1"):
        load("cifar")


@pytest.mark.parametrize(
    ("name", "home"),
    [
        ("mnist", "yann.lecun.com/exdb/mnist"),
        ("fashion_mnist", "github.com/zalandoresearch/fashion-mnist"),
        ("cifar10", "www.cs.toronto.edu/~kriz/cifar.html"),
        ("cifar100", "www.cs.toronto.edu/~kriz/cifar.html"),
    ],
)
def test_folder_is_asked_for(name, home):
    with pytest.raises(DataError, match=f"{name} is read from files: give the folder.*{home}"):
        load(name)
