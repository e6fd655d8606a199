"""What a network sees of a photograph."""

import numpy as np
from jaxtyping import UInt8

from experiments.data.photographs import resized


def evaluation_view(
    image: UInt8[np.ndarray, "h w 3"], size: int = 224, resize: int = 256
) -> UInt8[np.ndarray, "s s 3"]:
    """Resize to a shorter side of `resize`, and cut the middle out.

    Args:
        image: uint8 (h, w, 3).
        size: side of the view in pixels.
        resize: the shorter side before the cut in pixels, `size` or more.

    Returns:
        uint8 (size, size, 3).

    Raises:
        ValueError: `size` is below 1, or `resize` below `size`.
        ImportError: Pillow is not installed.

    Source: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks",
    2012, section 2; the sides are rounded as in torchvision.
    """
    if not 1 <= size <= resize:
        raise ValueError(f"size is {size}, resize {resize}; expected size from 1 to resize")
    shorter = min(image.shape[:2])
    height, width = (side * resize // shorter for side in image.shape[:2])
    return _middle(resized(image, height, width), size, size)


def _middle(
    image: UInt8[np.ndarray, "h w 3"], height: int, width: int
) -> UInt8[np.ndarray, "i j 3"]:
    top, left = (round((n - m) / 2) for n, m in zip(image.shape, (height, width), strict=False))
    return np.ascontiguousarray(image[top : top + height, left : left + width])
