"""Compressed networks: planned, made once for each trial, measured whole and by layers, tuned."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from experiments.data import Examples, stratified_subset
from experiments.data_aware.settings import FROBENIUS, DataAware
from experiments.data_aware.trials import Trial, is_sequential
from experiments.network.calibrate import Batch
from experiments.network.network import DECOMPOSE, Network
from experiments.network.train_on import named_key, reestimated, scored, tuned
from experiments.network.training import Variables
from tdjax.dispatch import factorize_sequentially
from tdjax.linen import make_plan
from tdjax.moments.collect import LayerMoments
from tdjax.params.bias import can_correct, mean_output, shifted
from tdjax.params.factorize import factorize_params, reconstruct_params
from tdjax.params.tree import layer_params
from tdjax.plan.plan import Plan
from tdjax.plan.rules import Rule

Moments = Mapping[str, LayerMoments]


@dataclass(frozen=True, eq=False)
class PlannedNetworks:
    """The network, and what becomes of it at each method and share.

    Arguments:
        plans: by method and share kept.
        layer_test: the test images for networks with one layer compressed; None for no such.
    """

    settings: DataAware
    network: Network
    plans: Mapping[tuple[str, float], Plan]
    layer_test: Examples | None

    def layers_of(self, trial: Trial) -> list[str]:
        """The layers of a trial that are tried one at a time."""
        if self.layer_test is None or is_sequential(trial):
            return []
        return [entry.layer.path for entry in self.plans[trial.method, trial.keep].factorised]


def plan_networks(network: Network, settings: DataAware) -> PlannedNetworks:
    """Plan every compression.

    Raises ValueError for whatever in configuration or ranks would stop the experiment later.
    """
    layer_test = _layer_test(settings, network.splits.test)
    return PlannedNetworks(settings, network, _plans(settings, network), layer_test)


@dataclass(frozen=True, eq=False)
class Press:
    """Makes the compressed parameters of trials; decompositions that see no data are kept."""

    planned: PlannedNetworks
    model: Variables
    _kept: dict[Any, dict[str, Any]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def factors(
        self, trial: Trial, moments: Moments | None, batches: Sequence[Batch]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The network's parameters with factors, and with the kernels that they stand for.

        Arguments:
            moments: on the trial's calibration; None where that has no images.
            batches: its images.
        """
        plan = self.planned.plans[trial.method, trial.keep]
        if is_sequential(trial):
            params = self._one_after_the_other(trial, moments, batches)
        elif trial.norm != FROBENIUS:
            params = self._decomposed(
                trial, moments=moments, norm=trial.norm, correct_bias=trial.correct_bias
            )
        else:
            params = self._blind(trial)
            if trial.correct_bias and moments is not None:
                params = _corrected(params, self.model.params, plan, moments)
        return params, reconstruct_params(params, plan)

    def _blind(self, trial: Trial) -> dict[str, Any]:
        start = trial.calibration.subset if trial.method == "cp" else 0
        name = (trial.method, trial.keep, start)
        with self._lock:
            if name not in self._kept:
                self._kept[name] = self._decomposed(trial)
            return self._kept[name]

    def _decomposed(self, trial: Trial, **options: Any) -> dict[str, Any]:
        plan = self.planned.plans[trial.method, trial.keep]
        return factorize_params(self.model.params, plan, **self._solver(trial), **options)

    def _one_after_the_other(
        self, trial: Trial, moments: Moments | None, batches: Sequence[Batch]
    ) -> dict[str, Any]:
        return factorize_sequentially(
            self.planned.network.module,
            self.model.collections,
            self.planned.plans[trial.method, trial.keep],
            batches,
            moments=moments if trial.norm.endswith("kronecker") else None,
            correct_bias=trial.correct_bias,
            **self._solver(trial),
        )

    def _solver(self, trial: Trial) -> dict[str, Any]:
        solver = self.planned.settings.solver
        start = f"{trial.method}, {trial.keep:g}, {trial.calibration.subset}"
        key = named_key(self.planned.network.key(DECOMPOSE), start)
        return {"key": key, "max_iters": solver.max_iters, "tol": solver.tol}


