import gzip
import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest

from experiments.data import DataError, load
from experiments.data.cifar import CIFAR10_HOME, parse_python_batch

BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
FOLDERS = {"bin": "cifar-10-batches-bin", "py": "cifar-10-batches-py"}
ARCHIVES = {"bin": "cifar-10-binary.tar.gz", "py": "cifar-10-python.tar.gz"}


def file_name(form, batch):
    return f"{batch}.bin" if form == "bin" else batch


@pytest.fixture(scope="module")
def batches():
    """NHWC images and labels by batch; the test batch has another size than the others."""
    rng = np.random.default_rng(0)
    sizes = [4] * 5 + [3]
    return {
        name: (
            rng.integers(0, 256, (n, 32, 32, 3), np.uint8),
            rng.integers(0, 10, n).tolist(),
        )
        for name, n in zip(BATCHES, sizes, strict=True)
    }


def planes(image):
    return image[..., 0].tobytes() + image[..., 1].tobytes() + image[..., 2].tobytes()


def encode_binary(images, labels):
    return b"".join(
        bytes([label]) + planes(image) for image, label in zip(images, labels, strict=True)
    )


def encode_python(images, labels):
    data = np.frombuffer(b"".join(map(planes, images)), np.uint8).reshape(len(images), 3072)
    return pickle.dumps(
        {
            b"batch_label": b"training batch 1 of 5",
            b"labels": labels,
            b"data": data,
            b"filenames": [b"leptodactylus_pentadactylus_s_000004.png"] * len(labels),
        },
        protocol=2,
    )


ENCODE = {"bin": encode_binary, "py": encode_python}


