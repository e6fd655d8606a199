"""The uncompressed network: trained once, with a checkpoint to continue from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tdjax import checkpoints
from tdjax.data import Examples
from tdjax.study.bench import TRAIN, Bench, performance
from tdjax.study.progress import Progress
from tdjax.training import Fit, evaluate, fit_epochs, start_fit, steps_per_epoch


def train_baseline(bench: Bench, folder: Path) -> Fit:
    """Train, or train on from the newest checkpoint in `folder`; one run.

    Raises `tdjax.checkpoints.CheckpointError` for a checkpoint that cannot be read,
    FloatingPointError where the loss is not finite after the first epoch.
    """
    settings, splits = bench.protocol.train, bench.splits
    models = jax.tree.map(lambda leaf: leaf[None], bench.start)
    fit = start_fit(models, settings, steps_per_epoch(splits.train, settings))
    restored = checkpoints.restore_latest(folder, fit)
    if restored is not None:
        fit = restored[1]
    epoch = int(fit.epoch.max())
    with Progress("training epochs", settings.epochs, epoch) as progress:
        for trained in fit_epochs(
            fit,
            bench.network,
            settings,
            splits.train,
            splits.validation,
            jax.random.split(bench.key(TRAIN), 1),
            jnp.asarray(splits.black),
        ):
            fit, epoch = trained, epoch + 1
            if int(fit.best_epoch[0]) == 0:
                raise FloatingPointError(
                    "the validation cross-entropy is not finite after the first epoch; "
                    "a lower learning_rate may help"
                )
            if epoch % bench.protocol.checkpoint_every == 0 or epoch == settings.epochs:
                checkpoints.save(folder, epoch, fit)
            progress.advance(1)
    return fit


def baseline_record(bench: Bench, fit: Fit) -> dict[str, Any]:
    """The line of `metrics.jsonl` about the uncompressed network."""

    def measured(examples: Examples) -> dict[str, Any]:
        scores = evaluate(fit.best, bench.network, examples)
        return performance(scores, 0, len(examples.labels))

    return {
        "kind": "baseline",
        "params": bench.dense.size,
        "macs": bench.dense.macs,
        "epoch": int(fit.best_epoch[0]),
        "train": measured(bench.splits.train),
        "validation": measured(bench.splits.validation),
        "test": measured(bench.splits.test),
    }
