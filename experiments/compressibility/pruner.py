"""Networks pruned, by a share of their weights or as a method's own setting has it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from experiments.compressibility.settings import MAGNITUDE
from experiments.compressibility.trials import Trial
from tdjax.moments.collect import LayerMoments
from tdjax.plan.layers import Layer
from tdjax.pruning.backward import lasso_prune
from tdjax.pruning.magnitude import adaptive_prune, magnitude_prune, pq_prune, tail_prune
from tdjax.pruning.masks import apply_mask
from tdjax.pruning.prunable import prunable

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
        params: the network's parameters.
        layers: its layer table.
        moments: of its layers' inputs, for "abp-l".
        bounds: by path, the largest absolute value of a layer's inputs, for "tail". In units of
            its outputs, so that a tolerance means the same in all layers.
    """

    params: Any
    layers: Sequence[Layer]
    moments: Mapping[str, LayerMoments]
    bounds: Mapping[str, float]
    _tried: dict[tuple[str, float], Cut] = field(default_factory=dict)

    def cut(self, trial: Trial) -> Cut:
        """The network as a trial prunes it.

        Where a share is asked for, "tail" and "abp-l" come within half a percent of all weights,
        or as near as they can; all others meet it exactly, magnitude in whole weights of each
        neuron or layer.
        """
        method, share = trial.method, trial.share
        if method in MAGNITUDE:
            assert share is not None
            return self.magnitude(share, method.removeprefix("magnitude "))
        if method == "abp-m":
            eta = {"eta": trial.value} if share is None else {"share": share}
            mask = adaptive_prune(self.params, trial.q, **eta, layers=self.layers)
            return self._masked(mask, trial.value)
        if method == "sap":
            eta = {"eta": trial.value} if share is None else {"share": share}
            mask = pq_prune(self.params, **eta, scope="layer", layers=self.layers)
            return self._masked(mask, trial.value)
        if share is None:
            assert trial.value is not None
            return self._lasso(trial.value)
        return self._searched(method, share)

    def magnitude(self, share: float, scope: str) -> Cut:
        """The network without the smallest of its weights, see `tdjax.magnitude_prune`."""
        # Other methods may take all weights, which no share below 1 says.
        below = min(share, math.nextafter(1.0, 0.0))
        mask = magnitude_prune(self.params, below, scope=scope, layers=self.layers)
        return self._masked(mask, None)

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
        mask = tail_prune(self.params, tolerance, self.bounds, layers=self.layers)
        return self._masked(mask, tolerance)

    def _lasso(self, penalty: float) -> Cut:
        made = lasso_prune(self.params, self.moments, penalty, layers=self.layers)
        return self._counted(made.params, penalty)

    def _masked(self, mask: Any, setting: float | None) -> Cut:
        return self._counted(apply_mask(self.params, mask), setting)

    def _counted(self, params: Any, setting: float | None) -> Cut:
        total = left = 0
        for array in kernels(params, self.layers).values():
            total += array.size
            left += int(np.count_nonzero(array))
        return Cut(params, 1 - left / total, setting)


def kernels(params: Any, layers: Sequence[Layer] | None = None) -> dict[str, np.ndarray]:
    """The arrays that can be pruned, by path of their layer; without a layer table, by name."""
    leaves = jax.tree.leaves(params)
    return {leaf.path: np.asarray(leaves[leaf.place]) for leaf in prunable(params, layers, ".*")}
