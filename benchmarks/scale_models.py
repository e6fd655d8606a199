"""Large transformers as shapes: what `benchmarks.scale` plans and counts, without any arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

import tdjax


@dataclass(frozen=True)
class Shape:
    """Sizes of a transformer.

    Arguments:
        width: of the residual stream.
        blocks, heads: their numbers.
        shared: heads of key and value, each shared by as many heads of the query.
        hidden: width between the two matrices of a block; three where it is gated.
        gated: whether it is one of Llama's: gated, no biases, RMS norms, tokens; else a vision
            transformer's: biases, layer norms, images of 224 x 224 in patches of 16 x 16.
        outputs: entries of the vocabulary, or classes.
        rows: tokens of one example.
    """

    width: int
    blocks: int
    heads: int
    shared: int
    hidden: int
    gated: bool
    outputs: int
    rows: int

    @property
    def sample(self) -> jax.ShapeDtypeStruct:
        """One example."""
        if self.gated:
            return jax.ShapeDtypeStruct((1, self.rows), jnp.int32)
        side = 16 * round(self.rows**0.5)
        return jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)


SHAPES: Mapping[str, Shape] = {
    "ViT-L/16": Shape(1024, 24, 16, 16, 4096, False, 1000, 196),
    "7 B": Shape(4096, 32, 32, 32, 11008, True, 32000, 2048),
    "70 B": Shape(8192, 80, 64, 8, 28672, True, 32000, 2048),
}


class Block(nn.Module):
    """Attention by four matrices, then two or three more."""

    shape: Shape

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Tokens to tokens."""
        own = self.shape
        size = own.width // own.heads

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, use_bias=not own.gated, name=name)

        def normed(x: Array, name: str) -> Array:
            return nn.RMSNorm(name=name)(x) if own.gated else nn.LayerNorm(name=name)(x)

        y = normed(x, "norm1")
        query = dense(own.width, "query")(y).reshape(*x.shape[:2], own.heads, size)
        key, value = (
            dense(own.shared * size, name)(y).reshape(*x.shape[:2], own.shared, size)
            for name in ("key", "value")
        )
        key, value = (jnp.repeat(one, own.heads // own.shared, axis=2) for one in (key, value))
        y = nn.dot_product_attention(query, key, value).reshape(x.shape)
        x = x + dense(own.width, "out")(y)
        y = normed(x, "norm2")
        if own.gated:
            y = nn.silu(dense(own.hidden, "gate")(y)) * dense(own.hidden, "up")(y)
        else:
            y = nn.gelu(dense(own.hidden, "up")(y))
        return x + dense(own.width, "down")(y)


class Transformer(nn.Module):
    """Tokens or images to logits, without the rotations of attention, which have no parameters."""

    shape: Shape

    @nn.compact
    def __call__(self, x: Int[Array, "b n"] | Float[Array, "b h w c"]) -> Float[Array, "b ..."]:
        """Logits: of each token, or of an image."""
        own = self.shape
        if own.gated:
            y = nn.Embed(own.outputs, own.width, name="embed")(x)
        else:
            y = nn.Conv(own.width, (16, 16), (16, 16), padding="VALID", name="patches")(x)
            y = y.reshape(len(y), -1, own.width)
            y = y + self.param("positions", nn.initializers.zeros, y.shape[1:])
        for number in range(own.blocks):
            y = Block(own, name=f"block{number}")(y)
        y = nn.RMSNorm(name="norm")(y) if own.gated else nn.LayerNorm(name="norm")(y).mean(axis=1)
        return nn.Dense(own.outputs, use_bias=not own.gated, name="head")(y)


@dataclass(frozen=True)
class Planned:
    """A model with its shapes, and the plan by low rank of the matrices of its blocks."""

    shape: Shape
    model: Transformer
    variables: Any
    plan: tdjax.Plan


def planned(shape: Shape, keep: float = 0.5) -> Planned:
    """A plan in which every matrix of the blocks keeps a share of its parameters."""
    model = Transformer(shape)
    variables = jax.eval_shape(model.init, jax.random.key(0), shape.sample)
    rules = [tdjax.Rule(path=r"block\d+/.*", method="svd", compression=1 - keep)]
    return Planned(shape, model, variables, tdjax.make_plan(model, variables, rules, shape.sample))
