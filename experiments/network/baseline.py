"""The uncompressed network: trained once, with a checkpoint to continue from."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.data import Examples
from experiments.network import checkpoints
from experiments.network.curves import epoch_record
from experiments.network.forward import Variables
from experiments.network.network import TRAIN, Network
from experiments.network.training import (
    Fit,
    evaluate,
    fit_epochs,
    is_over,
    performance,
    start_fit,
    steps_per_epoch,
)
from experiments.network.within import Within
from experiments.workdir.devices import gathered, on_all_devices, spread
from experiments.workdir.journal import Journal
from experiments.workdir.progress import progress_bar
from experiments.workdir.record_fields import Record
from tdjax.params.digests import tree_digest


def trained(
    network: Network, folder: Path, journal: Journal, number: int = 0
) -> tuple[Variables, int]:
    """The network before compression, with a first axis of one run, and its epoch.

    As it is where it is trained already; else trained, with checkpoints in `folder`.

    Arguments:
        journal: where each epoch is recorded.
        number: of the network, among those that are trained.

    Raises as `train_baseline` does.
    """
    if network.is_trained:
        return network.start.alone(), 0
    with on_all_devices():
        fit = train_baseline(network, folder, journal, number)
    return gathered(fit.best), int(fit.best_epoch[0])


def train_baseline(network: Network, folder: Path, journal: Journal, number: int = 0) -> Fit:
    """Train, or train on from the newest checkpoint in `folder`; one run, on all devices.

    An epoch is recorded before its checkpoint is written: a kill in between trains it again, and
    what is recorded stays.

    Raises `experiments.network.checkpoints.CheckpointError` for a checkpoint that cannot be read,
    FloatingPointError where the loss is not finite after the first epoch.
    """
    settings, splits = network.settings.train, network.splits
    steps = steps_per_epoch(splits.train, settings)
    fit = start_fit(network.start.alone(), settings)
    restored = checkpoints.restore_latest(folder, fit)
    if restored is None:
        # Said, because a folder that was removed or moved looks the same as a first start.
        told = f"no checkpoint in {folder}: training starts at its first epoch"
        print(told, file=sys.stderr)
    else:
        fit = restored[1]
    saved = int(fit.epoch.max())
    every = network.settings.checkpoint_steps
    within = Within(folder.with_name(f"{folder.name}-epoch"), every, steps)
    # Of a training that is over none is read: it may be half removed.
    begun = None if is_over(fit, settings) else within.newer(fit)
    fit, begun = spread((begun.fit if begun else fit, begun))
    epoch = int(fit.epoch.max())
    keys = jax.random.split(network.key(TRAIN), 1)
    what = f"training epochs, network {number}" if number else "training epochs"
    with progress_bar(what, settings.epochs, epoch) as progress:
        options = (network.apply, settings, splits, keys, network.judge, within.keep)
        for after in fit_epochs(begun or fit, *options):
            fit, epoch = after.fit, epoch + 1
            if int(fit.best_epoch[0]) == 0:
                raise FloatingPointError(
                    "the validation loss is not finite after the first epoch; "
                    "a lower learning_rate may help"
                )
            journal.append([epoch_record(after, settings, steps, number)])
            if epoch % network.settings.checkpoint_every == 0:
                checkpoints.save(folder, epoch, fit)
                saved = epoch
            progress.update(1)
    if epoch > saved:
        checkpoints.save(folder, epoch, fit)
    within.remove()
    return fit


def check_weights(record: Record, models: Variables) -> None:
    """Refuse to go on with another network than the one that a baseline's record is about.

    Raises ValueError where its weights are others. Records of earlier versions do not tell.
    """
    if record.get("weights", found := tree_digest(models)) != found:
        raise ValueError(
            f"{_named(record)} is not the one that was measured here: its checkpoint or its file "
            "of weights was lost or replaced; put it back, or use another workdir"
        )


def _named(record: Record) -> str:
    number = record.get("network", 0)
    return f"network {number} before compression" if number else "the network before compression"


def check_baseline(record: Record, network: Network) -> None:
    """Refuse a network that is no better than chance: what compression costs it says nothing.

    By chance it names the most frequent class, give or take two standard errors, or the mean.

    Arguments:
        record: of the network, see `baseline_record`.

    Raises ValueError for such a network.
    """
    labels, name = network.splits.test.labels, network.settings.metric_name
    chance = network.judge.chance(labels)
    accuracy = record["test"]["accuracy"]
    if chance is None or accuracy > chance:
        return
    what = "constant predictions have 0%"
    if chance:
        share = float(np.bincount(labels).max() / len(labels))
        what = f"the most frequent class has {share:.2%} of them"
    raise ValueError(
        f"{_named(record)} has an {name} of {accuracy:.2%} on {len(labels)} test "
        f"examples, {what}: no better than chance; train it longer or check weights, inputs and "
        "labels, or set poor_baseline to True to go on"
    )


def baseline_record(
    network: Network,
    models: Variables,
    epoch: int,
    subsets: Sequence[str] = ("train", "validation", "test"),
) -> dict[str, Any]:
    """The line of `metrics.jsonl` about the uncompressed network.

    Arguments:
        models: the network's variables, with a first axis of one run.
        epoch: the one that they are from.
        subsets: the sets of examples to measure on.
    """
    record = {
        "kind": "baseline",
        "params": network.dense.size,
        "macs": math.ceil(network.dense.macs),
        "epoch": epoch,
        "weights": tree_digest(models),
        "chance": network.judge.chance(network.splits.test.labels),
    }
    with on_all_devices():
        models = spread(models)
        for name in subsets:
            examples: Examples = getattr(network.splits, name)
            scores = evaluate(models, network.apply, examples, judge=network.judge)
            record[name] = performance(scores, 0, len(examples.labels))
    return record