def encode_as_python_2(images, labels):
    """The byte layout of the published pickles: str of Python 2, flags of dtype as integers."""

    def short(text):
        return b"U" + bytes([len(text)]) + text

    raw = b"".join(map(planes, images))
    return (
        b"\x80\x02}("
        + short(b"data")
        + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        + short(b"b")
        + b"\x87R(K\x01"
        + b"M" + struct.pack("<H", len(images)) + b"M" + struct.pack("<H", 3072) + b"\x86"
        + b"cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R"
        + b"(K\x03" + short(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + b"\x89T" + struct.pack("<I", len(raw)) + raw + b"tb"
        + short(b"labels") + b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
        + short(b"batch_label") + short(b"testing batch 1 of 1")
        + b"u."
    )  # fmt: skip


def write_folder(folder, form, batches, encode=None):
    folder.mkdir(exist_ok=True)
    for name, (images, labels) in batches.items():
        content = (encode or ENCODE[form])(images, labels)
        (folder / file_name(form, name)).write_bytes(content)


def write_archive(path, form, batches, prefix="", skip=()):
    with tarfile.open(path, "w:gz") as archive:
        folder = tarfile.TarInfo(prefix + FOLDERS[form])
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        extra = [("readme.html", b"<html></html>")]
        files = [
            (file_name(form, name), ENCODE[form](*batches[name])) for name in reversed(BATCHES)
        ]
        for name, content in files + extra:
            if name not in skip:
                member = tarfile.TarInfo(f"{prefix}{FOLDERS[form]}/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def check(raw, batches):
    images = np.concatenate([batches[name][0] for name in BATCHES[:5]])
    labels = np.concatenate([batches[name][1] for name in BATCHES[:5]])
    assert raw.num_classes == 10
    assert raw.train_images.dtype == raw.test_images.dtype == np.uint8
    assert raw.train_labels.dtype == raw.test_labels.dtype == np.int32
    np.testing.assert_array_equal(raw.train_images, images)
    np.testing.assert_array_equal(raw.train_labels, labels)
    np.testing.assert_array_equal(raw.test_images, batches["test_batch"][0])
    np.testing.assert_array_equal(raw.test_labels, batches["test_batch"][1])


def message(folder):
    with pytest.raises(DataError) as caught:
        load("cifar10", folder)
    text = str(caught.value)
    assert CIFAR10_HOME in text
    return text


@pytest.mark.parametrize("form", ["bin", "py"])
def test_folder_or_its_parent(tmp_path, batches, form):
    write_folder(tmp_path / FOLDERS[form], form, batches)
    check(load("cifar10", tmp_path), batches)
    check(load("cifar10", str(tmp_path / FOLDERS[form])), batches)


@pytest.mark.parametrize("form", ["bin", "py"])
def test_folder_under_another_name(tmp_path, batches, form):
    write_folder(tmp_path / "images", form, batches)
    check(load("cifar10", tmp_path / "images"), batches)


@pytest.mark.parametrize("form", ["bin", "py"])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_archive_is_read_in_place(tmp_path, batches, form, prefix):
    write_archive(tmp_path / ARCHIVES[form], form, batches, prefix)
    check(load("cifar10", tmp_path), batches)
    assert os.listdir(tmp_path) == [ARCHIVES[form]]


def test_pickles_of_python_2(tmp_path, batches):
    write_folder(tmp_path / FOLDERS["py"], "py", batches, encode_as_python_2)
    check(load("cifar10", tmp_path), batches)


def test_pickle_in_column_order_and_with_text_keys(batches):
    images, labels = batches["test_batch"]
    data = np.asfortranarray(images.transpose(0, 3, 1, 2).reshape(len(images), 3072))
    content = pickle.dumps({"data": data, "labels": labels}, protocol=2)
    np.testing.assert_array_equal(parse_python_batch(content, "batch")[0], images)


def test_nothing_there(tmp_path):
    text = message(tmp_path)
    assert str(tmp_path) in text
    for name in (*FOLDERS.values(), *ARCHIVES.values(), "data_batch_1.bin", "test_batch"):
        assert name in text


@pytest.mark.parametrize("form", ["bin", "py"])
def test_missing_batch(tmp_path, batches, form):
    folder = tmp_path / FOLDERS[form]
    write_folder(folder, form, batches)
    missing = folder / file_name(form, "data_batch_3")
    missing.unlink()
    text = message(tmp_path)
    assert text.startswith(f"{missing}: no such file; expected ")
    assert file_name(form, "data_batch_5") in text


def test_empty_folder_of_the_right_name(tmp_path):
    folder = tmp_path / FOLDERS["bin"]
    folder.mkdir()
    assert str(folder / "data_batch_1.bin") in message(folder)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda c: c[:-5], "has 12287 bytes; expected a positive multiple of 3073"),
        (lambda c: b"", "has 0 bytes; expected a positive multiple of 3073"),
        (lambda c: b"\x0b" + c[1:], "label 11; expected labels 0 to 9"),
        (lambda c: c[:3073], "holds 1 images, data_batch_1 holds 4; expected the same number"),
    ],
)
def test_damaged_binary_batch(tmp_path, batches, damage, expected):
    write_folder(tmp_path / FOLDERS["bin"], "bin", batches)
    path = tmp_path / FOLDERS["bin"] / "data_batch_2.bin"
    path.write_bytes(damage(path.read_bytes()))
    text = message(tmp_path)
    assert text.startswith(f"{path}: ")
    assert expected in text


DATA = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ([1, 2], "holds a list; expected a dict"),
        ({b"labels": [1, 2]}, "data is NoneType; expected a uint8 array of shape (n, 3072)"),
        ({b"data": b"x", b"labels": []}, "data is bytes; expected a uint8 array"),
        ({b"data": DATA[:, 1:], b"labels": [1, 2]}, "data is shape (2, 3071); expected"),
        ({b"data": DATA[0], b"labels": [1, 2]}, "data is shape (3072,); expected"),
        ({b"data": DATA[..., None], b"labels": [1, 2]}, "data is shape (2, 3072, 1); expected"),
        ({b"data": DATA, b"labels": [1]}, "has 1 labels; expected 2"),
        ({b"data": DATA}, "labels is no list of integers; expected 2"),
        ({b"data": DATA, b"labels": [1, "2"]}, "labels is no list of integers; expected 2"),
        ({b"data": DATA, b"labels": [1, 10]}, "label 10; expected labels 0 to 9"),
        ({b"data": DATA, b"labels": [-1, 10]}, "label -1; expected labels 0 to 9"),
        ({b"data": DATA, b"labels": [1, 2**40]}, f"label {2**40}; expected labels 0 to 9"),
        ({b"data": DATA.astype(np.float32), b"labels": [1, 2]}, "dtype 'f4' in place of uint8"),
        ({b"data": np.array([None]), b"labels": [1, 2]}, "dtype 'O8' in place of uint8"),
    ],
)
def test_pickle_of_something_else(tmp_path, batches, batch, expected):
    write_folder(tmp_path / FOLDERS["py"], "py", batches)
    path = tmp_path / FOLDERS["py"] / "test_batch"
    path.write_bytes(pickle.dumps(batch, protocol=2))
    text = message(tmp_path)
    assert text.startswith(f"{path}: ")
    assert expected in text


