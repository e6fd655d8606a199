"""Compressed networks: decomposed in a norm, measured as they are, re-estimated, and tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from experiments.network.calibrate import Batch, Calibration, seen
from experiments.network.forward import Variables
from experiments.network.network import DECOMPOSE, Network
from experiments.network.train_on import (
    FactorisedNetwork,
    named_key,
    reestimated,
    scored,
    trained_on,
)
from experiments.workdir.journal import SCORES, Fields, Kind, Schema
from tdjax.dispatch import factorize_sequentially
from tdjax.moments.collect import LayerMoments
from tdjax.params.factorize import factorize_params, reconstruct_params
from tdjax.plan.plan import Plan

Moments = Mapping[str, LayerMoments]

# The norm that sees no data.
FROBENIUS = "frobenius"
# In front of a norm: layer after layer, each on what the ones before it have become.
SEQUENTIAL = "sequential "
CALIBRATION: Fields = {"source": str, "images": int, "subset": int}


@dataclass(frozen=True)
class CompressionTrial:
    """One compressed network, with what it saw."""

    calibration: Calibration

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a record that say what was measured."""
        own = asdict(self)
        saw = own.pop("calibration")
        return {**own, **saw}


def compressed_schema(trial: Fields, **holds: Any) -> Schema:
    """The kinds of records of compressed networks; `holds` is what is known of each as it is."""
    return {
        "network": Kind(trial, {**holds, "test": SCORES}),
        "reestimated": Kind(trial, {"test": SCORES}),
        "tuned": Kind(trial, {"test": SCORES}),
    }


@dataclass(frozen=True, eq=False)
class Compressed:
    """A compressed network.

    Arguments:
        network: before compression.
        plan: what became of each layer.
        factors: its parameters.
        state: its other collections.
    """

    network: Network
    plan: Plan
    factors: Any
    state: Any

    @cached_property
    def dense(self) -> Variables:
        """With its kernels multiplied out."""
        return Variables(reconstruct_params(self.factors, self.plan), self.state)

    def tuned(self, name: str) -> tuple[int, Compressed]:
        """Its factors trained on: the best epoch, and the network there.

        Arguments:
            name: of the random stream of the order of the data.
        """
        network, start = self.network, Variables(self.factors, self.state)
        apply = FactorisedNetwork(network.apply, self.plan)
        epoch, best = trained_on(network, start, apply, network.settings.finetune_fit, name)
        return epoch, replace(self, factors=best.params, state=best.state)

    def measured(
        self, kind: str, fields: Mapping[str, Any], batches: Sequence[Batch], name: str
    ) -> tuple[dict[str, Any], Compressed]:
        """The record of one kind of `compressed_schema`, and the network that it is about.

        Arguments:
            fields: what the record says beside the scores.
            batches: unlabelled, in effect: batch statistics are estimated again on the images.
            name: see `tuned`.
        """
        after, found = self, {"kind": kind, **fields}
        if kind == "reestimated":
            again = reestimated(self.network, self.dense, batches)
            after = replace(self, state=again.state)
        elif kind == "tuned":
            found["epoch"], after = self.tuned(name)
        test = scored(self.network, after.dense, self.network.splits.test)
        return {**found, "test": test}, after


def batches_for(network: Network, calibration: Calibration) -> list[Batch]:
    """The images that are looked at: of the calibration, or to estimate batch statistics on."""
    settings = network.settings
    if calibration.images or settings.reestimate:
        return network.batches(seen(settings.calibration, calibration))
    return []


def decomposed(
    network: Network,
    model: Variables,
    plan: Plan,
    name: str,
    norm: str = FROBENIUS,
    batches: Sequence[Batch] = (),
    moments: Moments | None = None,
    *,
    correct_bias: bool = False,
) -> Any:
    """A network's parameters with the factors of a plan.

    Arguments:
        name: of the random starts.
        norm: `FROBENIUS`, or one of `tdjax.factorize_params`, with `SEQUENTIAL` in front or not.
        batches: the calibration's images, as the other norms see them.
        moments: of the layers on these.
    """
    solver = network.settings.solver
    options: dict[str, Any] = {"max_iters": solver.max_iters, "tol": solver.tol}
    options["key"] = named_key(network.key(DECOMPOSE), name)
    if norm == FROBENIUS:
        return factorize_params(model.params, plan, **options)
    options["correct_bias"] = correct_bias
    if norm.startswith(SEQUENTIAL):
        weighing = moments if norm.endswith("kronecker") else None
        images = [batch.images for batch in batches]
        found = network.call(
            factorize_sequentially, model, plan, images, moments=weighing, **options
        )
        return network.apply.parameters(found)
    return factorize_params(model.params, plan, moments=moments, norm=norm, **options)
