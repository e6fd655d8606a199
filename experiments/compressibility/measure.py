"""Records of networks as they are, and pruned, before and after training on, zeros kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.compressibility.layers import kernels
from experiments.compressibility.pruner import Cut, Pruner
from experiments.compressibility.settings import SEARCHED
from experiments.compressibility.trials import Trial
from experiments.network.network import Network
from experiments.network.schedule import FitSettings
from experiments.network.train_on import scored, trained_on
from experiments.network.training import Variables
from tdjax.linen.removal import remove_dead
from tdjax.pruning.masks import keep_zeros
from tdjax.pruning.prunable import SCOPES, WEIGHTS, names_of


def measured(network: Network, model: Variables) -> dict[str, Any]:
    """Performance on the test set: mean loss, and accuracy where classes are predicted."""
    found = scored(network, model, network.splits.test)
    result = {"loss": found["cross_entropy"], "count": found["count"]}
    return result if np.isnan(found["accuracy"]) else {**result, "accuracy": found["accuracy"]}


def baseline_record(network: Network, model: Variables, epoch: int, run: int) -> dict[str, Any]:
    """A network as it is."""
    return {
        "kind": "baseline",
        "run": run,
        "params": network.dense.size,
        "macs": network.dense.macs,
        "epoch": epoch,
        "test": measured(network, model),
    }


def pruned_record(pruner: Pruner, trial: Trial, run: int, cut: Cut) -> dict[str, Any]:
    """A pruned network as it is.

    Where the share is not met exactly, or none was asked for, also what plain magnitude pruning
    keeps at the share that came out, by scope.
    """
    network, state = pruner.layers.network, pruner.layers.model.state
    record = {
        "kind": "pruned",
        "run": run,
        **trial.fields,
        "setting": cut.setting,
        "pruned": cut.share,
        **_sizes(network, state, cut.params),
        "test": measured(network, Variables(cut.params, state)),
    }
    if trial.share is None or trial.method in SEARCHED:
        rivals = {scope: pruner.magnitude(cut.share, scope).params for scope in SCOPES}
        record["rivals"] = {
            scope: measured(network, Variables(params, state)) for scope, params in rivals.items()
        }
    return record


def tuned_record(pruner: Pruner, trial: Trial, run: int, cut: Cut) -> dict[str, Any]:
    """A pruned network trained on, its zeros kept."""
    network, state = pruner.layers.network, pruner.layers.model.state
    # The same order of the data for all: methods differ in nothing else.
    epoch, best = tuned(network, Variables(cut.params, state), "pruned")
    test = measured(network, best)
    return {"kind": "tuned", "run": run, **trial.fields, "epoch": epoch, "test": test}


@dataclass(frozen=True, kw_only=True)
class MaskedFit(FitSettings):
    """Training in which weights that are zero at its start stay so."""

    def optimiser(self, steps_per_epoch: int) -> optax.GradientTransformation:
        """As of `FitSettings`, with no updates of such weights."""
        return optax.chain(super().optimiser(steps_per_epoch), keep_zeros(present))


def present(params: Any) -> Any:
    """A mask that is False where a weight of a kernel is zero; biases and scales are True."""

    def one(path: Any, leaf: Any) -> Any:
        is_kernel = names_of(path)[-1:] in [(name,) for name in WEIGHTS] and leaf.ndim > 1
        return leaf != 0 if is_kernel else jnp.ones(leaf.shape, bool)

    return jax.tree_util.tree_map_with_path(one, params)


def tuned(network: Network, model: Variables, name: str) -> tuple[int, Variables]:
    """Train a pruned network on; the best epoch, and the network there.

    Arguments:
        name: of the random stream of the order of the data.
    """
    after = network.settings.finetune_fit
    settings = MaskedFit(**{f.name: getattr(after, f.name) for f in dataclasses.fields(after)})
    return trained_on(network, model, network.apply, settings, name)


def _sizes(network: Network, state: Mapping[str, Any], params: Any) -> dict[str, Any]:
    """What is left of a network without its dead neurons.

    Returns: "size", parameters that are stored, zeros too; "left", those that are no zeros of
    kernels; "gone", the share of all weights that are zero or belong to dead neurons.
    """
    small = remove_dead(network.module, Variables(params, state).collections, network.sample)
    own = kernels(small.variables["params"]).values()
    size = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(small.variables["params"]))
    nonzero = sum(int(np.count_nonzero(array)) for array in own)
    return {
        "size": size,
        "left": size - sum(array.size for array in own) + nonzero,
        "gone": 1 - nonzero / sum(array.size for array in kernels(params).values()),
    }
