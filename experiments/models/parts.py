"""What the networks share: their convolutions, their normalisations, the check of a depth."""

from __future__ import annotations

import flax.linen as nn

from experiments.models.convolution import convolve

# PyTorch's default, which it calls 0.1.
MOMENTUM = 0.9


def conv(features: int, window: int, name: str, stride: int = 1, use_bias: bool = False) -> nn.Conv:
    """A convolution of odd window; (b, h, w, c) to (b, h / stride, w / stride, features).

    The sides are rounded up. It pads both ends by half the window, as PyTorch's networks do, also
    where it takes strides.
    """
    return nn.Conv(
        features,
        (window, window),
        strides=stride,
        padding=window // 2,
        use_bias=use_bias,
        conv_general_dilated=convolve,
        name=name,
    )


def batch_norm(train: bool, name: str, epsilon: float = 1e-5) -> nn.BatchNorm:
    """A normalisation with PyTorch's defaults, which the weights of its networks expect."""
    return nn.BatchNorm(
        use_running_average=not train, momentum=MOMENTUM, epsilon=epsilon, name=name
    )


def check_depth(depth: int, rest: int) -> None:
    """Raise ValueError unless `depth` is 6 n + `rest` with n above 0."""
    if depth < 6 + rest or (depth - rest) % 6:
        known = ", ".join(str(6 * n + rest) for n in (1, 2, 3))
        raise ValueError(f"depth is {depth}: known are 6 n + {rest}, that is {known}, ...")
