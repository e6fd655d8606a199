import sys

import numpy as np
import pytest
from photograph_trees import photograph

from experiments.data import DataError
from experiments.data.photographs import read_photograph, resized

Image = pytest.importorskip("PIL.Image")
HOME = "example.org/photographs"


def saved(path, image, **options):
    image.save(path, **options)
    return read_photograph(path, HOME)


def test_pixels_of_a_lossless_file(tmp_path):
    pixels = photograph(0, 21, 34)
    found = saved(tmp_path / "a.png", Image.fromarray(pixels))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pixels)


def test_pixels_of_a_jpeg(tmp_path):
    pixels = photograph(1, 40, 32)
    found = saved(tmp_path / "a.JPEG", Image.fromarray(pixels), quality=100, subsampling=0)
    assert found.shape == pixels.shape
    assert np.abs(found.astype(int) - pixels).max() <= 6


def test_grey_becomes_three_equal_channels(tmp_path):
    grey = photograph(2, 16, 24)[..., 0]
    expected = np.stack([grey] * 3, axis=-1)
    np.testing.assert_array_equal(saved(tmp_path / "a.png", Image.fromarray(grey)), expected)
    found = saved(tmp_path / "b.jpg", Image.fromarray(grey), quality=100)
    assert np.abs(found.astype(int) - expected).max() <= 3


def test_colours_of_cmyk(tmp_path):
    colours = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 90, 200]], np.uint8)
    pixels = colours.repeat(16, 0)[None].repeat(16, 0)
    found = saved(tmp_path / "a.jpg", Image.fromarray(pixels).convert("CMYK"), quality=100)
    assert np.abs(found.astype(int) - pixels).max() <= 6


def test_transparency_is_left_out(tmp_path):
    pixels = photograph(3, 12, 12)
    alpha = np.full((12, 12, 1), 40, np.uint8)
    image = Image.fromarray(np.concatenate([pixels, alpha], axis=-1))
    np.testing.assert_array_equal(saved(tmp_path / "a.png", image), pixels)
    palette = Image.fromarray(pixels).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    found = saved(tmp_path / "b.png", palette, transparency=bytes(range(16)))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: np.rot90(x, 2)),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.swapaxes(0, 1)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: np.rot90(x, 2).swapaxes(0, 1)),
        (8, lambda x: np.rot90(x, 1)),
    ],
)
def test_upright_as_exif_says(tmp_path, orientation, turned):
    pixels = photograph(4, 10, 17)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = saved(tmp_path / "a.png", Image.fromarray(pixels), exif=exif)
    np.testing.assert_array_equal(found, turned(pixels))


def test_broken_metadata_leave_the_pixels(tmp_path):
    pixels = photograph(5, 10, 17)
    exif = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08" + b"\xff" * 9
    np.testing.assert_array_equal(
        saved(tmp_path / "a.png", Image.fromarray(pixels), exif=exif), pixels
    )


def test_sixteen_bits_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.png: .*mode I;16; expected 8 bits.*example\.org"):
        saved(tmp_path / "a.png", Image.fromarray(np.full((4, 4), 40_000, np.uint16)))


@pytest.mark.parametrize("keep", [0, 10, 300, -5])
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_damaged_files_are_named(tmp_path, ending, keep):
    path = tmp_path / f"broken.{ending}"
    Image.fromarray(photograph(6, 60, 60)).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    if (ending, keep) == ("png", -5):
        # Only the end marker is cut off: every pixel is there.
        return
    with pytest.raises(DataError, match=rf"broken\.{ending}: cannot be read as an image"):
        read_photograph(path, HOME)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jpg: .*\(No such file or directory\)"):
        read_photograph(tmp_path / "gone.jpg", HOME)


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="extra 'images'"):
        read_photograph(tmp_path / "a.jpg", HOME)


def triangle(length, count):
    """Weights (count, length) of a triangle as wide as two new pixels, or two old ones."""
    scale = length / count
    width = max(scale, 1.0)
    centres = (np.arange(count) + 0.5) * scale
    apart = np.abs(np.arange(length) + 0.5 - centres[:, None]) / width
    weights = np.maximum(1 - apart, 0)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("shape", [(7, 9), (64, 40), (40, 64), (15, 31), (80, 80)])
def test_resizing_against_numpy(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    found = resized(pixels, *shape)
    rows, columns = triangle(40, shape[0]), triangle(64, shape[1])
    expected = np.einsum("ih,jw,hwc->ijc", rows, columns, pixels.astype(float))
    assert found.shape == (*shape, 3)
    # Each of two passes is rounded to bytes.
    assert np.abs(found - expected).max() <= 1.1
