"""Files that would run a program, fill the memory or wait for ever."""

import gzip
import io
import os
import pickle
import re
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from photograph_trees import photograph, write_imagenet

from experiments.data import DataError, imagenet_files, load
from experiments.data.cifar import parse_python_batch
from experiments.data.idx import MNIST_HOME, read_idx
from experiments.data.photographs import read_photograph
from experiments.network.torch_weights import load_torch_npz

MEBIBYTE = 1 << 20


def refusal(read, *arguments):
    """What a reader says, which takes a few mebibytes at most to say it."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r".") as caught:
            read(*arguments)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * MEBIBYTE
    assert "\n" not in str(caught.value)
    return str(caught.value)


def idx(*shape):
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)


# ---------------------------------------------------------------- IDX


def test_no_more_of_gzip_data_is_unpacked_than_the_header_says(tmp_path):
    path = tmp_path / "images.gz"
    with gzip.open(path, "wb", 9) as file:
        file.write(idx(10, 16, 16))
        for _ in range(64):
            file.write(bytes(MEBIBYTE))
    assert "has more than 2576 bytes; expected 2576 bytes" in refusal(read_idx, path, 3, MNIST_HOME)


@pytest.mark.parametrize("wrap", [bytes, gzip.compress])
def test_a_header_that_asks_for_more_than_the_file_can_hold(tmp_path, wrap):
    path = tmp_path / "images"
    path.write_bytes(wrap(idx(60_000, 1000, 1000) + bytes(1000)))
    assert f"expected {16 + 60_000 * 10**6} bytes" in refusal(read_idx, path, 3, MNIST_HOME)


@pytest.mark.parametrize("form", ["pipe", "device", "folder"])
def test_what_is_no_file_is_not_waited_for(tmp_path, form):
    path = tmp_path / "a.jpg"
    {
        "pipe": os.mkfifo,
        "device": lambda place: os.symlink("/dev/zero", place),
        "folder": os.mkdir,
    }[form](path)
    assert "it is no regular file" in refusal(read_idx, path, 3, MNIST_HOME)
    assert "it is no regular file" in refusal(load_torch_npz, path, {"params": {}})
    pytest.importorskip("PIL.Image")
    assert "it is no regular file" in refusal(read_photograph, path, "example.org")
    for name in ("train-images-idx3-ubyte", "cifar-10-binary.tar.gz"):
        path.rename(tmp_path / name)
        path = tmp_path / name
    assert "CIFAR-10 is not in this folder" in refusal(load, "cifar10", tmp_path)
    assert "no such file" in refusal(load, "mnist", tmp_path)


# ---------------------------------------------------------------- archives


def archive(folder, members):
    """An archive of CIFAR-100 of (name, size that the header says, content)."""
    with gzip.open(folder / "cifar-100-binary.tar.gz", "wb", 1) as file:
        for name, size, content in members:
            info = tarfile.TarInfo(f"cifar-100-binary/{name}")
            info.size = size
            file.write(info.tobuf(tarfile.GNU_FORMAT) + content)
        file.write(bytes(1024))


def test_a_member_larger_than_any_published_file_is_not_unpacked(tmp_path):
    archive(tmp_path, [("train.bin", 10**12, bytes(MEBIBYTE))])
    text = refusal(load, "cifar100", tmp_path)
    assert "train.bin has 1,000,000,000,000 bytes" in text


def test_a_sparse_member_is_not_filled_with_zeros(tmp_path):
    sparse = tarfile.TarInfo("cifar-100-binary/train.bin")
    sparse.size, sparse.type = 512, tarfile.GNUTYPE_SPARSE
    header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    # One piece of 512 bytes at 0, and a terabyte in all.
    header[386:410] = b"%011o\0%011o\0" % (0, 512)
    header[482] = 0
    header[483:495] = b"\x80" + (10**12).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with gzip.open(tmp_path / "cifar-100-binary.tar.gz", "wb") as file:
        file.write(bytes(header) + bytes(512) + bytes(1024))
    assert "train.bin has 1,000,000,000,000 bytes" in refusal(load, "cifar100", tmp_path)


@pytest.mark.parametrize(
    ("kind", "content", "times"),
    [
        # A sparse file's map that is no number, a length of no machine, names without end.
        (tarfile.XHDTYPE, b"22 GNU.sparse.map=x,y\n", 1),
        (tarfile.XHDTYPE, b"99999999999999999999 a=b\n", 1),
        (tarfile.GNUTYPE_LONGNAME, b"name\0", 1000),
    ],
    ids=["sparse map", "length", "names"],
)
def test_damaged_headers_are_told_with_the_archive(tmp_path, kind, content, times):
    extended = tarfile.TarInfo("extended")
    extended.type, extended.size = kind, len(content)
    with gzip.open(tmp_path / "cifar-100-binary.tar.gz", "wb", 1) as file:
        for info in (*times * [extended], tarfile.TarInfo("cifar-100-binary/train.bin")):
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            if info is extended:
                file.write(content.ljust(512, b"\0"))
        file.write(bytes(1024))
    text = refusal(load, "cifar100", tmp_path)
    assert "cifar-100-binary.tar.gz: truncated or damaged archive" in text


def test_more_members_than_any_set_has(tmp_path):
    archive(tmp_path, [(f"{k}", 0, b"") for k in range(1001)])
    assert "more than 1000 members" in refusal(load, "cifar100", tmp_path)


def test_what_else_an_archive_holds_is_bounded(tmp_path, monkeypatch):
    # The bound of the published set, a hundred times smaller.
    from experiments.data import cifar

    form = cifar._BINARY_100._replace(most=MEBIBYTE)
    monkeypatch.setattr(cifar, "_BINARY_100", form)
    archive(tmp_path, [("more", 10 * MEBIBYTE, bytes(10 * MEBIBYTE))])
    assert "unpacked to more than 3,145,728 bytes" in refusal(load, "cifar100", tmp_path)
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    for name in form.files:
        (folder / name).write_bytes(bytes(MEBIBYTE + 1))
    assert "has more than 1,048,576 bytes" in refusal(load, "cifar100", tmp_path)


def test_a_pickle_that_asks_for_places_without_end():
    for place in (b"r\xff\xff\xff\xff", b"p99999999999\n"):
        content = pickle.dumps({"data": [1]}, protocol=2)[:-1] + place + b"."
        assert "it puts an object at place" in refusal(parse_python_batch, content, "batch")


# ---------------------------------------------------------------- photographs


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"


def png(width, height):
    """A file that says it has so many grey pixels, and holds a few."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*pair) for pair in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    )


