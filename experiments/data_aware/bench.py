"""What all measurements share, found and checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from experiments.data import Examples, stratified_subset
from experiments.data_aware.settings import DataAware
from experiments.data_aware.trials import Trial, is_sequential
from experiments.network import network as bench
from experiments.network.network import ReadWeights, Subject
from tdjax.linen import make_plan
from tdjax.plan.plan import Plan
from tdjax.plan.rules import Rule


@dataclass(frozen=True, eq=False)
class AwareBench:
    """The network, and what becomes of it at each method and share.

    Arguments:
        plans: by method and share kept.
        layer_test: the test images for networks with one layer compressed; None for no such.
    """

    settings: DataAware
    subject: Subject
    plans: Mapping[tuple[str, float], Plan]
    layer_test: Examples | None

    def layers_of(self, trial: Trial) -> list[str]:
        """The layers of a trial that are tried one at a time."""
        if self.layer_test is None or is_sequential(trial):
            return []
        return [entry.layer.path for entry in self.plans[trial.method, trial.keep].factorised]


def set_up(settings: DataAware, read_weights: ReadWeights | None = None) -> AwareBench:
    """The network as `subject.bench.set_up` finds it, and every compression planned.

    Raises ValueError or `experiments.data.DataError` for whatever in configuration, data,
    weights or ranks would stop the experiment later.
    """
    subject = bench.set_up(settings, read_weights, images=settings.needs_images)
    layer_test = _layer_test(settings, subject.splits.test)
    return AwareBench(settings, subject, _plans(settings, subject), layer_test)


def _plans(settings: DataAware, subject: Subject) -> dict[tuple[str, float], Plan]:
    variables = {**subject.start.state, "params": subject.start.params}
    plans = {}
    for method in settings.methods:
        for keep in settings.keeps:
            rules = tuple(
                Rule(path=path, method=method, compression=1 - keep) for path in settings.layers
            )
            plan = make_plan(subject.module, variables, rules, subject.sample)
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
