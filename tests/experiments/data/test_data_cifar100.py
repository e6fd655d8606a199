import io
import os
import tarfile

import numpy as np
import pytest

from experiments.data import DataError, load
from experiments.data.cifar import CIFAR100_HOME

FOLDER, ARCHIVE = "cifar-100-binary", "cifar-100-binary.tar.gz"
SIZES = {"train.bin": 15, "test.bin": 3}


@pytest.fixture(scope="module")
def files():
    """NHWC images, superclasses and classes by file; the last class is among them."""
    random = np.random.default_rng(0)
    drawn = {
        name: (
            random.integers(0, 256, (n, 32, 32, 3), np.uint8),
            random.integers(0, 20, n),
            random.integers(0, 100, n),
        )
        for name, n in SIZES.items()
    }
    for _, coarse, fine in drawn.values():
        coarse[0], fine[-1] = 19, 99
    return drawn


def encode(images, coarse, fine):
    """A record is two labels, then the planes red, green, blue."""
    return b"".join(
        bytes([c, f]) + b"".join(image[..., plane].tobytes() for plane in range(3))
        for image, c, f in zip(images, coarse.tolist(), fine.tolist(), strict=True)
    )


def write_folder(folder, files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(encode(*content))


def write_archive(path, files):
    with tarfile.open(path, "w:gz") as archive:
        members = {name: encode(*content) for name, content in files.items()}
        for name, content in (members | {"fine_label_names.txt": b"apple\n"}).items():
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def check(raw, files):
    assert (raw.name, raw.num_classes) == ("cifar100", 100)
    for name, images, labels in (
        ("train.bin", raw.train_images, raw.train_labels),
        ("test.bin", raw.test_images, raw.test_labels),
    ):
        expected, _, fine = files[name]
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(labels, fine)


def message(folder):
    with pytest.raises(DataError) as caught:
        load("cifar100", folder)
    text = str(caught.value)
    assert CIFAR100_HOME in text
    return text


def test_folder_or_its_parent_or_another_name(tmp_path, files):
    write_folder(tmp_path / FOLDER, files)
    check(load("cifar100", tmp_path), files)
    check(load("cifar100", str(tmp_path / FOLDER)), files)
    write_folder(tmp_path / "images", files)
    check(load("cifar100", tmp_path / "images"), files)


def test_archive_is_read_in_place(tmp_path, files):
    write_archive(tmp_path / ARCHIVE, files)
    check(load("cifar100", tmp_path), files)
    assert os.listdir(tmp_path) == [ARCHIVE]


def test_nothing_there(tmp_path):
    text = message(tmp_path)
    assert text.startswith(f"{tmp_path}: CIFAR-100 is not in this folder")
    for name in (FOLDER, ARCHIVE, *SIZES):
        assert name in text


@pytest.mark.parametrize("name", SIZES)
def test_missing_file(tmp_path, files, name):
    write_folder(tmp_path / FOLDER, files)
    (tmp_path / FOLDER / name).unlink()
    text = message(tmp_path)
    assert text.startswith(f"{tmp_path / FOLDER / name}: no such file; expected ")


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda c: c[:-1], "expected a positive multiple of 3074, records of 2 label bytes and"),
        (lambda c: b"", "has 0 bytes; expected a positive multiple of 3074"),
        # Records of CIFAR-10, with one label.
        (lambda c: bytes(3073 * 5), "has 15365 bytes; expected a positive multiple of 3074"),
        (lambda c: b"\x14" + c[1:], "has the label 20; expected labels 0 to 19"),
        (lambda c: b"\x00\x64" + c[2:], "has the label 100; expected labels 0 to 99"),
    ],
)
def test_damaged_file(tmp_path, files, name, damage, expected):
    write_folder(tmp_path / FOLDER, files)
    path = tmp_path / FOLDER / name
    path.write_bytes(damage(path.read_bytes()))
    text = message(tmp_path)
    assert text.startswith(f"{path}: ")
    assert expected in text


@pytest.mark.parametrize("name", SIZES)
def test_file_cut_off_between_two_records(tmp_path, files, name):
    write_folder(tmp_path / FOLDER, files)
    path = tmp_path / FOLDER / name
    path.write_bytes(path.read_bytes()[:-3074])
    train, test = (SIZES[file] - (file == name) for file in SIZES)
    expected = f"holds {train} images, test.bin holds {test}; expected 5 times as many"
    assert message(tmp_path).startswith(f"{tmp_path / FOLDER / 'train.bin'}: {expected}")


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c[: len(c) // 2],
        lambda c: c[:-8] + bytes(8),
        lambda c: b"<html>not found</html>",
    ],
    ids=["half", "checksum", "html"],
)
def test_damaged_archive(tmp_path, files, damage):
    path = tmp_path / ARCHIVE
    write_archive(path, files)
    path.write_bytes(damage(path.read_bytes()))
    assert message(tmp_path).startswith(f"{path}: truncated or damaged archive")


def test_archive_that_lacks_a_file_or_holds_a_damaged_one(tmp_path, files):
    path = tmp_path / ARCHIVE
    write_archive(path, {"train.bin": files["train.bin"]})
    assert message(tmp_path).startswith(f"{path}: no file {FOLDER}/test.bin in the archive")
    images, coarse, _ = files["test.bin"]
    write_archive(path, files | {"test.bin": (images, coarse, np.full(len(images), 100))})
    assert message(tmp_path).startswith(f"{path} ({FOLDER}/test.bin): has the label 100")
