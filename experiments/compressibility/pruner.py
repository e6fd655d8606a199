"""Networks pruned, by a share of their weights or as a method's own setting has it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from experiments.compressibility.layers import Layers, kernels
from experiments.compressibility.settings import MAGNITUDE, SEARCHED
from experiments.compressibility.trials import Trial
from tdjax.moments.collect import LayerMoments
from tdjax.pruning.backward import lasso_prune
from tdjax.pruning.magnitude import adaptive_prune, magnitude_prune, pq_prune, tail_prune
from tdjax.pruning.masks import apply_mask

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
        params, table = self.layers.model.params, self.layers.table
        asked = {"eta": trial.value} if share is None else {"share": share}
        if method == "abp-m":
            mask = adaptive_prune(params, trial.q, **asked, layers=table)
        else:
            mask = pq_prune(params, **asked, scope="layer", layers=table)
        return self._masked(mask, trial.value)

    def magnitude(self, share: float, scope: str) -> Cut:
        """The network without the smallest of its weights, see `tdjax.magnitude_prune`."""
        # Other methods may take all weights, which no share below 1 says.
        below = min(share, math.nextafter(1.0, 0.0))
        params, table = self.layers.model.params, self.layers.table
        mask = magnitude_prune(params, below, scope=scope, layers=table)
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
        # In units of the outputs a tolerance means the same in all layers.
        bounds, table = self.layers.relative_bounds, self.layers.table
        mask = tail_prune(self.layers.model.params, tolerance, bounds, layers=table)
        return self._masked(mask, tolerance)

    def _lasso(self, penalty: float) -> Cut:
        params, table = self.layers.model.params, self.layers.table
        return self._counted(
            lasso_prune(params, self.moments, penalty, layers=table).params, penalty
        )

    def _masked(self, mask: Any, setting: float | None) -> Cut:
        return self._counted(apply_mask(self.layers.model.params, mask), setting)

    def _counted(self, params: Any, setting: float | None) -> Cut:
        arrays = kernels(params, self.layers.table).values()
        left = sum(int(np.count_nonzero(array)) for array in arrays)
        return Cut(params, 1 - left / sum(array.size for array in arrays), setting)
