import gzip
import math
import struct

import numpy as np
import pytest

from experiments.data import DataError, load
from experiments.data.idx import FASHION_MNIST_HOME, MNIST_HOME, read_idx

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def encode(array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        TRAIN_IMAGES: rng.integers(0, 256, (12, 5, 7), np.uint8),
        TRAIN_LABELS: rng.integers(0, 10, 12, np.uint8),
        TEST_IMAGES: rng.integers(0, 256, (6, 5, 7), np.uint8),
        TEST_LABELS: rng.integers(0, 10, 6, np.uint8),
    }


def write(folder, arrays, rename=lambda name: name, wrap=lambda content: content):
    for name, array in arrays.items():
        (folder / rename(name)).write_bytes(wrap(encode(array)))


def message(folder, name="mnist"):
    with pytest.raises(DataError) as caught:
        load(name, folder)
    return str(caught.value)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize(
    ("rename", "wrap"),
    [
        (lambda name: name, lambda content: content),
        (lambda name: f"{name}.gz", gzip.compress),
        (lambda name: name.replace("-idx", ".idx"), lambda content: content),
        (lambda name: name.replace("-idx", ".idx") + ".gz", gzip.compress),
        # Decompressed on download, the name kept.
        (lambda name: f"{name}.gz", lambda content: content),
    ],
)
def test_every_published_form_is_read_exactly(tmp_path, arrays, name, rename, wrap):
    write(tmp_path, arrays, rename, wrap)
    raw = load(name, str(tmp_path))
    assert (raw.name, raw.num_classes) == (name, 10)
    assert raw.train_images.shape == (12, 5, 7, 1)
    assert raw.test_images.shape == (6, 5, 7, 1)
    for images, labels, part in (
        (raw.train_images, raw.train_labels, "train"),
        (raw.test_images, raw.test_labels, "t10k"),
    ):
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(images[..., 0], arrays[f"{part}-images-idx3-ubyte"])
        np.testing.assert_array_equal(labels, arrays[f"{part}-labels-idx1-ubyte"])


def test_pixel_order_is_row_by_row(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6]))
    np.testing.assert_array_equal(read_idx(path, 3, MNIST_HOME), [[[1, 2, 3], [4, 5, 6]]])


def test_large_counts_are_big_endian(tmp_path):
    path = tmp_path / "labels"
    path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 1, 2]) + bytes(258))
    assert read_idx(path, 1, MNIST_HOME).shape == (258,)


@pytest.mark.parametrize("missing", [TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS])
def test_missing_file(tmp_path, arrays, missing):
    del arrays[missing]
    write(tmp_path, arrays)
    text = message(tmp_path, "fashion_mnist")
    dotted = missing.replace("-idx", ".idx")
    assert str(tmp_path / missing) in text
    assert f"{missing}, {missing}.gz, {dotted}, {dotted}.gz" in text
    assert FASHION_MNIST_HOME in text


def test_missing_folder(tmp_path):
    text = message(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere" / TRAIN_IMAGES) in text
    assert MNIST_HOME in text


@pytest.mark.parametrize(
    ("name", "damage", "expected"),
    [
        (TRAIN_IMAGES, lambda c: c[:-1], "has 435 bytes; expected 436 bytes"),
        (TRAIN_IMAGES, lambda c: c + b"\0", "has 437 bytes; expected 436 bytes"),
        (TRAIN_IMAGES, lambda c: c[:10], "has 10 bytes; expected a header of 16 bytes"),
        (TRAIN_IMAGES, lambda c: b"", "0x; expected the magic number 0x00000803"),
        (TEST_IMAGES, lambda c: b"<html>", "0x3c68746d; expected the magic number 0x00000803"),
        (TEST_LABELS, lambda c: b"\0\0\x0d\x01" + c[4:], "expected the magic number 0x00000801"),
        (TEST_LABELS, lambda c: c[:-1] + b"\x0a", "label 10; expected labels 0 to 9"),
        (TRAIN_LABELS, lambda c: encode(np.zeros(11, np.uint8)), "11 labels; expected 12"),
        (TRAIN_LABELS, lambda c: encode(np.zeros(0, np.uint8)), "holds no data"),
        (TEST_IMAGES, lambda c: encode(np.zeros((6, 4, 7), np.uint8)), "(4, 7) pixels; expected"),
        (TRAIN_IMAGES, lambda c: gzip.compress(c)[:-9], "truncated or damaged gzip data"),
        (TRAIN_IMAGES, lambda c: gzip.compress(c)[:5], "truncated or damaged gzip data"),
        (
            TRAIN_IMAGES,
            lambda c: gzip.compress(c)[:-8] + bytes(8),
            "truncated or damaged gzip data (CRC check failed",
        ),
        (TRAIN_IMAGES, lambda c: b"\x1f\x8b\x08\0\0\0\0\0\0\0" + b"\xff" * 40, "damaged gzip"),
    ],
)
def test_damaged_file(tmp_path, arrays, name, damage, expected):
    write(tmp_path, arrays)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    text = message(tmp_path)
    assert text.startswith(f"{path}: ")
    assert expected in text
    assert MNIST_HOME in text


def test_huge_counts_in_a_header_allocate_nothing(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(b"\0\0\x08\x03" + b"\xff" * 12)
    with pytest.raises(DataError, match=f"expected {16 + math.prod([2**32 - 1] * 3)} bytes"):
        read_idx(path, 3, MNIST_HOME)


def test_unreadable_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path, 3, MNIST_HOME)
