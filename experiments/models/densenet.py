"""DenseNet-BC for CIFAR (Huang et al. 2017, arXiv 1608.06993).

The "DenseNet22" of pruning and ALDS is one of these: it has bottlenecks, and halves the width.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from experiments.models.parts import batch_norm, check_depth, conv
from experiments.workdir.ranges import Natural, Part


class DenseLayer(nn.Module):
    """A 1x1 and a 3x3 convolution, normalised before each; the result joins the input."""

    growth: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h w d"]:
        """Features (b, h, w, c + growth), the input's first."""
        y = nn.relu(batch_norm(train, "bn1")(x))
        y = conv(4 * self.growth, 1, "conv1")(y)
        y = nn.relu(batch_norm(train, "bn2")(y))
        y = conv(self.growth, 3, "conv2")(y)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return jnp.concatenate((x, y), axis=-1)


class Transition(nn.Module):
    """A 1x1 convolution to half the width, and an average pool to half the map."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b i j d"]:
        """Features (b, h / 2, w / 2, c / 2), all rounded down."""
        y = nn.relu(batch_norm(train, "bn1")(x))
        y = conv(x.shape[-1] // 2, 1, "conv1")(y)
        return nn.avg_pool(y, (2, 2), strides=(2, 2))


class DenseNet(nn.Module):
    """A 3x3 convolution, three blocks of (depth - 4) / 6 dense layers, a linear layer.

    A transition stands between the blocks, normalisation and the mean of the map before the linear
    layer. Layers are named as in PyTorch's pytorch-classification: conv1, dense1.0/conv1, ...,
    trans1/conv1, ..., bn, fc. Parameters for ten classes and three input channels: 71,686 at depth
    22, 769,162 at depth 100, both with growth 12.

    Arguments:
        depth: number of layers with weights, 10, 16, 22, ...
        classes: number of outputs.
        growth: channels that each dense layer adds; the first convolution has twice as many.
        dropout: share of a dense layer's new features that training drops.

    Raises ValueError for another depth.
    """

    depth: Natural
    classes: int = 10
    growth: Natural = 12
    dropout: Part = 0.0

    def __post_init__(self) -> None:
        """Check the depth."""
        check_depth(self.depth, 4)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b k"]:
        """Logits (b, classes) of images (b, h, w, c)."""
        x = conv(2 * self.growth, 3, "conv1")(x)
        for block in range(1, 4):
            for index in range((self.depth - 4) // 6):
                x = DenseLayer(self.growth, self.dropout, name=f"dense{block}.{index}")(x, train)
            if block < 3:
                x = Transition(name=f"trans{block}")(x, train)
        x = nn.relu(batch_norm(train, "bn")(x))
        return nn.Dense(self.classes, name="fc")(x.mean(axis=(1, 2)))


# The depth by position: naming another one is then refused.
DenseNet22 = partial(DenseNet, 22)
