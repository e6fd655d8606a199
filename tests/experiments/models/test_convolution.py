import jax
import numpy as np
import pytest
from jax import lax
from plain_models import normal

from experiments.models.convolution import convolve

# Shape of the images, of the kernel, strides, padding, other options.
SETTINGS = [
    ((2, 2, 2, 3), (3, 3, 3, 4), (1, 1), ((1, 1), (1, 1)), {}),
    ((2, 4, 4, 3), (3, 3, 3, 4), (2, 2), ((1, 1), (1, 1)), {}),
    ((2, 5, 3, 3), (4, 3, 3, 4), (2, 1), "SAME", {}),
    ((2, 4, 4, 3), (3, 3, 3, 4), (1, 1), "VALID", {}),
    ((2, 3, 3), (5, 3, 4), (1,), ((0, 4),), {}),
    ((2, 8, 8, 3), (3, 3, 3, 4), (1, 1), "SAME", {}),
    ((2, 2, 2, 4), (3, 3, 2, 4), (1, 1), "SAME", {"feature_group_count": 2}),
    ((2, 3, 3, 3), (2, 2, 3, 4), (1, 1), "VALID", {"rhs_dilation": (2, 2)}),
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_equals_the_convolution_of_jax(setting, count_macs):
    shape, kernel_shape, strides, padding, options = setting
    images, kernel = normal(0, *shape), normal(1, *kernel_shape)
    numbers = lax.conv_dimension_numbers(
        shape, kernel_shape, ("NHWC", "HWIO", "NHWC") if len(shape) == 4 else ("NWC", "WIO", "NWC")
    )
    options = {**options, "dimension_numbers": numbers}

    def expected(images, kernel):
        return lax.conv_general_dilated(images, kernel, strides, padding, **options)

    def found(images, kernel):
        return convolve(images, kernel, strides, padding, **options)

    np.testing.assert_allclose(found(images, kernel), expected(images, kernel), atol=1e-5)
    assert count_macs(found, images, kernel) == count_macs(expected, images, kernel)
    for argument in (0, 1):
        slopes = [
            jax.grad(lambda *args, f=f: (f(*args) ** 2).sum(), argument)(images, kernel)
            for f in (found, expected)
        ]
        np.testing.assert_allclose(*slopes, rtol=1e-4, atol=1e-4)
