"""Compressed networks refined without labels: what is asked for, the check of it, and the doing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from experiments.data import random_crop_flip
from experiments.network.calibrate import Batch, images_of
from experiments.network.forward import FunctionNetwork, Variables
from experiments.network.network import REFINE, Network
from experiments.network.train_on import named_key
from experiments.workdir.fields import FieldError, Settings
from experiments.workdir.ranges import Epochs, Natural, OneOf, Range, Rate, Wishes
from tdjax.dispatch.models import room_of
from tdjax.dispatch.refining import refine
from tdjax.files import one_line
from tdjax.plan.plan import Plan
from tdjax.refinement.blocks import matched
from tdjax.refinement.objective import Objective
from tdjax.refinement.settings import LOSSES
from tdjax.refinement.settings import Settings as Defaults

# The share of the images by which the best epoch is chosen.
HELD_OUT: float = Defaults.held_out


@dataclass(frozen=True, kw_only=True)
class RefineSettings(Settings):
    """Refinement of compressed networks without labels, see `tdjax.refine`.

    Each is fitted to the answers of the network before compression on its own calibration images,
    or the first of them if it saw none. A part of these is held out, by which the best epoch is
    chosen.

    Arguments:
        epochs: over the images; 0 leaves it out.
        batch_size: examples a step.
        learning_rate: of Adam, at its height; None for one that is found.
        loss: "mse", the mean square of the change of the outputs relative to their own, or "kl", of
            the probabilities of classes.
        temperature: divides the logits, for "kl".
        features: modules whose outputs are matched too, by patterns for `re.fullmatch` on their
            paths.
        augment: random crops and flips, where the training has them.
    """

    epochs: Epochs = 0
    batch_size: Natural = Defaults.batch_size
    learning_rate: Rate | None = None
    loss: Annotated[str, OneOf(LOSSES)] = str(Defaults.loss)
    temperature: Annotated[float, Range(least=1e-3, most=1e6)] = Defaults.temperature
    features: Wishes[str] = ()
    augment: bool = True

    @property
    def in_words(self) -> str:
        """What is done, for reports."""
        at = f" at temperature {self.temperature:g}" if self.loss == "kl" else ""
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        features = f" and mse of {', '.join(self.features)}" if self.features else ""
        return f"{epochs}, {self.loss}{at} of the outputs{features}"


@dataclass(frozen=True)
class Crops:
    """Random crops and flips, as in training; equal ones share programs.

    Arguments:
        fill: of the padding, by channel.
    """

    fill: tuple[float, ...]

    def __call__(self, key: Array, images: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Other images."""
        return random_crop_flip(key, images, fill=jnp.asarray(self.fill))


def check_refine(network: Network, settings: RefineSettings) -> None:
    """Refuse, before any work, what cannot be matched, or not on such inputs.

    Raises FieldError that names the field.
    """
    if not settings.epochs:
        return
    if settings.loss == "kl" and not network.settings.predicts_classes:
        problem = "is 'kl', which compares probabilities of classes, and there are none; use 'mse'"
        raise FieldError("refine.loss", problem)
    augment = _augment(network, settings)
    if augment is not None and getattr(network.sample, "ndim", 0) != 4:
        raise FieldError("refine.augment", "is True, but the inputs are no images; use False")
    if settings.features and isinstance(network.apply, FunctionNetwork):
        problem = f"is {settings.features}: a function has no modules; use ()"
        raise FieldError("refine.features", problem)
    subject = network.apply.subject(network.start)
    room = room_of(subject[0])
    try:
        found = matched("features", settings.features, room.module_paths(*subject))
        paths = tuple((path, 1.0) for own in found.values() for path in own)
        objective = Objective(settings.loss, settings.temperature, paths)
        dense, arrays = room.network_of(*subject)
        jax.eval_shape(lambda own: objective.ask(dense, own, network.sample), arrays)
    except (ValueError, re.error) as error:
        problem = one_line(error).removeprefix("refine: ")
        if settings.features:
            raise FieldError("refine.features", f"is {settings.features}: {problem}") from error
        raise FieldError("refine.epochs", f"is {settings.epochs}, but {problem}") from error


def refined(
    network: Network,
    model: Variables,
    small: Variables,
    plan: Plan,
    batches: Sequence[Batch],
    settings: RefineSettings,
    name: str,
) -> tuple[dict[str, Any], Variables]:
    """A compressed network fitted to what the one before compression answers.

    Arguments:
        model: before compression.
        small: its factors in place of kernels.
        batches: labels are not looked at.
        name: of the random streams.

    Returns what its record says of the way, and the network at its best.
    """
    options = {"features": settings.features} if settings.features else {}
    found = network.call(
        refine,
        model,
        network.apply.small(small, plan),
        plan,
        images_of(batches),
        loss=settings.loss,
        temperature=settings.temperature,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        held_out=HELD_OUT,
        learning_rate=settings.learning_rate,
        augment=_augment(network, settings),
        key=named_key(network.key(REFINE), name),
        progress=False,
        **options,
    )
    start, *epochs = found.curve
    curve = {
        "start": start.held_out,
        "train_loss": [epoch.training for epoch in epochs],
        "validation_loss": [epoch.held_out for epoch in epochs],
    }
    about = {"epoch": found.best, "learning_rate": found.learning_rate, "curve": curve}
    return about, network.apply.start(found.factors)


def _augment(network: Network, settings: RefineSettings) -> Crops | None:
    if not (settings.augment and network.settings.train.augment):
        return None
    return Crops(tuple(map(float, network.splits.black)))
