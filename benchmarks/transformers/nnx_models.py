"""The language model again, in NNX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from benchmarks.transformers.models import EPSILON, MATRICES, LanguageModel


class NNXBlock(nnx.Module):
    """As `benchmarks.transformers.models.Block` with a causal mask."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs) -> None:
        """Of width and number of heads."""
        self.heads = heads
        for name in MATRICES[:3]:
            setattr(self, name, nnx.Linear(width, width, rngs=rngs))
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.widen = nnx.Linear(width, 4 * width, rngs=rngs)
        self.narrow = nnx.Linear(4 * width, width, rngs=rngs)
        self.before_attention = nnx.LayerNorm(width, epsilon=EPSILON, rngs=rngs)
        self.before_dense = nnx.LayerNorm(width, epsilon=EPSILON, rngs=rngs)

    def __call__(self, x: Float[Array, "b t w"]) -> Float[Array, "b t w"]:
        """Tokens, as many and as wide as those that came in."""
        normal = self.before_attention(x)
        heads = (*x.shape[:-1], self.heads, x.shape[-1] // self.heads)
        query, key, value = (getattr(self, name)(normal).reshape(heads) for name in MATRICES[:3])
        mask = nnx.make_causal_mask(x[..., 0])
        mixed = nnx.dot_product_attention(query, key, value, mask=mask).reshape(x.shape)
        x = x + self.out(mixed)
        return x + self.narrow(nnx.gelu(self.widen(self.before_dense(x))))


class NNXLanguageModel(nnx.Module):
    """As `benchmarks.transformers.models.LanguageModel`, of its sizes."""

    def __init__(self, sizes: LanguageModel, rngs: nnx.Rngs) -> None:
        """Of the sizes of a Linen model."""
        self.bytes = nnx.Embed(sizes.alphabet, sizes.width, rngs=rngs)
        self.places = nnx.Embed(sizes.places, sizes.width, rngs=rngs)
        self.depth = sizes.depth
        for number in range(sizes.depth):
            setattr(self, f"block{number}", NNXBlock(sizes.width, sizes.heads, rngs))
        self.last = nnx.LayerNorm(sizes.width, epsilon=EPSILON, rngs=rngs)

    def __call__(self, ids: Int[Array, "b t"]) -> Float[Array, "b t a"]:
        """Logits (b, t, alphabet) after each byte of texts (b, t)."""
        x = self.bytes(ids) + self.places(jnp.arange(ids.shape[1]))
        for number in range(self.depth):
            x = getattr(self, f"block{number}")(x)
        return self.bytes.attend(self.last(x))


def twin_of(model: LanguageModel, variables: Any) -> NNXLanguageModel:
    """The same network in NNX."""
    found = NNXLanguageModel(model, nnx.Rngs(0))
    _fill(found, variables["params"])
    return found


def _fill(module: Any, params: Mapping[str, Any]) -> None:
    for name, value in params.items():
        if isinstance(value, Mapping):
            _fill(getattr(module, name), value)
        else:
            # Of their own, so that the arrays of one network are not those of the other.
            setattr(module, name, nnx.Param(jnp.array(value)))
