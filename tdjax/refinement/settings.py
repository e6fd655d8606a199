"""How factors are refined: what is compared, what is trained, how and for how long."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optax
from jaxtyping import Array

from tdjax.hints import did_you_mean

# (outputs of the small network, of the dense one) -> losses of the examples.
Loss = str | Callable[[Any, Any], Any] | None
# (key, input of the model) -> another input of the same shapes.
Augment = Callable[[Array, Any], Any]
# Patterns of the modules whose outputs are matched, or what each of these counts.
Features = str | Sequence[str] | Mapping[str, float] | None

LOSSES = ("mse", "kl")
TRAINED = ("factors", "biases", "scales", "rest")
BATCH_STATS = ("frozen", "renewed")


@dataclass(frozen=True)
class Settings:
    """See `tdjax.refine`, whose arguments these are."""

    loss: Loss = "mse"
    temperature: float = 1.0
    features: Features = None
    trained: Sequence[str] = ("factors", "biases", "scales")
    optimizer: optax.GradientTransformation | None = None
    learning_rate: float | None = None
    epochs: int = 20
    batch_size: int = 32
    augment: Augment | None = None
    held_out: Any = 0.1
    patience: int | None = None
    batch_stats: str = "frozen"
    blocks: str | Sequence[str] | None = None
    block_epochs: int = 3
    mix: float = 0.0
    balance: bool = True
    memory: int = 2**32

    def __post_init__(self) -> None:
        """Refuse, with a ValueError, what contradicts itself."""
        _check_name("loss", self.loss, LOSSES)
        _check_name("batch_stats", self.batch_stats, BATCH_STATS)
        for name in [self.trained] if isinstance(self.trained, str) else self.trained:
            _check_name("trained", name, TRAINED)
        if not self.trained:
            raise ValueError("refine: trained names nothing: name some of " + ", ".join(TRAINED))
        if self.loss is None and not self.weights:
            raise ValueError("refine: with loss=None there is nothing to match: name features")
        if self.optimizer is not None and self.learning_rate is not None:
            raise ValueError(
                "refine: an optimizer has its own learning rate: leave learning_rate out, or the "
                "optimizer for Adam"
            )
        if self.mix and self.blocks is None:
            raise ValueError("refine: mix is of the inputs of blocks: pass blocks too")
        if self.epochs == 0 and self.blocks is None:
            raise ValueError("refine: no epochs: pass at least 1, or blocks")

    @property
    def weights(self) -> dict[str, float]:
        """What the outputs of modules count, by pattern."""
        if self.features is None:
            return {}
        if isinstance(self.features, Mapping):
            return dict(self.features)
        patterns = [self.features] if isinstance(self.features, str) else self.features
        return dict.fromkeys(patterns, 1.0)


def _check_name(argument: str, value: Any, known: Sequence[str]) -> None:
    if isinstance(value, str) and value not in known:
        raise ValueError(
            f"refine: {argument} {value!r}: known are {', '.join(known)}"
            f"{did_you_mean(value, known)}"
        )
