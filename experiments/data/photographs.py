"""Photographs in files as arrays of bytes, and what a network sees of them; by Pillow."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from experiments.data.errors import data_error
from tdjax.files import open_regular

# Eight bits for each channel; others, such as 16-bit grey, would be cut off at white.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
# Beyond it Pillow warns of files that are small and fill the memory.
_MOST_PIXELS = 89_478_485
_LONGEST = 100


def read_photograph(path: str | Path, home: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image file to red, green and blue, upright as its EXIF orientation says.

    Grey images become three equal channels, CMYK and palettes their colours; transparency is left
    out.

    Args:
        path: a file in JPEG or PNG, whatever its name.
        home: where the data set is published, for the error message.

    Returns:
        The pixels, uint8 (h, w, 3), not writable.

    Raises:
        DataError: the file is missing, damaged, in another format, has other than eight bits for
            each channel, more than `_MOST_PIXELS` pixels, or a side `_LONGEST` times the other.
        ImportError: Pillow is not installed.
    """
    images, operations = _pillow()
    try:
        # Other formats are handed on to other programs, PostScript to one that runs it.
        with open_regular(path) as raw, images.open(raw, formats=("JPEG", "PNG")) as file:
            _check_size(*file.size)
            if file.mode not in _MODES:
                raise ValueError(f"pixels of mode {file.mode}; expected 8 bits for each channel")
            file.load()
            upright = _upright(file, operations)
            # A palette with transparency goes to colours by way of RGBA only.
            if "transparency" in upright.info:
                upright = upright.convert("RGBA")
            return np.asarray(upright.convert("RGB"))
    # Damaged files fail in the decoders with nearly any type of exception.
    except Exception as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise data_error(path, f"cannot be read as an image ({reason})", home) from error


def _check_size(width: int, height: int) -> None:
    """Refuse, before it is decoded, what no camera takes and no memory holds."""
    if width * height > _MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels; expected {_MOST_PIXELS:,} at most")
    # Its shorter side would be made the view's, the other as much longer.
    if max(width, height) > _LONGEST * min(width, height):
        raise ValueError(f"{width} x {height} pixels; expected sides of a photograph")


def resized(
    image: UInt8[np.ndarray, "h w 3"], height: int, width: int
) -> UInt8[np.ndarray, "i j 3"]:
    """Resize an image, bilinear over the area that each new pixel covers.

    Args:
        image: uint8 (h, w, 3).
        height, width: the new sides, at least 1.

    Returns:
        uint8 (height, width, 3).

    Raises:
        ImportError: Pillow is not installed.
    """
    if image.shape[:2] == (height, width):
        return image
    images, _ = _pillow()
    return np.asarray(images.fromarray(image).resize((width, height), images.Resampling.BILINEAR))


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
    top, left = round((height - size) / 2), round((width - size) / 2)
    whole = resized(image, height, width)
    return np.ascontiguousarray(whole[top : top + size, left : left + size])


def _upright(image: Any, operations: ModuleType) -> Any:
    try:
        return operations.exif_transpose(image)
    # Metadata are damaged more often than pixels, and fail in as many ways.
    except Exception:
        return image


def _pillow() -> tuple[ModuleType, ModuleType]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("photographs are read with Pillow: install the extra 'images'") from error
    return Image, ImageOps
