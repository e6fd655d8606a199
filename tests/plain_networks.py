"""Whole networks that know nothing of this library, as people write them."""

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx


class EncoderBlock(nn.Module):
    """Attention and a perceptron, each behind a normalisation and beside a shortcut."""

    heads: int
    causal: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        mask = nn.make_causal_mask(x[..., 0]) if self.causal else None
        y = nn.LayerNorm()(x)
        y = nn.MultiHeadDotProductAttention(self.heads, name="attention")(y, mask=mask)
        x = x + nn.Dropout(0.1, deterministic=not train)(y)
        y = nn.gelu(nn.Dense(2 * x.shape[-1], name="up")(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1], name="down")(y)


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions, blocks and a head."""

    width: int = 16
    heads: int = 2
    depth: int = 2
    classes: int = 5

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(self.width, (4, 4), strides=4, name="patches")(images)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        for k in range(self.depth):
            x = EncoderBlock(self.heads, name=f"block{k}")(x, train)
        return nn.Dense(self.classes, name="head")(nn.LayerNorm()(x)[:, 0])


class ScannedBlock(nn.Module):
    """A causal block as `nn.scan` wants it."""

    heads: int

    @nn.compact
    def __call__(self, x, _):
        return EncoderBlock(self.heads, causal=True, name="block")(x), None


class LanguageModel(nn.Module):
    """Tied embeddings around a scan over rematerialised causal blocks."""

    vocabulary: int = 24
    width: int = 16
    depth: int = 2

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(self.vocabulary, self.width, name="embed")
        x = embed(tokens) + nn.Embed(tokens.shape[1], self.width, name="positions")(
            jnp.arange(tokens.shape[1])
        )
        blocks = nn.scan(
            nn.remat(ScannedBlock),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth,
        )
        x, _ = blocks(2, name="blocks")(x, None)
        return embed.attend(nn.LayerNorm()(x))


class UNet(nn.Module):
    """Down by strides, up by transposed convolutions, shortcuts between."""

    widths: tuple[int, ...] = (8, 12)

    @nn.compact
    def __call__(self, x, train=False):
        kept, channels = [], x.shape[-1]
        for k, width in enumerate(self.widths):
            x = nn.Conv(width, (3, 3), name=f"down{k}")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, name=f"norm{k}")(x))
            kept.append(x)
            x = nn.Conv(width, (3, 3), strides=2, name=f"pool{k}")(x)
        for k, (width, shortcut) in reversed(list(enumerate(zip(self.widths, kept, strict=True)))):
            x = nn.ConvTranspose(width, (2, 2), strides=(2, 2), name=f"up{k}")(x)
            x = nn.relu(
                nn.Conv(width, (3, 3), name=f"merge{k}")(jnp.concatenate([x, shortcut], -1))
            )
        return nn.Conv(channels, (1, 1), name="out")(x)


class ResidualBlock(nn.Module):
    """Two convolutions and normalisations beside a shortcut, which a 1x1 convolution may widen."""

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x, train=False):
        def norm():
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)

        y = nn.Conv(self.width, (3, 3), strides=self.stride, use_bias=False)(x)
        y = nn.Conv(self.width, (3, 3), use_bias=False)(nn.relu(norm()(y)))
        y = norm()(y)
        if x.shape != y.shape:
            x = nn.Conv(self.width, (1, 1), strides=self.stride, use_bias=False, name="widen")(x)
            x = norm()(x)
        return nn.relu(x + y)


class ResidualNetwork(nn.Module):
    """A stem, residual blocks, the mean and a head."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3), use_bias=False, name="stem_conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        for width, stride in ((8, 1), (16, 2)):
            x = ResidualBlock(width, stride)(x, train)
        return nn.Dense(10)(x.mean(axis=(1, 2)))


class Classifier(nn.Module):
    """Two convolutions with average pools and two dense layers, the usual first network."""

    @nn.compact
    def __call__(self, x):
        for features in (8, 16):
            x = nn.avg_pool(nn.relu(nn.Conv(features, (3, 3))(x)), (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(32)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


class NnxBlock(nnx.Module):
    """`EncoderBlock` in NNX."""

    def __init__(self, width, heads, causal, rngs):
        self.causal = causal
        self.first, self.second = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs)

    def __call__(self, x):
        mask = nnx.make_causal_mask(x[..., 0]) if self.causal else None
        x = x + self.attention(self.first(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.second(x))))


class NnxLanguageModel(nnx.Module):
    """`LanguageModel` in NNX, with one block."""

    def __init__(self, rngs, vocabulary=24, width=16):
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.blocks = nnx.Sequential(NnxBlock(width, 2, True, rngs))
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, tokens):
        return self.embed.attend(self.norm(self.blocks(self.embed(tokens))))


class NnxVisionTransformer(nnx.Module):
    """`VisionTransformer` in NNX, with one block and the mean in place of a class token."""

    def __init__(self, rngs, width=16):
        self.patches = nnx.Conv(3, width, (4, 4), strides=4, rngs=rngs)
        self.blocks = nnx.Sequential(NnxBlock(width, 2, False, rngs))
        self.head = nnx.Linear(width, 5, rngs=rngs)

    def __call__(self, images):
        x = self.patches(images)
        x = self.blocks(x.reshape(x.shape[0], -1, x.shape[-1]))
        return self.head(x.mean(axis=1))
