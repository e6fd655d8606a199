"""The six-layer convolutional network of Garipov et al. 2016 (arXiv 1611.03214)."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Float

from experiments.models.parts import batch_norm
from experiments.workdir.ranges import Count, Natural


class GaripovNet(nn.Module):
    """Six 3x3 convolutions, two max pools, an average pool, a linear layer.

    BatchNorm and ReLU follow the first five convolutions. With the defaults and three input
    channels it has 557,642 parameters for ten classes.

    Arguments:
        classes: number of outputs.
        widths: channels of conv1 to conv6.
        pools: windows of the max pools after conv2 and conv4, with stride 2 and no padding; 0
            leaves one out.
        average: window and stride of the average pool; the mean where the map is smaller.
    """

    classes: int = 10
    widths: tuple[Natural, ...] = (64, 64, 128, 128, 128, 128)
    pools: tuple[Count, ...] = (3, 3)
    average: Natural = 4

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b k"]:
        """Logits (b, classes) of images (b, h, w, c)."""
        pools = dict(zip((2, 4), self.pools, strict=True))
        for index, width in enumerate(self.widths, 1):
            x = nn.Conv(width, (3, 3), padding=1, name=f"conv{index}")(x)
            if index < len(self.widths):
                x = nn.relu(batch_norm(train, f"norm{index}")(x))
            window = pools.get(index, 0)
            if window:
                x = nn.max_pool(x, (window, window), strides=(2, 2))
        rest = (min(self.average, x.shape[1]), min(self.average, x.shape[2]))
        x = nn.avg_pool(x, rest, strides=rest)
        return nn.Dense(self.classes, name="linear")(x.reshape(x.shape[0], -1))
