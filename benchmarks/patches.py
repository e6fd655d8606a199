"""Images as tokens, the way vision transformers begin."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Float


def patch_tokens(
    module: nn.Module, x: Float[Array, "b h w c"], width: int, side: int
) -> Float[Array, "b t d"]:
    """Squares of an image by one matrix, with something for each place: for compact modules.

    Arguments:
        module: that calls it, and holds "patches" and "places".
        x: images whose sides the squares' divides.
        width: of the tokens.
        side: of a square, in pixels.
    """
    sides = (side, side)
    x = nn.Conv(width, sides, strides=sides, padding="VALID", name="patches")(x)
    x = x.reshape(len(x), -1, width)
    places = nn.initializers.normal(0.02)
    found: Array = x + module.param("places", places, (1, *x.shape[1:]))
    return found
