import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from plain_models import normal

from tdjax.moments.pairs import products_of
from tdjax.moments.patches import Patches
from tdjax.moments.pieces import taps_of

# Window, stride, padding, dilation, input dilation, groups, input size.
SETTINGS = {
    "same": ((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1, (6, 5)),
    "valid": ((3, 2), (1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), 1, (6, 5)),
    "pointwise": ((1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), (1, 1), 1, (6, 5)),
    "strided": ((3, 3), (2, 1), ((1, 1), (0, 1)), (1, 1), (1, 1), 1, (7, 6)),
    "even": ((2, 4), (2, 2), ((1, 0), (2, 1)), (1, 1), (1, 1), 1, (6, 8)),
    "dilated": ((3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2), (1, 1), 1, (6, 6)),
    "transposed": ((3, 3), (1, 1), ((2, 1), (2, 1)), (1, 1), (2, 2), 1, (4, 3)),
    "grouped": ((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 2, (5, 5)),
    "depthwise": ((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), (1, 1), 4, (5, 5)),
    "line": ((5,), (1,), ((4, 0),), (1,), (1,), 1, (9,)),
    "volume": ((2, 3, 2), (1, 1, 1), ((0, 1),) * 3, (1, 1, 1), (1, 1, 1), 1, (3, 4, 3)),
    "large": ((7, 7), (2, 2), ((3, 3), (3, 3)), (1, 1), (1, 1), 1, (12, 12)),
    "smaller than the window": ((5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1), (1, 1), 1, (2, 3)),
}
CHANNELS = 4


def out_size(size, window, stride, pad, dilation, input_dilation):
    wide = (size - 1) * input_dilation + 1 + sum(pad)
    return (wide - (window - 1) * dilation - 1) // stride + 1


def patches_of(setting):
    window, stride, padding, dilation, dilated, groups, sizes = setting
    taps = tuple(
        taps_of(n, out_size(n, w, s, p, d, i), w, stride=s, low=p[0], dilation=d, input_dilation=i)
        for n, w, s, p, d, i in zip(
            sizes, window, stride, padding, dilation, dilated, strict=True
        )
    )  # fmt: skip
    return Patches(taps, CHANNELS // groups, groups)


def explicit(x, setting):
    """All patches (n, groups, *window, channels of a group) by JAX, in float64."""
    window, stride, padding, dilation, dilated, groups, sizes = setting
    spatial = "XYZ"[: len(sizes)]
    numbers = ("N" + spatial + "C", spatial + "IO", "N" + spatial + "C")
    made = lax.conv_general_dilated_patches(
        x, window, stride, padding, dilated, dilation, dimension_numbers=numbers
    )
    made = np.asarray(made, np.float64).reshape(-1, CHANNELS, *window)
    made = made.reshape(-1, groups, CHANNELS // groups, *window)
    return np.moveaxis(made, 2, -1).reshape(made.shape[0], groups, -1)


@pytest.mark.parametrize("name", SETTINGS)
def test_sums_are_those_of_the_patches(name):
    setting = SETTINGS[name]
    patches = patches_of(setting)
    x = normal(0, 3, *setting[-1], CHANNELS)
    rows = explicit(x, setting)
    assert rows.shape[0] == 3 * patches.positions
    parts, total = jax.jit(patches.sums)(x)
    found = np.asarray(patches.assembled(parts))
    expected = np.einsum("ngc,ngd->gcd", rows, rows)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * scale)
    np.testing.assert_allclose(total, rows.sum(axis=0), rtol=0, atol=1e-4)


def test_axes_in_front_are_examples():
    patches, x = patches_of(SETTINGS["same"]), normal(0, 4, 6, 5, CHANNELS)
    parts, total = patches.sums(x)
    again, sums = patches.sums(x.reshape(2, 2, 6, 5, CHANNELS))
    np.testing.assert_allclose(total, sums, rtol=1e-6)
    for part, other in zip(parts, again, strict=True):
        np.testing.assert_allclose(part, other, rtol=1e-6)


def test_a_window_of_three_takes_the_work_of_thirteen_moments():
    patches = patches_of(((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1, (32, 32)))
    pixels = sum(
        len(rows.first) * len(columns.first) for rows, columns in products_of(patches.taps)
    )
    assert pixels <= 13 * 32 * 32


@pytest.mark.parametrize("window", [3, 5, 7])
def test_circular_padding_meets_pixels_again(window):
    side = window // 2
    taps = (taps_of(4, 4, window, low=side, border="circular"),)
    x = normal(1, 2, 4, CHANNELS)
    wide = np.asarray(jnp.pad(x, [(0, 0), (side, side), (0, 0)], mode="wrap"), np.float64)
    rows = np.stack(
        [wide[n, p : p + window].ravel() for n, p in itertools.product(range(2), range(4))]
    )
    patches = Patches(taps, CHANNELS)
    parts, total = patches.sums(x)
    np.testing.assert_allclose(patches.assembled(parts)[0], rows.T @ rows, atol=1e-4)
    np.testing.assert_allclose(total[0], rows.sum(axis=0), atol=1e-5)


def test_reflected_padding():
    taps = (taps_of(5, 5, 3, low=1, border="reflect"),)
    x = normal(1, 2, 5, CHANNELS)
    wide = np.asarray(jnp.pad(x, [(0, 0), (1, 1), (0, 0)], mode="reflect"), np.float64)
    rows = np.stack([wide[n, p : p + 3].ravel() for n, p in itertools.product(range(2), range(5))])
    patches = Patches(taps, CHANNELS)
    parts, _ = patches.sums(x)
    np.testing.assert_allclose(patches.assembled(parts)[0], rows.T @ rows, atol=1e-4)


def test_half_precision_is_raised():
    patches = patches_of(SETTINGS["same"])
    x = normal(0, 2, 6, 5, CHANNELS, dtype=jnp.bfloat16)
    parts, _ = patches.sums(x)
    assert all(part.dtype == jnp.float32 for part in parts)
