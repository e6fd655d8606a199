"""A small vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929)."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Float

from benchmarks.patches import patch_tokens


class Block(nn.Module):
    """Attention and two dense layers, each behind a normalisation and beside a skip connection."""

    width: int
    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Tokens, as many and as wide as those that came in."""
        normal = nn.LayerNorm(name="before_attention")(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, name="attention")(normal)
        normal = nn.LayerNorm(name="before_dense")(x)
        wide = nn.gelu(nn.Dense(4 * self.width, name="widen")(normal))
        return x + nn.Dense(self.width, name="narrow")(wide)


class VisionTransformer(nn.Module):
    """Patches of an image as tokens, some blocks, the mean of the tokens, one linear layer.

    Arguments:
        classes: number of outputs.
        patch: side of a patch in pixels.
        width: of the tokens.
        depth: number of blocks.
        heads: of attention.
    """

    classes: int = 10
    patch: int = 4
    width: int = 64
    depth: int = 4
    heads: int = 2

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b k"]:
        """Logits (b, classes) of images (b, h, w, c) whose sides the patch divides."""
        x = patch_tokens(self, x, self.width, self.patch)
        for number in range(1, self.depth + 1):
            x = Block(self.width, self.heads, name=f"block{number}")(x)
        x = nn.LayerNorm(name="last")(x).mean(axis=1)
        return nn.Dense(self.classes, name="classifier")(x)
