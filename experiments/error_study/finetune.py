"""Training compressed networks on: all runs of a choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.data import DataSplits
from experiments.error_study.bench import Bench, choice_fields
from experiments.error_study.candidates import (
    CompressedNetwork,
    Factors,
    choice_key,
    widened,
    without_kernel,
)
from experiments.error_study.records import Choice, Key
from experiments.network.network import FINETUNE
from experiments.network.training import (
    Fit,
    FitSettings,
    Model,
    evaluate,
    fit_epochs,
    performance,
    start_fit,
    steps_per_epoch,
)
from tdjax.plan.plan import PlannedLayer


def finetune_records(
    bench: Bench,
    model: Model,
    choice: Choice,
    plan: PlannedLayer,
    factors: Mapping[Key, Factors],
    alike: Sequence[Factors],
) -> dict[Key, dict[str, Any]]:
    """Train all runs of one choice on and measure them; shapes are those of all `alike`."""
    runs, settings = range(bench.protocol.runs), bench.protocol.finetune_fit
    layer = plan.layer
    network = CompressedNetwork(
        bench.network, layer.path, layer.kernel_shape, layer.groups, str(plan.method)
    )
    dense = without_kernel(model.params, layer.path)
    models = [
        Model({"dense": dense, "factors": widened(factors[choice, run], alike)}, model.state)
        for run in runs
    ]
    keys = [choice_key(bench.key(FINETUNE), choice, run) for run in runs]
    splits = bench.splits
    records: dict[Key, dict[str, Any]] = {}
    for group in side_by_side(runs):
        fit = _fit_group(
            network,
            settings,
            jax.tree.map(lambda *leaves: jnp.stack(leaves), *[models[run] for run in group]),
            jnp.stack([keys[run] for run in group]),
            splits,
        )
        scores = {
            name: (evaluate(fit.best, network, examples), len(examples.labels))
            for name, examples in (("validation", splits.validation), ("test", splits.test))
        }
        for k, run in enumerate(group):
            records[choice, run] = {
                "kind": "finetuned",
                **choice_fields((choice, run)),
                "epoch": int(fit.best_epoch[k]),
                **{name: performance(s, k, count) for name, (s, count) in scores.items()},
            }
    return records


def side_by_side(runs: Sequence[int]) -> list[Sequence[int]]:
    """Which runs share one program: all on an accelerator, each alone on CPU.

    Networks whose parameters all differ become grouped convolutions under vmap, for which XLA has
    no fast path on CPU (a small CNN's step: 15 ms alone, 190 ms for five under vmap). The numbers
    are the same either way.
    """
    if jax.default_backend() == "cpu":
        return [[run] for run in runs]
    return [runs]


def _fit_group(
    network: CompressedNetwork,
    settings: FitSettings,
    models: Model,
    keys: jax.Array,
    splits: DataSplits,
) -> Fit:
    fit = start_fit(models, settings, steps_per_epoch(splits.train, settings))
    black = jnp.asarray(splits.black)
    for trained in fit_epochs(fit, network, settings, splits.train, splits.validation, keys, black):
        fit = trained
    return fit
