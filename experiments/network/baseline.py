"""The uncompressed network: trained once, with a checkpoint to continue from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.data import DataSplits, Examples
from experiments.network import checkpoints
from experiments.network.training import (
    Fit,
    FitSettings,
    LinenNetwork,
    Model,
    evaluate,
    fit_epochs,
    performance,
    start_fit,
    steps_per_epoch,
)
from experiments.workdir.progress import Progress
from tdjax.plan.plan import Plan


@dataclass(frozen=True, eq=False)
class Training:
    """What a baseline is trained from.

    Arguments:
        start: the network's initial parameters.
        key: of the order of the data and of its augmentation.
        checkpoint_every: epochs between checkpoints.
    """

    network: LinenNetwork
    start: Model
    splits: DataSplits
    settings: FitSettings
    key: jax.Array
    checkpoint_every: int = 1


def train_baseline(training: Training, folder: Path) -> Fit:
    """Train, or train on from the newest checkpoint in `folder`; one run.

    Raises `experiments.network.checkpoints.CheckpointError` for a checkpoint that cannot be read,
    FloatingPointError where the loss is not finite after the first epoch.
    """
    settings, splits = training.settings, training.splits
    models = jax.tree.map(lambda leaf: leaf[None], training.start)
    fit = start_fit(models, settings, steps_per_epoch(splits.train, settings))
    restored = checkpoints.restore_latest(folder, fit)
    if restored is not None:
        fit = restored[1]
    epoch = int(fit.epoch.max())
    with Progress("training epochs", settings.epochs, epoch) as progress:
        for trained in fit_epochs(
            fit,
            training.network,
            settings,
            splits.train,
            splits.validation,
            jax.random.split(training.key, 1),
            jnp.asarray(splits.black),
        ):
            fit, epoch = trained, epoch + 1
            if int(fit.best_epoch[0]) == 0:
                raise FloatingPointError(
                    "the validation loss is not finite after the first epoch; "
                    "a lower learning_rate may help"
                )
            if epoch % training.checkpoint_every == 0 or epoch == settings.epochs:
                checkpoints.save(folder, epoch, fit)
            progress.advance(1)
    return fit


def baseline_record(
    network: LinenNetwork,
    splits: DataSplits,
    dense: Plan,
    models: Model,
    epoch: int,
    subsets: Sequence[str] = ("train", "validation", "test"),
) -> dict[str, Any]:
    """The line of `metrics.jsonl` about the uncompressed network.

    Arguments:
        dense: the plan that leaves every layer as it is, for counting.
        models: the network's parameters and state, with a first axis of one run.
        epoch: the one that they are from.
        subsets: the sets of examples to measure on.
    """

    def measured(examples: Examples) -> dict[str, Any]:
        scores = evaluate(models, network, examples)
        return performance(scores, 0, len(examples.labels))

    return {
        "kind": "baseline",
        "params": dense.size,
        "macs": dense.macs,
        "epoch": epoch,
        **{name: measured(getattr(splits, name)) for name in subsets},
    }
