"""What a study compresses: every layer x method x compression, planned before any work."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from experiments.error_study.paper import published_ranks
from experiments.error_study.protocol import Choice, Protocol
from experiments.network.network import Network, configured
from experiments.workdir.fields import FieldError
from tdjax.decompose.tt import clip_ranks
from tdjax.hints import did_you_mean
from tdjax.plan.decide import plan_layer
from tdjax.plan.layers import Layer
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.ranks import tt_order
from tdjax.plan.rules import Rule


@dataclass(frozen=True, eq=False)
class PlannedStudy:
    """One of a study's networks and the choices to measure.

    Arguments:
        plans: every choice with the decomposition that it stands for.
        number: which of the networks it is.
    """

    network: Network
    protocol: Protocol
    plans: Mapping[Choice, PlannedLayer]
    number: int = 0

    def of_network(self, number: int) -> PlannedStudy:
        """The same of another of the networks: what a study with its seed alone would have."""
        if number == self.number:
            return self
        seed = self.protocol.seed + number
        network = configured(replace(self.protocol, seed=seed, networks=1))
        return replace(self, network=network, number=number)


def plan_study(network: Network, protocol: Protocol) -> PlannedStudy:
    """Plan every choice; the layers of the result's protocol are paths.

    Raises ValueError for whatever in the protocol or its ranks would stop the study later.
    """
    images = len(network.splits.train.labels)
    if not 1 <= protocol.measure.feature_images <= images:
        raise ValueError(
            f"config field 'measure.feature_images' is {protocol.measure.feature_images}, but "
            f"there are {images} training examples: use {images} or fewer"
        )
    if protocol.networks > 1 and (network.is_trained or not protocol.train.epochs):
        problem = f"is {protocol.networks}: a network that comes with its weights is one; use 1"
        raise FieldError("networks", problem)
    table = [entry.layer for entry in network.dense.layers]
    protocol = with_paths(protocol, table)
    return PlannedStudy(network, protocol, enumerate_choices(protocol, table))


def with_paths(protocol: Protocol, table: Sequence[Layer]) -> Protocol:
    """The same protocol with the paths of layers in place of patterns, in the order of the model.

    Of the layers that patterns match, those that cannot be factorised are left out.

    Raises FieldError for what neither is a path nor a pattern.
    """
    paths = [layer.path for layer in table]
    able = [layer.path for layer in table if layer.obstacle is None and not _problem(layer)]
    found: list[str] = []
    for asked in protocol.layers:
        try:
            meant = [asked] if asked in paths else [p for p in able if re.fullmatch(asked, p)]
        except re.error as error:
            raise FieldError("layers", f"has {asked!r}: no pattern: {error}") from error
        # What matches none is told of where the choices are made.
        found += meant or [asked]
    return replace(protocol, layers=tuple(dict.fromkeys(found)))


def enumerate_choices(protocol: Protocol, table: Sequence[Layer]) -> dict[Choice, PlannedLayer]:
    """Every choice of a study with the decomposition that it stands for, in order.

    Ranks that save nothing are kept: the study measures them and its report says so. TT ranks of a
    table are clipped to what the decomposition reaches, so that sizes are those of the factors.

    Raises ValueError for a layer that the model does not have or that cannot be factorised, and
    for a rank table that lacks an entry.
    """
    by_path = {layer.path: layer for layer in table}
    for path in protocol.layers:
        if path not in by_path:
            raise ValueError(
                f"config field 'layers': the model has no layer {path!r}; "
                f"layers are: {', '.join(by_path)}{did_you_mean(path, by_path)}"
            )
        if by_path[path].obstacle is None and (problem := _problem(by_path[path])):
            raise FieldError("layers", f"has {path!r}: {problem}")
    ranks = protocol.decompose.ranks
    tables = None if ranks == "rule" else published_ranks(ranks)
    plans: dict[Choice, PlannedLayer] = {}
    asked = dict(zip(protocol.levels, protocol.compressions, strict=True))
    for choice in protocol.choices:
        layer = by_path[choice.layer]
        rule = Rule(path=".*", method=choice.method, compression=asked[choice.compression])
        if tables is not None:
            rule = replace(rule, compression=None, rank=_from_table(tables, choice, layer))
        plans[choice] = plan_layer(layer, rule)
    return plans


def _problem(layer: Layer) -> str | None:
    """What keeps the study from a layer that can be factorised."""
    if layer.kind == "embed":
        return f"its rows are looked up, in {layer.storage.name!r}; the study takes a kernel"
    if layer.storage.stack is not None:
        return f"its array holds {layer.copies} layers; the study takes them one at a time"
    return None


def _from_table(tables: dict, choice: Choice, layer: Layer) -> tuple[int, ...]:
    entry = tables.get(choice.layer.replace("/", "."), {})
    # As the tables name it: a whole number of percent.
    keep = f"{100 * (1 - choice.compression):.10g}"
    ranks = entry.get("keep", {}).get(keep, {}).get(choice.method)
    if ranks is None:
        raise ValueError(
            f"config field 'decompose.ranks': the published tables have no {choice.method} ranks "
            f"for layer {choice.layer!r} at {keep} % kept"
        )
    if choice.method == "tucker":
        # The tables name the ranks in the order (T, C).
        return tuple(reversed(ranks))
    if choice.method == "tt":
        # On the 1x1 layer the tables exceed what any TT-SVD reaches.
        return clip_ranks(tt_order(layer.group_shape), ranks)
    return (ranks,)
