"""What a network sees of a photograph, in training and in evaluation."""

import math

import numpy as np
from jaxtyping import UInt8

from experiments.data.photographs import resized

# Random crops that do not fit are drawn again, so many times at most.
_ATTEMPTS = 10


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


def training_view(
    image: UInt8[np.ndarray, "h w 3"],
    rng: np.random.Generator,
    size: int = 224,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    flip: bool = True,
) -> UInt8[np.ndarray, "s s 3"]:
    """Cut a random window out, resize it, and mirror it by chance.

    The window's area is uniform and its aspect log-uniform in their ranges; where ten in a row do
    not fit into the image, the widest window in the middle that has an aspect in the range.

    Args:
        image: uint8 (h, w, 3).
        rng: where offsets, shapes and flips are drawn from.
        size: side of the view in pixels.
        area: range of the window's area as a share of the image's.
        aspect: range of the window's width over its height.
        flip: whether views are mirrored left to right with probability 1/2.

    Returns:
        uint8 (size, size, 3).

    Raises:
        ValueError: `size` is below 1, a range is not ascending, an area not in (0, 1], or an aspect
            not above 0.
        ImportError: Pillow is not installed.

    Source: Szegedy et al., "Going Deeper with Convolutions", 2015, section 6.
    """
    if size < 1:
        raise ValueError(f"size is {size}; expected 1 or more")
    if not 0 < area[0] <= area[1] <= 1:
        raise ValueError(f"area is {area}; expected an ascending range in (0, 1]")
    if not 0 < aspect[0] <= aspect[1] < math.inf:
        raise ValueError(f"aspect is {aspect}; expected an ascending range above 0")
    view = resized(_random_window(image, rng, area, aspect), size, size)
    return np.ascontiguousarray(view[:, ::-1]) if flip and rng.random() < 0.5 else view


def _random_window(
    image: UInt8[np.ndarray, "h w 3"],
    rng: np.random.Generator,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> UInt8[np.ndarray, "i j 3"]:
    rows, columns = image.shape[:2]
    for _ in range(_ATTEMPTS):
        pixels = rows * columns * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        height, width = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < height <= rows and 0 < width <= columns:
            top = int(rng.integers(rows - height + 1))
            left = int(rng.integers(columns - width + 1))
            return np.ascontiguousarray(image[top : top + height, left : left + width])
    ratio = min(max(columns / rows, aspect[0]), aspect[1])
    height = max(1, min(rows, round(columns / ratio)))
    width = max(1, min(columns, round(rows * ratio)))
    return _middle(image, height, width)


def _middle(
    image: UInt8[np.ndarray, "h w 3"], height: int, width: int
) -> UInt8[np.ndarray, "i j 3"]:
    top, left = (round((n - m) / 2) for n, m in zip(image.shape, (height, width), strict=False))
    return np.ascontiguousarray(image[top : top + height, left : left + width])
