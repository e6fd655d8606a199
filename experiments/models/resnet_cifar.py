"""The residual networks for CIFAR (He et al. 2016, arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from experiments.models.parts import batch_norm, check_depth, conv
from experiments.workdir.ranges import Natural


class CifarBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut that has no parameters (the paper's option A).

    Where the width or the map changes, the shortcut takes every `stride`-th pixel, and half of
    the channels it lacks are zeros before its own, half behind them.
    """

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b i j d"]:
        """Features (b, h / stride, w / stride, features), the sides rounded up."""
        y = conv(self.features, 3, "conv1", self.stride)(x)
        y = nn.relu(batch_norm(train, "bn1")(y))
        y = conv(self.features, 3, "conv2")(y)
        y = batch_norm(train, "bn2")(y)
        lacking = self.features - x.shape[-1]
        around = (lacking // 2, lacking - lacking // 2)
        shortcut = x[:, :: self.stride, :: self.stride]
        return nn.relu(y + jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), around)))


class CifarResNet(nn.Module):
    """A 3x3 convolution, three stages of (depth - 2) / 6 blocks, mean of the map, linear layer.

    The width doubles and the map halves at the start of the second and the third stage. Layers are
    named as in PyTorch's pytorch_resnet_cifar10: conv1, layer1.0/conv1, ..., linear. Parameters
    for ten classes and three input channels: 269,722 at depth 20, 853,018 at 56, 1,727,962 at 110.

    Arguments:
        depth: number of layers with weights, 8, 14, 20, ...
        classes: number of outputs.
        width: channels of the first stage.

    Raises ValueError for another depth.
    """

    depth: Natural
    classes: int = 10
    width: Natural = 16

    def __post_init__(self) -> None:
        """Check the depth."""
        check_depth(self.depth, 2)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b k"]:
        """Logits (b, classes) of images (b, h, w, c)."""
        x = conv(self.width, 3, "conv1")(x)
        x = nn.relu(batch_norm(train, "bn1")(x))
        for stage in range(3):
            for block in range((self.depth - 2) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                x = CifarBlock(self.width * 2**stage, stride, name=f"layer{stage + 1}.{block}")(
                    x, train
                )
        return nn.Dense(self.classes, name="linear")(x.mean(axis=(1, 2)))


# The depth by position: naming another one is then refused.
ResNet20 = partial(CifarResNet, 20)
ResNet56 = partial(CifarResNet, 56)
ResNet110 = partial(CifarResNet, 110)
