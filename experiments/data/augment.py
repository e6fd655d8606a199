"""Random crops and flips of images, in JAX."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


@partial(jax.jit, static_argnames=("padding", "flip"))
def random_crop_flip(
    key: PRNGKeyArray,
    images: Float[Array, "n h w c"],
    padding: int = 4,
    flip: bool = True,
    fill: Float[Array, "c"] | None = None,
) -> Float[Array, "n h w c"]:
    """Pad each image, crop a random window of its first size, and mirror every other by chance.

    Args:
        key: random key; offsets and flips are drawn for each image on its own.
        images: images of any float dtype.
        padding: pixels added on each side; static. 0 leaves the window in place.
        flip: whether images are mirrored left to right with probability 1/2; static.
        fill: the padding's value by channel, such as a black pixel after standardisation; zeros if
            None.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ValueError: `padding` is negative.

    Source: He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2.
    """
    if padding < 0:
        raise ValueError(f"padding is {padding}; expected 0 or more")
    n, height, width, channels = images.shape
    crop_key, flip_key = jax.random.split(key)
    offsets = jax.random.randint(crop_key, (n, 2), -padding, padding + 1)
    rows = offsets[:, :1] + jnp.arange(height)
    columns = jnp.arange(width)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, 0.5, (n, 1))
        columns = jnp.where(mirrored, columns[::-1], columns)
    columns = offsets[:, 1:] + columns

    # One gather from the images as they are, with the padding put in afterwards: on the CPU a few
    # percent faster than slices of padded images, and the fill is not limited to one number.
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
        :, None, :
    ]
    gathered = images.at[
        jnp.arange(n)[:, None, None],
        jnp.clip(rows, 0, height - 1)[:, :, None],
        jnp.clip(columns, 0, width - 1)[:, None, :],
    ].get(mode="promise_in_bounds")
    outside = jnp.zeros(channels) if fill is None else fill
    return jnp.where(inside[..., None], gathered, outside.astype(images.dtype))
