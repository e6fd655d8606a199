"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv 1605.07146)."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
from jaxtyping import Array, Float

from experiments.models.parts import batch_norm, check_depth, conv
from experiments.workdir.ranges import Natural, Part


class WideBlock(nn.Module):
    """Two 3x3 convolutions, normalised before each, beside a shortcut.

    Where the width changes, the shortcut is a projection of the normalised input.
    """

    features: int
    stride: int = 1
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b i j d"]:
        """Features (b, h / stride, w / stride, features), the sides rounded up."""
        y = nn.relu(batch_norm(train, "bn1")(x))
        shortcut = x
        if x.shape[-1] != self.features:
            shortcut = conv(self.features, 1, "convShortcut", self.stride)(y)
        y = conv(self.features, 3, "conv1", self.stride)(y)
        y = nn.relu(batch_norm(train, "bn2")(y))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return conv(self.features, 3, "conv2")(y) + shortcut


class WideResNet(nn.Module):
    """A 3x3 convolution, three stages of (depth - 4) / 6 blocks, mean of the map, linear layer.

    The width doubles and the map halves at the start of the second and the third stage. Layers are
    named as in PyTorch's WideResNet-pytorch: conv1, block1.layer.0/conv1, ..., bn1, fc. Parameters
    for ten classes and three input channels: 10,961,370 for WRN-16-8, 36,479,194 for WRN-28-10.

    Arguments:
        depth: number of convolutions, 10, 16, 22, ..., the three projections among them.
        factor: channels of the first stage, as a multiple of 16.
        classes: number of outputs.
        dropout: share of the features between a block's convolutions that training drops.

    Raises ValueError for another depth.
    """

    depth: Natural
    factor: Natural
    classes: int = 10
    dropout: Part = 0.0

    def __post_init__(self) -> None:
        """Check the depth."""
        check_depth(self.depth, 4)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b k"]:
        """Logits (b, classes) of images (b, h, w, c)."""
        x = conv(16, 3, "conv1")(x)
        for stage in range(3):
            for index in range((self.depth - 4) // 6):
                block = WideBlock(
                    16 * self.factor * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    dropout=self.dropout,
                    name=f"block{stage + 1}.layer.{index}",
                )
                x = block(x, train)
        x = nn.relu(batch_norm(train, "bn1")(x))
        return nn.Dense(self.classes, name="fc")(x.mean(axis=(1, 2)))


# Depth and factor by position: naming others is then refused.
WRN16_8 = partial(WideResNet, 16, 8)
