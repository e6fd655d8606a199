"""A small transformer that reads padded texts, once for each module system."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import nnx

TOKENS, WIDTH, HEADS, LONGEST = 11, 8, 2, 12
LENGTHS = (3, 5, 1, 6)


def texts(length, lengths=LENGTHS, *, filler=0, seed=0):
    """Some texts, padded: (tokens, mask)."""
    rng = np.random.default_rng(seed)
    tokens = np.full((len(lengths), length), filler)
    for row, number in zip(tokens, lengths, strict=True):
        row[:number] = rng.integers(1, TOKENS, LONGEST)[:number]
    return tokens, (np.arange(length) < np.array(lengths)[:, None]).astype(np.float32)


class Reader(nn.Module):
    """Logits for every token; real ones never see padding. Positions are looked up once."""

    @nn.compact
    def __call__(self, tokens, mask):
        table = nn.Embed(LONGEST, WIDTH, name="positions")(jnp.arange(tokens.shape[1]))
        x = nn.Embed(TOKENS, WIDTH, name="words")(tokens)
        x = x + nn.Dense(WIDTH, name="places")(table)
        pairs = nn.make_attention_mask(mask > 0, mask > 0)
        x = x + nn.MultiHeadDotProductAttention(HEADS, name="attention")(x, mask=pairs)
        flat = nn.gelu(nn.Dense(16, name="up")(x).reshape(-1, 16))
        x = x + nn.Dense(WIDTH, name="down")(flat).reshape(x.shape)
        return nn.Dense(TOKENS, name="head")(x)


class NnxReader(nnx.Module):
    """The same for NNX."""

    def __init__(self, rngs):
        self.words = nnx.Embed(TOKENS, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(LONGEST, WIDTH, rngs=rngs)
        self.places = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            HEADS, in_features=WIDTH, qkv_features=WIDTH, decode=False, rngs=rngs
        )
        self.up = nnx.Linear(WIDTH, 16, rngs=rngs)
        self.down = nnx.Linear(16, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, TOKENS, rngs=rngs)

    def __call__(self, tokens, mask):
        x = self.words(tokens) + self.places(self.positions(jnp.arange(tokens.shape[1])))
        x = x + self.attention(x, mask=nnx.make_attention_mask(mask > 0, mask > 0))
        flat = nnx.gelu(self.up(x).reshape(-1, 16))
        x = x + self.down(flat).reshape(x.shape)
        return self.head(x)