def measured_records(
    planned: PlannedNetworks, model: Variables, trial: Trial, dense: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One record of the whole compressed network, and one for each layer compressed alone.

    Arguments:
        model: the network before compression.
        dense: its parameters with the kernels that the factors stand for.
    """
    records = [
        {
            "kind": "network",
            **trial.fields,
            "test": scored(
                planned.network, Variables(dense, model.state), planned.network.splits.test
            ),
        }
    ]
    for path in planned.layers_of(trial):
        assert planned.layer_test is not None
        params = _with_layer(model.params, path, layer_params(dense, path))
        test = scored(planned.network, Variables(params, model.state), planned.layer_test)
        records.append({"kind": "layer", "layer": path, **trial.fields, "test": test})
    return records


def reestimated_record(
    planned: PlannedNetworks, compressed: Variables, trial: Trial, batches: Sequence[Batch]
) -> dict[str, Any]:
    """A whole compressed network whose batch normalisation is estimated anew.

    Arguments:
        compressed: its kernels, multiplied out, with the state of the network before.
        batches: unlabelled, in effect: only the images are looked at.
    """
    model = reestimated(planned.network, compressed, batches)
    test = scored(planned.network, model, planned.network.splits.test)
    return {"kind": "reestimated", **trial.fields, "test": test}


def tuned_record(
    planned: PlannedNetworks, model: Variables, trial: Trial, factors: Mapping[str, Any]
) -> dict[str, Any]:
    """Train the factors of a compressed network on, and measure it at its best epoch."""
    network, plan = planned.network, planned.plans[trial.method, trial.keep]
    name = f"{trial.calibration.subset}"
    epoch, best = tuned(network, factors, model.state, plan, name)
    dense = Variables(reconstruct_params(best.params, plan), best.state)
    test = scored(network, dense, network.splits.test)
    return {"kind": "tuned", **trial.fields, "epoch": epoch, "test": test}


def _plans(settings: DataAware, network: Network) -> dict[tuple[str, float], Plan]:
    plans = {}
    for method in settings.methods:
        for keep in settings.keeps:
            rules = tuple(
                Rule(path=path, method=method, compression=1 - keep) for path in settings.layers
            )
            plan = make_plan(network.module, network.start.collections, rules, network.sample)
            if not plan.factorised:
                raise ValueError(
                    f"config field 'keeps': no layer gets smaller with {method} at {keep:g} kept"
                )
            plans[method, keep] = plan
    return plans


def _layer_test(settings: DataAware, test: Examples) -> Examples | None:
    count = settings.test.layer_images
    if count is None:
        return test
    if count > len(test.labels):
        raise ValueError(
            f"config field 'test.layer_images' is {count}, but there are {len(test.labels)} "
            "test images"
        )
    if count == 0:
        return None
    chosen = stratified_subset(test.labels, count, settings.seed)
    return Examples(np.ascontiguousarray(test.images[chosen]), test.labels[chosen])


def _corrected(
    factors: Mapping[str, Any],
    params: Mapping[str, Any],
    plan: Plan,
    moments: Moments,
) -> dict[str, Any]:
    """The biases take on what the mean input of each layer loses."""
    dense, result = reconstruct_params(factors, plan), dict(factors)
    for entry in plan.factorised:
        path, name = entry.layer.path, entry.layer.storage.name
        own, mean = layer_params(params, path), moments[path].mean
        if mean is not None and can_correct(entry, own):
            lost = own[name] - layer_params(dense, path)[name]
            bias = shifted(own["bias"], mean_output(lost, entry, mean))
            result = _with_layer(result, path, {**layer_params(result, path), "bias": bias})
    return result


def _with_layer(params: Mapping[str, Any], path: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """The same parameters with those of one layer replaced."""
    first, _, rest = path.partition("/")
    if not rest:
        return {**params, first: dict(own)}
    return {**params, first: _with_layer(params[first], rest, own)}
