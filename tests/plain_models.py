"""Models that know nothing of this library, and values for them."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def normal(seed, *shape, dtype=np.float32):
    """Standard normal array; `jnp.asarray` would compile a program for each shape."""
    return jax.device_put(np.random.default_rng(seed).normal(size=shape).astype(dtype))


def scaled_normal(seed, shape, dtype):
    """Normal array for a parameter of this shape, scaled by the fan-in."""
    drawn = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return jax.device_put((drawn / math.sqrt(math.prod(shape[:-1]))).astype(dtype))


def random_variables(model, *sample):
    """Variables of a model, normal and scaled by the fan-in."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *sample)
    leaves, structure = jax.tree.flatten(shapes)
    arrays = [scaled_normal(k, leaf.shape, np.float32) for k, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, arrays)


class ConvNet(nn.Module):
    """Compact style, with batch statistics and dropout."""

    widths: Sequence[int] = (8, 12)
    classes: int = 5

    @nn.compact
    def __call__(self, x, train=False):
        for index, width in enumerate(self.widths):
            x = nn.Conv(width, (3, 3), strides=1 + index, padding=1, name=f"conv{index}")(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.5, name=f"norm{index}")(x)
            x = nn.relu(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(self.classes, name="head")(x.mean(axis=(1, 2)))


class Autoencoder(nn.Module):
    """Setup style, with methods beside `__call__`."""

    width: int = 6
    size: int = 10

    def setup(self):
        self.encoder = [nn.Dense(16), nn.Dense(self.width)]
        self.decoder = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(self.size)])

    def __call__(self, x):
        return self.decode(self.encode(x))

    def encode(self, x):
        for layer in self.encoder:
            x = nn.tanh(layer(x))
        return x

    def decode(self, z):
        return self.decoder(z)


class MLP(nn.Module):
    """Dense layers as a list says."""

    features: Sequence[int]

    @nn.compact
    def __call__(self, x):
        for index, width in enumerate(self.features):
            x = nn.Dense(width, name=f"dense{index}")(nn.tanh(x) if index else x)
        return x


class Shared(nn.Module):
    """One convolution on two maps of different size, called by keyword once."""

    @nn.compact
    def __call__(self, x):
        conv = nn.Conv(8, (3, 3), name="conv")
        large = conv(x)
        return conv(inputs=large[:, ::2, ::2]).mean(axis=(1, 2))


class Zoo(nn.Module):
    """Modules with weights that are no plain convolution or dense layer."""

    @nn.compact
    def __call__(self, tokens, train: bool):
        x = nn.Embed(11, 8, name="embed")(tokens)
        position = self.param("position", nn.initializers.zeros, (tokens.shape[1], 8))
        x = nn.LayerNorm(name="norm")(x + position)
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(x, deterministic=not train)
        x = nn.DenseGeneral((2, 4), name="general")(x).reshape(x.shape)
        x = nn.ConvTranspose(8, (3,), name="transpose")(x)
        x = nn.Conv(8, (3,), mask=jnp.ones((3, 8, 8)), name="masked")(x)
        Unused(name="unused")(x)
        return nn.Dense(3, name="head")(x)


class Unused(nn.Module):
    """Holds a layer that only initialisation calls."""

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(4, name="aside")
        if self.is_initializing():
            layer(x)
        return x


class Block(nn.Module):
    """A dense layer of the width of its input, and a residual connection."""

    @nn.compact
    def __call__(self, x, _: Any = None):
        x = x + nn.Dense(x.shape[-1], name="dense")(x)
        return x, None


class Scanned(nn.Module):
    """Three blocks whose kernels are one stacked array."""

    @nn.compact
    def __call__(self, x):
        stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = stack(name="stack")(x, None)
        return nn.Dense(4, name="head")(x)


class Transformed(nn.Module):
    """Blocks inside `nn.jit` and `nn.remat`, and a transformed class of layer."""

    @nn.compact
    def __call__(self, x):
        x, _ = nn.jit(Block)(name="jitted")(x)
        x, _ = nn.remat(Block)(name="saved")(x)
        return nn.remat(nn.Dense)(8, name="layer")(x)


class Classifier(nn.Module):
    """A head on a model given from outside."""

    backbone: nn.Module

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(nn.relu(self.backbone(x)))


class TwoConvs(nn.Module):
    """Three layers, easily done again by hand."""

    @nn.compact
    def __call__(self, x, scale: bool = False):
        x = nn.relu(nn.Conv(6, (3, 3), padding=1, name="first")(x))
        x = nn.relu(nn.Conv(5, (3, 3), strides=2, padding="VALID", name="second")(x))
        x = nn.Dense(4, name="head")(x.mean(axis=(1, 2)))
        return 2 * x if scale else x
