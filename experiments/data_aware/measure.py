"""Compressed networks: made once for each trial, measured whole and layer by layer, trained on."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.data_aware.bench import AwareBench
from experiments.data_aware.settings import FROBENIUS
from experiments.data_aware.trials import Trial, is_sequential
from experiments.network.calibrate import Batch
from experiments.network.network import DECOMPOSE
from experiments.network.train_on import named_key, reestimated, scored, tuned
from experiments.network.training import Model
from tdjax.dispatch import factorize_sequentially
from tdjax.moments.collect import LayerMoments
from tdjax.params.bias import can_correct, mean_output, shifted
from tdjax.params.factorize import factorize_params, layer_params, reconstruct_params
from tdjax.plan.plan import Plan

Moments = Mapping[str, LayerMoments]


@dataclass(frozen=True, eq=False)
class Press:
    """Makes the compressed parameters of trials; decompositions that see no data are kept."""

    bench: AwareBench
    model: Model
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
        plan = self.bench.plans[trial.method, trial.keep]
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
        plan = self.bench.plans[trial.method, trial.keep]
        return factorize_params(self.model.params, plan, **self._solver(trial), **options)

    def _one_after_the_other(
        self, trial: Trial, moments: Moments | None, batches: Sequence[Batch]
    ) -> dict[str, Any]:
        return factorize_sequentially(
            self.bench.subject.module,
            {**self.model.state, "params": self.model.params},
            self.bench.plans[trial.method, trial.keep],
            batches,
            moments=moments if trial.norm.endswith("kronecker") else None,
            correct_bias=trial.correct_bias,
            **self._solver(trial),
        )

    def _solver(self, trial: Trial) -> dict[str, Any]:
        solver = self.bench.settings.solver
        start = f"{trial.method}, {trial.keep:g}, {trial.calibration.subset}"
        key = named_key(self.bench.subject.key(DECOMPOSE), start)
        return {"key": key, "max_iters": solver.max_iters, "tol": solver.tol}


def measured_records(
    bench: AwareBench, model: Model, trial: Trial, dense: Mapping[str, Any]
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
            "test": scored(bench.subject, Model(dense, model.state), bench.subject.splits.test),
        }
    ]
    for path in bench.layers_of(trial):
        assert bench.layer_test is not None
        params = _with_layer(model.params, path, layer_params(dense, path))
        test = scored(bench.subject, Model(params, model.state), bench.layer_test)
        records.append({"kind": "layer", "layer": path, **trial.fields, "test": test})
    return records


def reestimated_record(
    bench: AwareBench, compressed: Model, trial: Trial, batches: Sequence[Batch]
) -> dict[str, Any]:
    """A whole compressed network whose batch normalisation is estimated anew.

    Arguments:
        compressed: its kernels, multiplied out, with the state of the network before.
        batches: unlabelled, in effect: only the images are looked at.
    """
    model = reestimated(bench.subject, compressed, batches)
    test = scored(bench.subject, model, bench.subject.splits.test)
    return {"kind": "reestimated", **trial.fields, "test": test}


def tuned_record(
    bench: AwareBench, model: Model, trial: Trial, factors: Mapping[str, Any]
) -> dict[str, Any]:
    """Train the factors of a compressed network on, and measure it at its best epoch."""
    subject, plan = bench.subject, bench.plans[trial.method, trial.keep]
    name = f"{trial.calibration.subset}"
    epoch, best = tuned(subject, factors, model.state, plan, name)
    dense = Model(reconstruct_params(best.params, plan), best.state)
    test = scored(subject, dense, subject.splits.test)
    return {"kind": "tuned", **trial.fields, "epoch": epoch, "test": test}


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
