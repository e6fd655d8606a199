"""How a network is trained, and the steps that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import optax

from experiments.workdir.fields import FieldError, Settings
from experiments.workdir.ranges import Epochs, Natural, OneOf, Part, Range, Rate


@dataclass(frozen=True, kw_only=True)
class FitSettings(Settings):
    """How a network is trained.

    Arguments:
        epochs: at most; 0 trains nothing.
        batch_size: examples a step; an incomplete last batch of an epoch is left out.
        optimizer: "sgd" (with momentum) or "adam".
        learning_rate: of the first epoch.
        boundaries: epochs at whose end the learning rate is multiplied by `factor`, ascending.
        factor: of the learning rate at each of `boundaries`.
        warmup: epochs at the start in which the learning rate rises from 0, linearly in steps.
        momentum: of "sgd".
        nesterov: whether the momentum of "sgd" is Nesterov's.
        weight_decay: added to the gradient, times the weight.
        best_by_metric: keep the first epoch of the best validation metric, such as accuracy, in
            place of that of the lowest validation loss; the loss decides where there is no metric.
        patience: epochs without a better one after which a run ends.
        augment: random crops and flips.

    Raises FieldError for values out of range.
    """

    epochs: Epochs
    batch_size: Natural = 128
    optimizer: Annotated[str, OneOf(("sgd", "adam"))] = "sgd"
    learning_rate: Rate = 0.1
    boundaries: tuple[Natural, ...] = ()
    factor: Rate = 0.1
    warmup: Epochs = 0
    momentum: Part = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Range(least=0, most=1000)] = 0.0
    best_by_metric: bool = False
    patience: Natural | None = None
    augment: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no training could use."""
        super().__post_init__()
        if self.boundaries != tuple(sorted(set(self.boundaries))):
            raise FieldError("boundaries", f"is {self.boundaries}: ascending epochs are needed")
        if any(epoch <= self.warmup for epoch in self.boundaries):
            raise FieldError(
                "boundaries", f"is {self.boundaries}: epochs behind warmup {self.warmup} are needed"
            )
        if self.nesterov and not (self.optimizer == "sgd" and self.momentum):
            raise FieldError(
                "nesterov",
                f"is True with optimizer {self.optimizer!r}, momentum {self.momentum}: it needs "
                "sgd and a momentum above 0",
            )

    @property
    def last_learning_rate(self) -> float:
        """The learning rate of the last epoch."""
        return self.learning_rate * self.factor ** sum(b < self.epochs for b in self.boundaries)

    def learning_rate_of(self, epoch: int, steps_per_epoch: int) -> float:
        """The learning rate of the last step of an epoch, the first being 1."""
        rate = self.learning_rate * self.factor ** sum(b < epoch for b in self.boundaries)
        if epoch > self.warmup:
            return rate
        return rate * (epoch * steps_per_epoch - 1) / (self.warmup * steps_per_epoch)

    def optimiser(self, steps_per_epoch: int) -> optax.GradientTransformation:
        """The optax transformation, its schedule counted in steps."""
        schedule = optax.piecewise_constant_schedule(
            self.learning_rate,
            {
                (epoch - self.warmup) * steps_per_epoch: self.factor
                for epoch in self.boundaries
                if epoch < self.epochs
            },
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
