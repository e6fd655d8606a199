"""What all measurements share, found and checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tdjax.data import DataSplits, Examples, load, prepare, stratified_subset
from tdjax.linen import make_plan
from tdjax.plan import Plan
from tdjax.rules import Rule
from tdjax.study.bench import INIT, build_network
from tdjax.study.data_aware.calibrate import altered, source_examples
from tdjax.study.data_aware.settings import DataAware
from tdjax.study.data_aware.trials import Trial, is_sequential
from tdjax.training import LinenNetwork, Model, steps_per_epoch

# (path, shapes of the variables) -> variables
ReadWeights = Callable[[str, Any], Any]


@dataclass(frozen=True, eq=False)
class AwareBench:
    """The experiment's data, its network, and what becomes of that at each method and share.

    Arguments:
        start: the network's variables, trained where `settings.weights` names them.
        dense: the plan that leaves every layer as it is, for counting.
        plans: by method and share kept.
        sources: the calibration images to draw from.
        layer_test: the test images for networks with one layer compressed; None for no such.
    """

    settings: DataAware
    splits: DataSplits
    module: nn.Module
    start: Model
    dense: Plan
    plans: Mapping[tuple[str, float], Plan]
    sources: Mapping[str, Examples]
    layer_test: Examples | None

    def key(self, stream: int) -> jax.Array:
        """The key of one of the random streams."""
        return jax.random.fold_in(jax.random.key(self.settings.seed), stream)

    @property
    def network(self) -> LinenNetwork:
        """The uncompressed network's forward function."""
        return LinenNetwork(self.module)

    def layers_of(self, trial: Trial) -> list[str]:
        """The layers of a trial that are tried one at a time."""
        if self.layer_test is None or is_sequential(trial):
            return []
        return [entry.layer.path for entry in self.plans[trial.method, trial.keep].factorised]


def set_up(settings: DataAware, read_weights: ReadWeights | None = None) -> AwareBench:
    """Load the data, build the network, read its weights, and plan every compression.

    Arguments:
        read_weights: reads the file that `settings.weights` names.

    Raises ValueError or `tdjax.data.DataError` for whatever in configuration, data, weights or
    ranks would stop the experiment later.
    """
    splits = _splits(settings)
    images = splits.train.images
    if settings.weights is None or settings.finetune.epochs:
        steps_per_epoch(splits.train, settings.train)
    module = build_network(settings.model, splits.num_classes)
    sample = jnp.zeros((1, *images.shape[1:]))
    key = jax.random.fold_in(jax.random.key(settings.seed), INIT)
    if settings.weights is None:
        variables = jax.jit(module.init)(key, sample)
    else:
        if read_weights is None or not Path(settings.weights).is_file():
            raise ValueError(f"config field 'weights': no file {settings.weights}")
        variables = read_weights(settings.weights, jax.eval_shape(module.init, key, sample))
    sources = (
        {name: source_examples(settings, name, splits) for name in settings.calibration.sources}
        if settings.needs_images
        else {}
    )
    for name, examples in sources.items():
        if max(settings.calibration.images) > len(examples.labels):
            raise ValueError(
                f"config field 'calibration.images' asks for {max(settings.calibration.images)}, "
                f"but source {name!r} has {len(examples.labels)} images"
            )
    state = {name: value for name, value in variables.items() if name != "params"}
    if settings.reestimate and "batch_stats" not in state:
        raise ValueError(
            f"config field 'reestimate': {settings.model.name} has no batch statistics"
        )
    return AwareBench(
        settings,
        splits,
        module,
        Model(variables["params"], state),
        make_plan(module, variables, (), sample),
        _plans(settings, module, variables, sample),
        sources,
        _layer_test(settings, splits.test),
    )


def _splits(settings: DataAware) -> DataSplits:
    data, inputs = settings.data, settings.inputs
    statistics = None
    if inputs.mean is not None and inputs.deviation is not None:
        statistics = (
            tuple(255 * value for value in inputs.mean),
            tuple(255 * value for value in inputs.deviation),
        )
    splits = prepare(
        load(data.name, data.folder),
        data.validation_share,
        settings.seed,
        data.train_size,
        data.validation_size,
        data.test_size,
        statistics,
    )
    images = altered(splits.test.images, settings.test.change, settings, splits)
    return replace(splits, test=Examples(images, splits.test.labels))


def _plans(
    settings: DataAware, module: nn.Module, variables: Any, sample: jax.Array
) -> dict[tuple[str, float], Plan]:
    plans = {}
    for method in settings.methods:
        for keep in settings.keeps:
            rule = Rule(path=".*", method=method, compression=1 - keep)
            plan = make_plan(module, variables, (rule,), sample)
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
