"""How a network is trained, and the steps that follow from it."""

from __future__ import annotations

from dataclasses import dataclass

import optax


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How a network is trained.

    Arguments:
        epochs: at most; 0 trains nothing.
        batch_size: images a step; an incomplete last batch of an epoch is left out.
        optimizer: "sgd" (with momentum) or "adam".
        learning_rate: of the first epoch.
        boundaries: epochs at whose end the learning rate is multiplied by `factor`, ascending.
        factor: see `boundaries`.
        warmup: epochs at the start in which the learning rate rises from 0, linearly in steps.
        momentum: of "sgd".
        nesterov: whether the momentum of "sgd" is Nesterov's.
        weight_decay: added to the gradient, times the weight.
        patience: epochs without a lower validation loss after which a run ends.
        augment: random crops and flips.

    Raises ValueError for values out of range.
    """

    epochs: int
    batch_size: int = 128
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    boundaries: tuple[int, ...] = ()
    factor: float = 0.1
    warmup: int = 0
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    patience: int | None = None
    augment: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no training could use."""
        if self.optimizer not in ("sgd", "adam"):
            raise ValueError(f"optimizer {self.optimizer!r}: known are sgd, adam")
        if self.epochs < 0 or self.batch_size < 1 or not self.learning_rate > 0:
            raise ValueError(
                f"epochs {self.epochs}, batch_size {self.batch_size}, learning_rate "
                f"{self.learning_rate}: at least 0, at least 1 and above 0 are needed"
            )
        if self.boundaries != tuple(sorted({max(1, epoch) for epoch in self.boundaries})):
            raise ValueError(f"boundaries {self.boundaries}: ascending epochs from 1 are needed")
        if self.warmup < 0 or any(epoch <= self.warmup for epoch in self.boundaries):
            raise ValueError(
                f"warmup {self.warmup}, boundaries {self.boundaries}: at least 0, and boundaries "
                "after it, are needed"
            )
        if self.nesterov and not (self.optimizer == "sgd" and self.momentum):
            raise ValueError(
                f"nesterov with optimizer {self.optimizer!r}, momentum {self.momentum}: it needs "
                "sgd and a momentum above 0"
            )
        if not self.factor > 0 or not 0 <= self.momentum < 1 or not self.weight_decay >= 0:
            raise ValueError(
                f"factor {self.factor}, momentum {self.momentum}, weight_decay "
                f"{self.weight_decay}: above 0, in [0, 1) and at least 0 are needed"
            )
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience {self.patience}: at least 1, or None for no early stop")

    @property
    def last_learning_rate(self) -> float:
        """The learning rate of the last epoch."""
        return self.learning_rate * self.factor ** sum(b < self.epochs for b in self.boundaries)

    def optimiser(self, steps_per_epoch: int) -> optax.GradientTransformation:
        """The optax transformation, its schedule counted in steps."""
        schedule = optax.piecewise_constant_schedule(
            self.learning_rate,
            {(epoch - self.warmup) * steps_per_epoch: self.factor for epoch in self.boundaries},
        )
        if self.warmup:
            rising = self.warmup * steps_per_epoch
            start = optax.linear_schedule(0.0, self.learning_rate, rising)
            schedule = optax.join_schedules([start, schedule], [rising])
        if self.optimizer == "adam":
            update = optax.adam(schedule)
        else:
            update = optax.sgd(schedule, self.momentum or None, self.nesterov)
        return optax.chain(optax.add_decayed_weights(self.weight_decay), update)
