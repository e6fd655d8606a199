"""A study on its network: every choice planned and checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from experiments.error_study.choices import enumerate_choices
from experiments.error_study.protocol import Protocol
from experiments.error_study.records import Choice
from experiments.network.network import Network
from tdjax.plan.plan import PlannedLayer


@dataclass(frozen=True, eq=False)
class PlannedStudy:
    """A study's network and the choices to measure.

    Arguments:
        plans: every choice with the decomposition that it stands for.
    """

    network: Network
    protocol: Protocol
    plans: Mapping[Choice, PlannedLayer]


def plan_study(network: Network, protocol: Protocol) -> PlannedStudy:
    """Plan every choice.

    Raises ValueError for whatever in the protocol or its ranks would stop the study later.
    """
    images = len(network.splits.train.labels)
    if not 1 <= protocol.measure.feature_images <= images:
        raise ValueError(
            f"config field 'measure.feature_images' is {protocol.measure.feature_images}, but "
            f"there are {images} training images"
        )
    table = [entry.layer for entry in network.dense.layers]
    return PlannedStudy(network, protocol, enumerate_choices(protocol, table))