def test_empty_array_in_a_pickle():
    # Empty bytes are written as a call, which no published batch has.
    content = pickle.dumps({b"data": DATA[:0], b"labels": []}, protocol=2)
    with pytest.raises(DataError, match=r"__builtin__\.bytes"):
        parse_python_batch(content, "batch")
    content = pickle.dumps({b"data": DATA[:0], b"labels": []}, protocol=4)
    with pytest.raises(DataError, match=r"shape \(0, 3072\)"):
        parse_python_batch(content, "batch")


def test_pickle_cut_at_any_place_is_refused(batches):
    content = encode_python(*batches["test_batch"])
    for size in [*range(0, len(content), 97), len(content) - 1]:
        with pytest.raises(DataError, match=r"batch: not a readable batch .*expected a pickle"):
            parse_python_batch(content[:size], "batch")


@pytest.mark.parametrize("seed", range(20))
def test_pickle_with_flipped_bytes_gives_a_batch_or_a_data_error(batches, seed):
    content = bytearray(encode_as_python_2(*batches["test_batch"]))
    rng = np.random.default_rng(seed)
    # The head and the tail hold the structure, the middle only pixels.
    places = np.r_[0:140, len(content) - 60 : len(content)]
    content[rng.choice(places)] = rng.integers(256)
    try:
        images, labels = parse_python_batch(bytes(content), "batch")
    except DataError:
        return
    assert images.shape == (len(labels), 32, 32, 3)


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "arguments", "asks"),
    [
        (os.mkdir, ("pwned",), f"{os.name}.mkdir"),
        (eval, ("open('pwned', 'w')",), "eval"),
        (getattr, (1, "real"), "getattr"),
        (np.load, ("pwned",), "numpy.load"),
    ],
)
def test_malicious_pickle_is_refused_and_runs_nothing(
    tmp_path, monkeypatch, batches, protocol, function, arguments, asks
):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / FOLDERS["py"], "py", batches)
    path = tmp_path / FOLDERS["py"] / "data_batch_4"
    batch = {b"data": DATA, b"labels": [1, 2], b"x": Malicious(function, *arguments)}
    path.write_bytes(pickle.dumps(batch, protocol=protocol))
    text = message(tmp_path)
    assert text.startswith(f"{path}: ")
    assert "it asks for" in text
    if protocol:
        assert asks in text
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("form", ["bin", "py"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c[: len(c) // 2],
        lambda c: c[:-4],
        lambda c: c[:7],
        lambda c: b"",
        lambda c: c[:-8] + bytes(8),
        lambda c: b"<html>not found</html>",
        lambda c: gzip.compress(b"no tar file" * 100),
        lambda c: c[: len(c) // 2] + bytes(64) + c[len(c) // 2 + 64 :],
    ],
    ids=["half", "tail", "head", "empty", "checksum", "html", "no tar", "zeros"],
)
def test_damaged_archive(tmp_path, batches, form, damage):
    path = tmp_path / ARCHIVES[form]
    write_archive(path, form, batches)
    path.write_bytes(damage(path.read_bytes()))
    text = message(tmp_path)
    assert text.startswith(f"{path}: truncated or damaged archive")
    assert "expected a whole tar.gz file" in text


def test_archive_without_a_batch(tmp_path, batches):
    path = tmp_path / ARCHIVES["bin"]
    write_archive(path, "bin", batches, skip=["data_batch_2.bin"])
    text = message(tmp_path)
    assert text.startswith(f"{path}: no file cifar-10-batches-bin/data_batch_2.bin in the archive")


def test_damaged_batch_in_an_archive_is_named(tmp_path, batches):
    images, labels = batches["test_batch"]
    write_archive(
        tmp_path / ARCHIVES["bin"], "bin", batches | {"test_batch": (images, [10, *labels[1:]])}
    )
    text = message(tmp_path)
    assert f"{ARCHIVES['bin']} (cifar-10-batches-bin/test_batch.bin): has the label 10" in text
