"""Two small transformers of the same blocks: one for text (GPT-2's form), one for images."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from benchmarks.patches import patch_tokens

# Of each block, in the order in which they are called; the first three have one input.
MATRICES = ("query", "key", "value", "out", "widen", "narrow")
EPSILON = 1e-6


class Block(nn.Module):
    """Attention and two dense layers, each behind a normalisation and beside a skip connection."""

    heads: int
    causal: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b t w"]) -> Float[Array, "b t w"]:
        """Tokens, as many and as wide as those that came in."""
        width = x.shape[-1]
        normal = nn.LayerNorm(EPSILON, name="before_attention")(x)
        heads = (*x.shape[:-1], self.heads, width // self.heads)
        query, key, value = (
            nn.Dense(width, name=name)(normal).reshape(heads) for name in MATRICES[:3]
        )
        mask = nn.make_causal_mask(x[..., 0]) if self.causal else None
        mixed = nn.dot_product_attention(query, key, value, mask=mask).reshape(x.shape)
        x = x + nn.Dense(width, name="out")(mixed)
        normal = nn.LayerNorm(EPSILON, name="before_dense")(x)
        return x + nn.Dense(width, name="narrow")(
            nn.gelu(nn.Dense(4 * width, name="widen")(normal))
        )


class LanguageModel(nn.Module):
    """Logits of the next byte of ASCII text, by the embedding of bytes.

    The defaults have 786,432 parameters in the 24 matrices of the blocks.

    Arguments:
        width: of the tokens.
        depth: number of blocks.
        heads: of attention; they divide the width.
        places: longest text.
        alphabet: number of bytes.
    """

    width: int = 128
    depth: int = 4
    heads: int = 4
    places: int = 128
    alphabet: int = 128

    @nn.compact
    def __call__(self, ids: Int[Array, "b t"]) -> Float[Array, "b t a"]:
        """Logits (b, t, alphabet) after each byte of texts (b, t)."""
        bytes_ = nn.Embed(self.alphabet, self.width, name="bytes")
        places = nn.Embed(self.places, self.width, name="places")(jnp.arange(ids.shape[1]))
        x = bytes_(ids) + places
        for number in range(self.depth):
            x = Block(self.heads, causal=True, name=f"block{number}")(x)
        return bytes_.attend(nn.LayerNorm(EPSILON, name="last")(x))


class DigitsTransformer(nn.Module):
    """Logits of digits of 8x8 pixels, by the mean of tokens, each of a square of 2x2 pixels.

    The defaults have 196,608 parameters in the 24 matrices of the blocks.

    Arguments:
        width: of the tokens.
        depth: number of blocks.
        heads: of attention; they divide the width.
    """

    width: int = 64
    depth: int = 4
    heads: int = 4

    @nn.compact
    def __call__(self, x: Float[Array, "b 8 8 1"]) -> Float[Array, "b 10"]:
        """Logits (b, 10) of images (b, 8, 8, 1)."""
        x = patch_tokens(self, x, self.width, side=2)
        for number in range(self.depth):
            x = Block(self.heads, causal=False, name=f"block{number}")(x)
        return nn.Dense(10, name="classifier")(nn.LayerNorm(EPSILON, name="last")(x).mean(axis=1))
