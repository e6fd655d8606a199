import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from photograph_trees import photograph

from experiments.data import evaluation_view, training_view

Image = pytest.importorskip("PIL.Image")


def places(height, width):
    """An image that says of each pixel where it is."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.arange(height)[:, None]
    image[..., 1] = np.arange(width)
    return image


@pytest.mark.parametrize(("height", "width"), [(60, 40), (40, 60), (33, 57), (48, 48), (20, 90)])
def test_evaluation_against_pillow(height, width):
    pixels = photograph(0, height, width)
    shorter = min(height, width)
    whole = Image.fromarray(pixels).resize(
        (int(36 * width / shorter), int(36 * height / shorter)), Image.Resampling.BILINEAR
    )
    left, top = round((whole.width - 28) / 2), round((whole.height - 28) / 2)
    expected = np.asarray(whole.crop((left, top, left + 28, top + 28)))
    np.testing.assert_array_equal(evaluation_view(pixels, 28, 36), expected)


def test_evaluation_by_hand():
    view = evaluation_view(places(30, 40), 24, 30)
    np.testing.assert_array_equal(view, places(30, 40)[3:27, 8:32])
    assert evaluation_view(photograph(1, 300, 500)).shape == (224, 224, 3)


def test_training_windows_are_uniform_and_mirrored_by_chance():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(600):
        # Windows of 8x8 pixels are a quarter of the image, and need no resizing.
        view = training_view(places(16, 16), rng, 8, area=(0.25, 0.25), aspect=(1.0, 1.0))
        mirrored = view[0, 0, 1] > view[0, -1, 1]
        upright = view[:, ::-1] if mirrored else view
        top, left = upright[0, 0, :2].astype(int)
        np.testing.assert_array_equal(upright, places(16, 16)[top : top + 8, left : left + 8])
        found.append((top, left, mirrored))
    tops, lefts, mirrored = np.array(found).T
    assert 240 < mirrored.sum() < 360
    for offsets in (tops, lefts):
        # 67 expected of each of nine.
        assert (np.bincount(offsets, minlength=9) > 35).all()
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.15


def test_no_flip():
    rng = np.random.default_rng(1)
    views = [training_view(places(16, 16), rng, 8, flip=False) for _ in range(30)]
    assert all(view[0, 0, 1] <= view[0, -1, 1] for view in views)


def test_areas_and_aspects_are_in_their_ranges():
    rng = np.random.default_rng(2)
    shares, ratios = [], []
    for _ in range(400):
        view = training_view(places(200, 200), rng, 200, area=(0.1, 0.6), aspect=(0.5, 2.0))
        # From the first to the last place is one pixel less than the window, whatever its size.
        height, width = (np.ptp(view[..., channel].astype(int)) + 1 for channel in (0, 1))
        shares.append(height * width / 200**2)
        ratios.append(math.log(width / height))
    assert 0.095 < min(shares) < 0.12
    assert 0.55 < max(shares) < 0.62
    # Uniform, but for windows that do not fit.
    assert abs(np.mean(shares) - 0.33) < 0.04
    assert abs(np.mean(ratios)) < 0.08
    assert abs(np.std(ratios) - math.log(4) / math.sqrt(12)) < 0.06
    assert -math.log(2) - 0.04 < min(ratios) < -0.6 < 0.6 < max(ratios) < math.log(2) + 0.04


@pytest.mark.parametrize(
    ("shape", "window"), [((10, 200), (slice(None), slice(94, 107))), ((200, 9), None)]
)
def test_windows_that_never_fit_are_in_the_middle(shape, window):
    rng = np.random.default_rng(3)
    view = training_view(places(*shape), rng, 10, area=(1.0, 1.0), flip=False)
    if window is None:
        window = slice(94, 106), slice(None)
    expected = np.asarray(
        Image.fromarray(np.ascontiguousarray(places(*shape)[window])).resize(
            (10, 10), Image.Resampling.BILINEAR
        )
    )
    np.testing.assert_array_equal(view, expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32))
def test_any_image_has_views(height, width, size, seed):
    pixels = photograph(seed, height, width)
    first, again = (training_view(pixels, np.random.default_rng(seed), size) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    for view in (first, evaluation_view(pixels, size, size + 2)):
        assert (view.shape, view.dtype) == ((size, size, 3), np.uint8)
        assert pixels.min() <= view.min() <= view.max() <= pixels.max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size is 0; expected 1 or more"),
        ({"area": (0.0, 1.0)}, r"area is \(0.0, 1.0\); expected an ascending range in \(0, 1\]"),
        ({"area": (0.5, 1.5)}, "area is"),
        ({"area": (0.6, 0.5)}, "area is"),
        ({"area": (math.nan, 0.5)}, "area is"),
        ({"aspect": (0.0, 1.0)}, "aspect is"),
        ({"aspect": (2.0, 1.0)}, "aspect is"),
        ({"aspect": (1.0, math.inf)}, "aspect is"),
    ],
)
def test_training_views_that_cannot_be_had(arguments, message):
    with pytest.raises(ValueError, match=message):
        training_view(places(8, 8), np.random.default_rng(0), **{"size": 4, **arguments})


@pytest.mark.parametrize(("size", "resize"), [(0, 4), (5, 4), (-1, -1)])
def test_evaluation_views_that_cannot_be_had(size, resize):
    with pytest.raises(ValueError, match=f"size is {size}, resize {resize}"):
        evaluation_view(places(8, 8), size, resize)
