"""Networks pruned, measured as they are, and after training on, zeros kept."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.compressibility.layers import Layers, kernels
from experiments.compressibility.settings import MAGNITUDE, SEARCHED, Trial
from experiments.network.forward import Variables
from experiments.network.network import Network
from experiments.network.schedule import FitSettings
from experiments.network.train_on import scored, trained_on
from tdjax.moments.collect import LayerMoments
from tdjax.params.tree import join_path
from tdjax.pruning.backward import lasso_prune
from tdjax.pruning.magnitude import adaptive_prune, magnitude_prune, pq_prune, tail_prune
from tdjax.pruning.masks import apply_mask, keep_zeros
from tdjax.pruning.prunable import SCOPES, WEIGHTS
from tdjax.trace.names import Names, names_of

# Powers of ten between which penalties and tolerances are searched, the halvings at most, and how
# near a share must come.
POWERS = (-9.0, 4.0)
HALVINGS = 16
NEAR = 0.005


@dataclass(frozen=True)
class Cut:
    """A pruned network.

    Arguments:
        params: with zeros where weights went.
        share: of all weights, that went.
        setting: eta, penalty or tolerance that was used; None where there is none, or the method
            finds it by itself.
    """

    params: Any
    share: float
    setting: float | None = None


@dataclass(frozen=True, eq=False)
class Pruner:
    """Prunes one trained network.

    Arguments:
        layers: those of the network.
        moments: of the layers' inputs, for "abp-l".
    """

    layers: Layers
    moments: Mapping[str, LayerMoments]
    _tried: dict[tuple[str, float], Cut] = field(default_factory=dict)

    def cut(self, trial: Trial) -> Cut:
        """The network as a trial prunes it.

        Where a share is asked for, "tail" and "abp-l" come within half a percent of all weights,
        or as near as they can; all others meet it exactly, magnitude in whole weights of each
        neuron or layer.
        """
        method, share = trial.method, trial.share
        if method in SEARCHED:
            if share is not None:
                return self._searched(method, share)
            assert trial.value is not None
            return self._lasso(trial.value)
        if method in MAGNITUDE:
            assert share is not None
            return self.magnitude(share, method.removeprefix("magnitude "))
        asked = {"eta": trial.value} if share is None else {"share": share}
        if method == "abp-m":
            return self._masked(trial.value, adaptive_prune, trial.q, **asked)
        return self._masked(trial.value, pq_prune, **asked, scope="layer")

    def magnitude(self, share: float, scope: str) -> Cut:
        """The network without the smallest of its weights, see `tdjax.magnitude_prune`."""
        # Other methods may take all weights, which no share below 1 says.
        below = min(share, math.nextafter(1.0, 0.0))
        return self._masked(None, magnitude_prune, below, scope=scope)

    def _searched(self, method: str, share: float) -> Cut:
        make: Callable[[float], Cut] = {"abp-l": self._lasso, "tail": self._tail}[method]
        low, high = POWERS
        found: list[Cut] = []
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            # Shares have their first halvings in common.
            if (method, middle) not in self._tried:
                self._tried[method, middle] = make(10.0**middle)
            cut = self._tried[method, middle]
            found.append(cut)
            if abs(cut.share - share) <= NEAR:
                break
            low, high = (middle, high) if cut.share < share else (low, middle)
        return min(found, key=lambda cut: abs(cut.share - share))

    def _tail(self, tolerance: float) -> Cut:
        # In units of the outputs a tolerance means the same in all layers.
        return self._masked(tolerance, tail_prune, tolerance, self.layers.relative_bounds)

    def _lasso(self, penalty: float) -> Cut:
        params, table = self.layers.model.params, self.layers.table
        pruned = lasso_prune(params, self.moments, penalty, layers=table, progress=False)
        return self._counted(pruned.params, penalty)

    def _masked(
        self, setting: float | None, prune: Callable[..., Any], *args: Any, **options: Any
    ) -> Cut:
        params = self.layers.model.params
        mask = prune(params, *args, layers=self.layers.table, **options)
        return self._counted(apply_mask(params, mask), setting)

    def _counted(self, params: Any, setting: float | None) -> Cut:
        arrays = kernels(params, self.layers.table).values()
        left = sum(int(np.count_nonzero(array)) for array in arrays)
        return Cut(params, 1 - left / sum(array.size for array in arrays), setting)


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
        "macs": math.ceil(network.dense.macs),
        "epoch": epoch,
        "test": measured(network, model),
        "chance": network.judge.chance(network.splits.test.labels),
        # Whether dead neurons were looked for.
        **({} if network.has_biases else {"removes_dead": False}),
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
        **_sizes(pruner.layers, cut.params),
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
    about, best = tuned(network, Variables(cut.params, state), "pruned")
    test = measured(network, best)
    return {"kind": "tuned", "run": run, **trial.fields, **about, "test": test}


@dataclass(frozen=True, kw_only=True)
class MaskedFit(FitSettings):
    """Training in which weights that are zero at its start stay so.

    Arguments:
        arrays: see `present`.
    """

    arrays: tuple[str, ...] | None = None

    def optimiser(self, steps_per_epoch: int) -> optax.GradientTransformation:
        """As of `FitSettings`, with no updates of such weights."""
        mask = partial(present, arrays=self.arrays)
        return optax.chain(super().optimiser(steps_per_epoch), keep_zeros(mask))


def present(params: Any, arrays: Collection[str] | None = None) -> Any:
    """A mask that is False where a weight of a kernel is zero; biases and scales are True.

    Arguments:
        arrays: the paths of the kernels; None for all that modules call so.
    """

    def is_kernel(names: Names, leaf: Any) -> bool:
        if arrays is None:
            return names[-1:] in [(name,) for name in WEIGHTS] and leaf.ndim > 1
        return join_path(*names) in arrays

    def one(path: Any, leaf: Any) -> Any:
        return leaf != 0 if is_kernel(names_of(path), leaf) else jnp.ones(leaf.shape, bool)

    return jax.tree_util.tree_map_with_path(one, params)


def tuned(network: Network, model: Variables, name: str) -> tuple[dict[str, Any], Variables]:
    """Train a pruned network on: what its record says of the way, and the network at its best.

    Arguments:
        name: of the random stream of the order of the data.
    """
    after = network.settings.finetune_fit
    fields = {f.name: getattr(after, f.name) for f in dataclasses.fields(after)}
    settings = MaskedFit(**fields, arrays=network.own_kernels)
    return trained_on(network, model, network.apply, settings, name)


def _sizes(layers: Layers, params: Any) -> dict[str, Any]:
    """What is left of a network without its dead neurons.

    Returns: "size", parameters that are stored, zeros too; "left", those that are no zeros of
    kernels; "gone", the share of all weights that are zero or belong to dead neurons.
    """
    network, state = layers.network, layers.model.state
    small = network.apply.without_dead(Variables(params, state), network.sample)
    # Of layers that are smaller now the table says nothing more.
    table = None if network.has_biases else layers.table
    own = kernels(small, table).values()
    size = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(small))
    nonzero = sum(int(np.count_nonzero(array)) for array in own)
    return {
        "size": size,
        "left": size - sum(array.size for array in own) + nonzero,
        "gone": 1 - nonzero / sum(array.size for array in kernels(params, table).values()),
    }
