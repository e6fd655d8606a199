"""Records of networks as they are, and pruned, before and after training on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.compressibility.pruner import Cut, Pruner, kernels
from experiments.compressibility.settings import SEARCHED
from experiments.compressibility.trials import Trial
from experiments.compressibility.tune import tuned
from experiments.network.network import Subject
from experiments.network.train_on import scored
from experiments.network.training import Model
from tdjax.linen.removal import remove_dead
from tdjax.pruning.prunable import SCOPES


def measured(subject: Subject, model: Model) -> dict[str, Any]:
    """Performance on the test set: mean loss, and accuracy where classes are predicted."""
    found = scored(subject, model, subject.splits.test)
    result = {"loss": found["cross_entropy"], "count": found["count"]}
    return result if np.isnan(found["accuracy"]) else {**result, "accuracy": found["accuracy"]}


def baseline_record(subject: Subject, model: Model, epoch: int, run: int) -> dict[str, Any]:
    """A network as it is."""
    return {
        "kind": "baseline",
        "run": run,
        "params": subject.dense.size,
        "macs": subject.dense.macs,
        "epoch": epoch,
        "test": measured(subject, model),
    }


def pruned_record(
    subject: Subject, model: Model, pruner: Pruner, trial: Trial, run: int, cut: Cut
) -> dict[str, Any]:
    """A pruned network as it is.

    Where the share is not met exactly, or none was asked for, also what plain magnitude pruning
    keeps at the share that came out, by scope.
    """
    record = {
        "kind": "pruned",
        "run": run,
        **trial.fields,
        "setting": cut.setting,
        "pruned": cut.share,
        **_sizes(subject, model.state, cut.params),
        "test": measured(subject, Model(cut.params, model.state)),
    }
    if trial.share is None or trial.method in SEARCHED:
        record["rivals"] = {
            scope: measured(subject, Model(pruner.magnitude(cut.share, scope).params, model.state))
            for scope in SCOPES
        }
    return record


def tuned_record(
    subject: Subject, model: Model, trial: Trial, run: int, cut: Cut
) -> dict[str, Any]:
    """A pruned network trained on, its zeros kept."""
    # The same order of the data for all: methods differ in nothing else.
    epoch, best = tuned(subject, Model(cut.params, model.state), "pruned")
    test = measured(subject, best)
    return {"kind": "tuned", "run": run, **trial.fields, "epoch": epoch, "test": test}


def _sizes(subject: Subject, state: Mapping[str, Any], params: Any) -> dict[str, Any]:
    """What is left of a network without its dead neurons.

    Returns: "size", parameters that are stored, zeros too; "left", those that are no zeros of
    kernels; "gone", the share of all weights that are zero or belong to dead neurons.
    """
    small = remove_dead(subject.module, {**state, "params": params}, subject.sample)
    own = kernels(small.variables["params"]).values()
    size = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(small.variables["params"]))
    nonzero = sum(int(np.count_nonzero(array)) for array in own)
    return {
        "size": size,
        "left": size - sum(array.size for array in own) + nonzero,
        "gone": 1 - nonzero / sum(array.size for array in kernels(params).values()),
    }
