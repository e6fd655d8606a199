"""What every measurement of a study shares, found and checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.data import DataSplits, load, prepare
from experiments.error_study.choices import enumerate_choices
from experiments.error_study.protocol import Protocol
from experiments.error_study.records import Choice, Key
from experiments.network.network import INIT, build_network
from experiments.network.training import LinenNetwork, Model, steps_per_epoch
from tdjax.linen import make_plan
from tdjax.plan.plan import Plan, PlannedLayer


@dataclass(frozen=True, eq=False)
class Bench:
    """A study's data, its untrained network, and the choices to measure.

    Arguments:
        start: the network's initial parameters.
        dense: the plan that leaves every layer as it is, for counting.
        plans: every choice with the decomposition that it stands for.
    """

    protocol: Protocol
    splits: DataSplits
    module: nn.Module
    start: Model
    dense: Plan
    plans: Mapping[Choice, PlannedLayer]

    def key(self, stream: int) -> jax.Array:
        """The key of one of the random streams."""
        return jax.random.fold_in(jax.random.key(self.protocol.seed), stream)

    @property
    def network(self) -> LinenNetwork:
        """The uncompressed network's forward function."""
        return LinenNetwork(self.module)


def set_up(protocol: Protocol) -> Bench:
    """Load the data, build the network and plan every choice.

    Raises ValueError or `experiments.data.DataError` for whatever in configuration, data or
    ranks would stop the study later.
    """
    data = protocol.data
    splits = prepare(
        load(data.name, data.folder),
        data.validation_share,
        protocol.seed,
        data.train_size,
        data.validation_size,
        data.test_size,
    )
    images = splits.train.images
    if not 1 <= protocol.measure.feature_images <= len(images):
        raise ValueError(
            f"config field 'measure.feature_images' is {protocol.measure.feature_images}, but "
            f"there are {len(images)} training images"
        )
    steps_per_epoch(splits.train, protocol.train)
    module = build_network(protocol.model, splits.num_classes)
    key = jax.random.fold_in(jax.random.key(protocol.seed), INIT)
    variables = jax.jit(module.init)(key, jnp.zeros((1, *images.shape[1:])))
    sample = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
    dense = make_plan(module, variables, (), sample)
    plans = enumerate_choices(protocol, [entry.layer for entry in dense.layers])
    state = {name: value for name, value in variables.items() if name != "params"}
    return Bench(protocol, splits, module, Model(variables["params"], state), dense, plans)


def choice_fields(key: Key) -> dict[str, Any]:
    """The fields of a record that say what was measured."""
    choice, run = key
    return {
        "layer": choice.layer,
        "method": choice.method,
        "compression": choice.compression,
        "run": run,
    }