def test_other_formats_are_not_handed_on(tmp_path, monkeypatch):
    images = pytest.importorskip("PIL.Image")
    called = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *given, **_: called.append(given))
    bitmap = io.BytesIO()
    images.fromarray(photograph(0, 8, 8)).save(bitmap, format="BMP")
    for content in (POSTSCRIPT, bitmap.getvalue(), b"GIF89a" + bytes(20)):
        path = tmp_path / "a.jpg"
        path.write_bytes(content)
        assert "a.jpg: cannot be read as an image" in refusal(read_photograph, path, "example.org")
    assert not called


@pytest.mark.parametrize("sides", [(60_000, 60_000), (12_000, 8_000), (101, 1), (1, 30_000)])
def test_pixels_are_counted_before_they_are_decoded(tmp_path, sides):
    pytest.importorskip("PIL.Image")
    path = tmp_path / "a.jpg"
    path.write_bytes(png(*sides))
    text = refusal(read_photograph, path, "example.org")
    assert re.search("a.jpg: cannot be read as an image .*(pixels|decompression bomb)", text)


def test_hidden_files_are_no_images(tmp_path):
    images = pytest.importorskip("PIL.Image")
    write_imagenet(tmp_path)
    before = imagenet_files(tmp_path, "train").files
    for name in ("._n01_0.JPEG", ".hidden.png"):
        (tmp_path / "train" / "n01" / name).write_bytes(b"Mac OS X")
    assert imagenet_files(tmp_path, "train").files == before
    os.mkfifo(tmp_path / "train" / "n01" / "zz.jpg")
    found = imagenet_files(tmp_path, "train")
    with pytest.raises(DataError, match=r"zz\.jpg: .*it is no regular file"):
        found[len(found) - 13]
    assert images


# ---------------------------------------------------------------- weights


def test_weights_are_read_only_where_they_fit(tmp_path):
    path, variables = tmp_path / "w.npz", {"params": {"fc": {"kernel": jnp.zeros((3, 2))}}}
    np.savez_compressed(path, **{"fc.weight": np.zeros((2048, 4096), np.float32)})
    text = refusal(load_torch_npz, path, variables)
    assert "fc.weight has shape (2048, 4096); the model needs (2, 3)" in text
    # A header that says what the model needs, in front of much more.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        content = io.BytesIO()
        np.lib.format.write_array(content, np.zeros((2, 3), np.float32))
        file.writestr("fc.weight.npy", content.getvalue() + bytes(16 * MEBIBYTE))
    assert "its header says" in refusal(load_torch_npz, path, variables)
