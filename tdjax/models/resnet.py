"""ResNet-18 (He et al. 2016, arXiv 1512.03385) with a stem for small images."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
from jaxtyping import Array, Float

from tdjax.models.convolution import convolve

BATCH_NORM_MOMENTUM = 0.9


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; names as in torchvision."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b i j d"]:
        """Features (b, h / stride, w / stride, features)."""
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=BATCH_NORM_MOMENTUM)
        conv = partial(
            nn.Conv, self.features, padding=1, use_bias=False, conv_general_dilated=convolve
        )
        shortcut = x
        y = conv((3, 3), strides=self.stride, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y))
        y = conv((3, 3), name="conv2")(y)
        y = norm(name="bn2")(y)
        if shortcut.shape != y.shape:
            shortcut = nn.Conv(
                self.features, (1, 1), strides=self.stride, use_bias=False, name="downsample.0"
            )(shortcut)
            shortcut = norm(name="downsample.1")(shortcut)
        return nn.relu(y + shortcut)


class ResNet18(nn.Module):
    """ResNet-18 whose first convolution is 3x3 with stride 1; its max pool stays.

    11,173,962 parameters for ten classes and three input channels. Layers are named as in
    torchvision: layer1.0/conv1 ... layer4.1/conv2.

    Arguments:
        classes: number of outputs.
        width: channels of the first stage.
    """

    classes: int = 10
    width: int = 64

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b k"]:
        """Logits (b, classes) of images (b, h, w, c)."""
        x = nn.Conv(self.width, (3, 3), padding=1, use_bias=False, name="conv1")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=BATCH_NORM_MOMENTUM, name="bn1")(x)
        x = nn.relu(x)
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage in range(4):
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                x = BasicBlock(self.width * 2**stage, stride, name=f"layer{stage + 1}.{block}")(
                    x, train
                )
        return nn.Dense(self.classes, name="fc")(x.mean(axis=(1, 2)))
