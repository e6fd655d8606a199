"""Residual networks with projections (He et al. 2016, arXiv 1512.03385), names as in torchvision.

For ImageNet, and for small images with another stem.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
from jaxtyping import Array, Float

from experiments.models.parts import batch_norm, conv
from experiments.workdir.ranges import Natural


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b i j d"]:
        """Features (b, h / stride, w / stride, features)."""
        y = conv(self.features, 3, "conv1", self.stride)(x)
        y = nn.relu(batch_norm(train, "bn1")(y))
        y = conv(self.features, 3, "conv2")(y)
        y = batch_norm(train, "bn2")(y)
        return nn.relu(y + _projected(x, y, self.stride, train))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1, beside a shortcut; four times as wide behind it.

    The 3x3 convolution takes the strides, as in torchvision; in the paper the one before it does.
    """

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b i j d"]:
        """Features (b, h / stride, w / stride, 4 features)."""
        y = conv(self.features, 1, "conv1")(x)
        y = nn.relu(batch_norm(train, "bn1")(y))
        y = conv(self.features, 3, "conv2", self.stride)(y)
        y = nn.relu(batch_norm(train, "bn2")(y))
        y = conv(4 * self.features, 1, "conv3")(y)
        y = batch_norm(train, "bn3")(y)
        return nn.relu(y + _projected(x, y, self.stride, train))


def _projected(
    x: Float[Array, "b h w c"], like: Float[Array, "b i j d"], stride: int, train: bool
) -> Float[Array, "b i j d"]:
    """The shortcut of a block: the paper's option B, a projection where the shape changes."""
    if x.shape == like.shape:
        return x
    x = conv(like.shape[-1], 1, "downsample.0", stride)(x)
    return batch_norm(train, "downsample.1")(x)


class ResNet(nn.Module):
    """A convolution, a max pool, four stages of blocks, mean of the map, a linear layer.

    The width doubles and the map halves at the start of every stage but the first. Layers are
    named as in torchvision: conv1, layer1.0/conv1, ..., layer4.1/conv2, fc.

    Arguments:
        block: `BasicBlock` or `Bottleneck`.
        blocks: number of them in each stage.
        classes: number of outputs.
        width: features of the blocks of the first stage.
        small: the first convolution is 3x3 with stride 1, for small images; else 7x7 with stride 2.
    """

    block: Callable[..., nn.Module]
    blocks: Sequence[int]
    classes: int = 1000
    width: Natural = 64
    small: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b k"]:
        """Logits (b, classes) of images (b, h, w, c)."""
        window, stride = (3, 1) if self.small else (7, 2)
        x = conv(self.width, window, "conv1", stride)(x)
        x = nn.relu(batch_norm(train, "bn1")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, count in enumerate(self.blocks):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                block = self.block(self.width * 2**stage, stride, name=f"layer{stage + 1}.{index}")
                x = block(x, train)
        return nn.Dense(self.classes, name="fc")(x.mean(axis=(1, 2)))


# 11,173,962 parameters for ten classes and three input channels.
ResNet18 = partial(ResNet, BasicBlock, (2, 2, 2, 2), classes=10, small=True)
# 11,689,512 and 25,557,032 parameters for 1000 classes, as torchvision states.
ImageNetResNet18 = partial(ResNet, BasicBlock, (2, 2, 2, 2))
ResNet50 = partial(ResNet, Bottleneck, (3, 4, 6, 3))
