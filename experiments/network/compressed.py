"""Compressed networks: decomposed in a norm, measured as they are, re-estimated, refined, tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from experiments.network.calibrate import Batch, Calibration, images_of, seen
from experiments.network.curves import CURVE
from experiments.network.forward import Variables
from experiments.network.network import DECOMPOSE, Network
from experiments.network.refine import HELD_OUT, RefineSettings, refined
from experiments.network.settings import NetworkSettings
from experiments.network.train_on import (
    FactorisedNetwork,
    named_key,
    reestimated,
    scored,
    trained_on,
)
from experiments.workdir.record_fields import SCORES, Fields, Kind, Schema
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


@dataclass(frozen=True, kw_only=True)
class CompressionSettings(NetworkSettings):
    """What is done with compressed networks.

    Arguments:
        refine: measure each refined without labels, too; no epochs leave it out.
    """

    refine: RefineSettings = field(default_factory=RefineSettings)

    @property
    def shows_again(self) -> bool:
        """Whether all compressed networks are shown images, whatever they saw."""
        return self.reestimate or self.refine.epochs > 0

    @property
    def refined_note(self) -> str:
        """What a report says above its tables of the networks that were refined."""
        if not self.refine.epochs:
            return ""
        images = " or ".join(f"{number:,}" for number in self.calibration.images)
        return (
            " Refined without labels: fitted to what the network answered before compression, on "
            f"the {images} images of its calibration, or of the first one where it saw none, of "
            f"which {100 * HELD_OUT:g} % are held out to choose the epoch: {self.refine.in_words}."
        )


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


# The kinds of records of a compressed network, and what stands above them side by side.
KINDS = {
    "network": "compressed",
    "reestimated": "re-estimated",
    "refined": "refined",
    "tuned": "fine-tuned",
}


def compressed_schema(trial: Fields, **holds: Any) -> Schema:
    """The kinds of records of compressed networks; `holds` is what is known of each as it is."""
    return {
        "network": Kind(trial, {**holds, "test": SCORES}),
        "reestimated": Kind(trial, {"test": SCORES}),
        "refined": Kind(trial, {"test": SCORES, "curve": (CURVE, None)}),
        "tuned": Kind(trial, {"test": SCORES, "curve": (CURVE, None)}),
    }


@dataclass(frozen=True, eq=False)
class Compressed:
    """A compressed network.

    Arguments:
        network: before compression.
        model: its arrays then.
        plan: what became of each layer.
        factors: its parameters.
        state: its other collections.
        refine: how it is refined, if it is.
    """

    network: Network
    model: Variables
    plan: Plan
    factors: Any
    state: Any
    refine: RefineSettings = field(default_factory=RefineSettings)

    @cached_property
    def dense(self) -> Variables:
        """With its kernels multiplied out."""
        return Variables(reconstruct_params(self.factors, self.plan), self.state)

    def tuned(self, name: str) -> tuple[dict[str, Any], Compressed]:
        """Its factors trained on: what a record says of the way, and the network at its best.

        Arguments:
            name: of the random stream of the order of the data.
        """
        network, start = self.network, Variables(self.factors, self.state)
        apply = FactorisedNetwork(network.apply, self.plan)
        about, best = trained_on(network, start, apply, network.settings.finetune_fit, name)
        return about, replace(self, factors=best.params, state=best.state)

    def measured(
        self, kind: str, fields: Mapping[str, Any], batches: Sequence[Batch], name: str
    ) -> tuple[dict[str, Any], Compressed]:
        """The record of one kind of `compressed_schema`, and the network that it is about.

        Arguments:
            fields: what the record says beside the scores.
            batches: unlabelled, in effect: batch statistics are estimated again, and factors
                refined, on the images.
            name: see `tuned`; of the random streams of the refinement too.
        """
        after, found = self, {"kind": kind, **fields}
        if kind == "reestimated":
            again = reestimated(self.network, self.dense, batches)
            after = replace(self, state=again.state)
        elif kind == "refined":
            start = Variables(self.factors, self.state)
            about, best = refined(
                self.network, self.model, start, self.plan, batches, self.refine, name
            )
            found, after = found | about, replace(self, factors=best.params, state=best.state)
        elif kind == "tuned":
            about, after = self.tuned(name)
            found |= about
        test = scored(self.network, after.dense, self.network.splits.test)
        return {**found, "test": test}, after


def batches_for(
    network: Network, settings: CompressionSettings, calibration: Calibration
) -> Sequence[Batch]:
    """The images that are looked at: of the calibration, or those that all are shown."""
    if calibration.images or settings.shows_again:
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
    options: dict[str, Any] = {"max_iters": solver.max_iters, "tol": solver.tol, "progress": False}
    options["key"] = named_key(network.key(DECOMPOSE), name)
    if norm == FROBENIUS:
        return factorize_params(model.params, plan, **options)
    options["correct_bias"] = correct_bias
    if norm.startswith(SEQUENTIAL):
        weighing = moments if norm.endswith("kronecker") else None
        images = images_of(batches)
        found = network.call(
            factorize_sequentially, model, plan, images, moments=weighing, **options
        )
        return network.apply.parameters(found)
    return factorize_params(model.params, plan, moments=moments, norm=norm, **options)
