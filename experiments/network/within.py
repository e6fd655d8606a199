"""Checkpoints within an epoch of training, for epochs of hours."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from experiments.network import checkpoints
from experiments.network.steps import Course
from experiments.network.training import Begun, Fit


@dataclass(frozen=True)
class Within:
    """The newest state of an epoch that is not at its end.

    Arguments:
        folder: where it is kept.
        every: steps between its checkpoints, counted from the epoch's start; None for none.
        steps: of an epoch.
    """

    folder: Path
    every: int | None
    steps: int

    def keep(self, begun: Begun) -> None:
        """Write a checkpoint where one is due."""
        taken = int(begun.taken)
        if self.every and taken % self.every == 0:
            number = int(np.max(begun.fit.epoch)) * self.steps + taken
            checkpoints.save(self.folder, number, begun)

    def newer(self, fit: Fit) -> Begun | None:
        """What was kept since a training was at `fit`; None where nothing was.

        Raises `checkpoints.CheckpointError` for a checkpoint that cannot be read.
        """
        course = Course(fit.model, fit.optimizer, jnp.zeros(len(fit.epoch), jnp.float32))
        like = Begun(fit, course, jnp.zeros((), jnp.int32))
        found = checkpoints.restore_latest(self.folder, like)
        if found is None or int(np.max(found[1].fit.epoch)) < int(np.max(fit.epoch)):
            return None
        return found[1]

    def remove(self) -> None:
        """Remove what was kept of a training that is at its end."""
        shutil.rmtree(self.folder, ignore_errors=True)
