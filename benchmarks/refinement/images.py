"""Images as networks take them, changed at random for training."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from experiments.data.augment import random_crop_flip

# Of pixels from 0 to 1, by channel.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def standardised(images: UInt8[np.ndarray, "n h w 3"] | Array) -> Float[Array, "n h w 3"]:
    """Pixels of mean 0 and deviation 1."""
    return (jnp.asarray(images, jnp.float32) / 255 - jnp.asarray(MEAN)) / jnp.asarray(DEVIATION)


def augmented(key: PRNGKeyArray, images: Float[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
    """Random crops of images with a black border, every other mirrored."""
    black = -jnp.asarray(MEAN) / jnp.asarray(DEVIATION)
    return random_crop_flip(key, images, fill=black)
