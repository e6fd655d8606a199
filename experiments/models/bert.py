"""Encoders of sentences: BERT (Devlin et al. 2019, arXiv 1810.04805), its tokens averaged."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from experiments.workdir.ranges import Natural


class SentenceEncoder(nn.Module):
    """BERT without its pooler, the mean of its last tokens, divided by its norm.

    Its modules are called as those of the published PyTorch networks, as
    "encoder.layer.0/attention.self.query". The defaults are the sizes of MiniLM-L6 (Wang et al.
    2020, arXiv 2002.10957): 22,565,376 parameters, 10,616,832 of them in matrices of the blocks.

    Arguments:
        vocabulary: number of word pieces.
        width: of the tokens.
        depth: number of blocks.
        heads: of attention; they divide the width.
        hidden: width between the two dense layers of a block.
        places: longest sentence, in word pieces.
        epsilon: added to variances by the normalisations.
    """

    vocabulary: Natural = 30_522
    width: Natural = 384
    depth: Natural = 6
    heads: Natural = 12
    hidden: Natural = 1536
    places: Natural = 512
    epsilon: float = 1e-12

    @nn.compact
    def __call__(self, ids: Int[Array, "b t"], mask: Int[Array, "b t"]) -> Float[Array, "b w"]:
        """Unit vectors (b, width) of sentences (b, t); the mask is 0 where there is padding."""
        if ids.shape[1] > self.places:
            raise ValueError(
                f"{ids.shape[1]} word pieces; the encoder has places for {self.places}"
            )
        words = nn.Embed(self.vocabulary, self.width, name="embeddings.word_embeddings")(ids)
        places = nn.Embed(self.places, self.width, name="embeddings.position_embeddings")(
            jnp.arange(ids.shape[1])
        )
        kinds = nn.Embed(2, self.width, name="embeddings.token_type_embeddings")(
            jnp.zeros(1, ids.dtype)
        )
        x = nn.LayerNorm(self.epsilon, name="embeddings.LayerNorm")(words + places + kinds)
        seen = mask > 0
        for number in range(self.depth):
            block = Block(self.heads, self.hidden, self.epsilon, name=f"encoder.layer.{number}")
            x = block(x, seen)
        mean = jnp.sum(x * seen[..., None], axis=1) / jnp.maximum(
            seen.sum(axis=1, keepdims=True), 1
        )
        return mean / jnp.maximum(jnp.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


class Block(nn.Module):
    """Attention and two dense layers, each beside a skip connection and before a normalisation."""

    heads: int
    hidden: int
    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "b t w"], seen: Bool[Array, "b t"]) -> Float[Array, "b t w"]:
        """Tokens, as many and as wide as those that came in; those of padding go to none."""
        width = x.shape[-1]
        query, key, value = (
            nn.Dense(width, name=f"attention.self.{name}")(x).reshape(
                *x.shape[:2], self.heads, width // self.heads
            )
            for name in ("query", "key", "value")
        )
        mixed = nn.dot_product_attention(query, key, value, mask=seen[:, None, None, :])
        out = nn.Dense(width, name="attention.output.dense")(mixed.reshape(x.shape))
        x = nn.LayerNorm(self.epsilon, name="attention.output.LayerNorm")(x + out)
        wide = nn.gelu(nn.Dense(self.hidden, name="intermediate.dense")(x), approximate=False)
        out = nn.Dense(width, name="output.dense")(wide)
        return nn.LayerNorm(self.epsilon, name="output.LayerNorm")(x + out)
