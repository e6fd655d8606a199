"""GoogLeNet (Szegedy et al. 2015, arXiv 1409.4842), with batch normalisation as in torchvision."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from experiments.models.parts import batch_norm, conv
from experiments.workdir.ranges import Natural, Part

# The network came to torchvision from TensorFlow.
EPSILON = 1e-3

# Window of the max pool before each group of modules; then name and widths of each module.
GROUPS = (
    (3, (("3a", (64, 96, 128, 16, 32, 32)), ("3b", (128, 128, 192, 32, 96, 64)))),
    (
        3,
        (
            ("4a", (192, 96, 208, 16, 48, 64)),
            ("4b", (160, 112, 224, 24, 64, 64)),
            ("4c", (128, 128, 256, 24, 64, 64)),
            ("4d", (112, 144, 288, 32, 64, 64)),
            ("4e", (256, 160, 320, 32, 128, 128)),
        ),
    ),
    (2, (("5a", (256, 160, 320, 32, 128, 128)), ("5b", (384, 192, 384, 48, 128, 128)))),
)
# The modules behind which an auxiliary head stands.
HEADS = {"4a": "aux1", "4d": "aux2"}


class ConvNorm(nn.Module):
    """A convolution, its normalisation, ReLU."""

    features: int
    window: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b i j d"]:
        """Features (b, h / stride, w / stride, features), the sides rounded up."""
        x = conv(self.features, self.window, "conv", self.stride)(x)
        return nn.relu(batch_norm(train, "bn", EPSILON)(x))


class Inception(nn.Module):
    """Four branches beside each other: 1x1; 1x1 and 3x3, twice; a max pool and 1x1.

    The third branch has a 3x3 window, as in torchvision, where the paper has 5x5.

    Arguments:
        widths: channels of the first branch, two of the second, two of the third, the last.
    """

    widths: Sequence[int]

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h w d"]:
        """Features (b, h, w, d), d the sum of the branches' last widths."""
        first, middle, second, narrow, third, last = self.widths
        pooled = nn.max_pool(x, (3, 3), strides=(1, 1), padding=((1, 1), (1, 1)))
        branches = (
            ConvNorm(first, 1, name="branch1")(x, train),
            ConvNorm(second, 3, name="branch2.1")(
                ConvNorm(middle, 1, name="branch2.0")(x, train), train
            ),
            ConvNorm(third, 3, name="branch3.1")(
                ConvNorm(narrow, 1, name="branch3.0")(x, train), train
            ),
            ConvNorm(last, 1, name="branch4.1")(pooled, train),
        )
        return jnp.concatenate(branches, axis=-1)


class AuxiliaryHead(nn.Module):
    """A classifier on a map in the middle of the network."""

    classes: int
    width: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b k"]:
        """Logits (b, classes)."""
        x = ConvNorm(2 * self.width, 1, name="conv")(_means(x, 4), train)
        # PyTorch's order of the linear layer's inputs: its weights fit as they are.
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(16 * self.width, name="fc1")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes, name="fc2")(x)


class GoogLeNet(nn.Module):
    """Three convolutions, nine Inception modules, mean of the map, a linear layer.

    Layers are named as in torchvision: conv1/conv, ..., inception3a/branch1/conv, ..., fc.
    Parameters for 1000 classes and three input channels: 6,624,904, with the auxiliary heads
    13,004,888.

    Arguments:
        classes: number of outputs.
        width: channels of the first convolution, a multiple of 8; all others are in proportion.
        dropout: share of the linear layer's inputs that training drops; torchvision has 0.2.
        aux: with auxiliary heads. Their logits (b, classes) are sown into the collection
            "intermediates" as aux1_logits and aux2_logits; what is returned stays the same.
        aux_dropout: the same share in the heads; torchvision has 0.7.

    Raises ValueError for another width.
    """

    classes: int = 1000
    width: Natural = 64
    dropout: Part = 0.0
    aux: bool = False
    aux_dropout: Part = 0.0

    def __post_init__(self) -> None:
        """Check the width."""
        if self.width < 8 or self.width % 8:
            raise ValueError(f"width is {self.width}: known are multiples of 8")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b k"]:
        """Logits (b, classes) of images (b, h, w, c)."""
        x = ConvNorm(self.width, 7, 2, name="conv1")(x, train)
        x = ConvNorm(self.width, 1, name="conv2")(_max_pool(x, 3), train)
        x = ConvNorm(3 * self.width, 3, name="conv3")(x, train)
        for window, modules in GROUPS:
            x = _max_pool(x, window)
            for name, widths in modules:
                scaled = tuple(width * self.width // 64 for width in widths)
                x = Inception(scaled, name=f"inception{name}")(x, train)
                if self.aux and name in HEADS:
                    head = HEADS[name]
                    classify = AuxiliaryHead(self.classes, self.width, self.aux_dropout, name=head)
                    self.sow("intermediates", f"{head}_logits", classify(x, train))
        x = nn.Dropout(self.dropout, deterministic=not train)(x.mean(axis=(1, 2)))
        return nn.Dense(self.classes, name="fc")(x)


def _max_pool(x: Float[Array, "b h w c"], window: int) -> Float[Array, "b i j c"]:
    """Max pool with stride 2 whose last window may reach over the edge, PyTorch's `ceil_mode`."""
    height, width = ((0, max(window - n, (window - n) % 2)) for n in x.shape[1:3])
    return nn.max_pool(x, (window, window), strides=(2, 2), padding=(height, width))


def _means(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b side side c"]:
    """Means over side x side windows that cover the map evenly; PyTorch's `AdaptiveAvgPool2d`."""
    for axis in (1, 2):
        n = x.shape[axis]
        # From the rounded down start of each share to its rounded up end.
        windows = ((k * n // side, -(-(k + 1) * n // side)) for k in range(side))
        means = [lax.slice_in_dim(x, *window, axis=axis).mean(axis) for window in windows]
        x = jnp.stack(means, axis)
    return x
