"""A chain of dense layers."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Float

from experiments.workdir.ranges import Natural


class MLP(nn.Module):
    """Dense layers with ReLU between them, on images or rows of a table.

    Arguments:
        classes: number of outputs; 1 for a number to predict.
        widths: neurons of the hidden layers hidden1, hidden2, ...
    """

    classes: int = 10
    widths: tuple[Natural, ...] = (64, 64)

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], train: bool = False) -> Float[Array, "b k"]:
        """Outputs (b, classes) of inputs (b, ...), which are flattened."""
        x = x.reshape(x.shape[0], -1)
        for index, width in enumerate(self.widths, 1):
            x = nn.relu(nn.Dense(width, name=f"hidden{index}")(x))
        return nn.Dense(self.classes, name="output")(x)
