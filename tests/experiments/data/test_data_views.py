import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from photograph_trees import photograph

from experiments.data import evaluation_view

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


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32))
def test_any_image_has_a_view(height, width, size, seed):
    pixels = photograph(seed, height, width)
    view = evaluation_view(pixels, size, size + 2)
    assert (view.shape, view.dtype) == ((size, size, 3), np.uint8)
    assert pixels.min() <= view.min() <= view.max() <= pixels.max()


@pytest.mark.parametrize(("size", "resize"), [(0, 4), (5, 4), (-1, -1)])
def test_evaluation_views_that_cannot_be_had(size, resize):
    with pytest.raises(ValueError, match=f"size is {size}, resize {resize}"):
        evaluation_view(places(8, 8), size, resize)
