"""VGG-16 with batch normalisation for CIFAR (Simonyan and Zisserman 2015, arXiv 1409.1556)."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Float

from experiments.models.parts import batch_norm, conv
from experiments.workdir.ranges import Natural

# Widths of the five stages, as multiples of the first, and their numbers of convolutions.
STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions in five stages, a max pool behind each, one linear layer.

    The ImageNet network's two wide linear layers are left out, as in the PyTorch networks that
    pruning and ALDS are compared on: 14,728,266 parameters for ten classes and three input
    channels. Layers are named as there, in PyTorch's pytorch-classification: features.0 (a
    convolution), features.1 (its normalisation), features.3, ..., features.40, classifier.
    Images of 32x32 leave one pixel before the linear layer; of larger maps it takes the mean.

    Arguments:
        classes: number of outputs.
        width: channels of the first stage.
    """

    classes: int = 10
    width: Natural = 64

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b k"]:
        """Logits (b, classes) of images (b, h, w, c).

        Raises ValueError for images whose shorter side is below 32.
        """
        height, width = x.shape[1:3]
        if min(height, width) < 32:
            raise ValueError(f"images are {height}x{width}: five max pools need 32x32 or more")
        # PyTorch's numbering counts the activations and the max pools too.
        place = 0
        for multiple, count in STAGES:
            for _ in range(count):
                x = conv(multiple * self.width, 3, f"features.{place}", use_bias=True)(x)
                x = nn.relu(batch_norm(train, f"features.{place + 1}")(x))
                place += 3
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
            place += 1
        return nn.Dense(self.classes, name="classifier")(x.mean(axis=(1, 2)))
