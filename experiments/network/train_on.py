"""Compressed networks: measured, their batch normalisation estimated anew, trained on."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.data import Examples
from experiments.network.calibrate import Batch
from experiments.network.network import FINETUNE, Subject
from experiments.network.training import (
    Apply,
    FitSettings,
    Model,
    evaluate,
    fit_epochs,
    performance,
    start_fit,
    steps_per_epoch,
)
from tdjax.dispatch import reestimate_batch_stats
from tdjax.params.factorize import reconstruct_params
from tdjax.plan.plan import Plan


@dataclass(frozen=True)
class FactorisedNetwork:
    """A network whose kernels are multiplied out from the factors of a plan; an `Apply`.

    It computes what the chains of thin layers compute, but at the cost of the dense layers: one
    program for all, and on small networks the faster one.
    """

    apply: Apply
    plan: Plan

    def __call__(
        self, params: Any, state: Any, images: Array, key: Array | None
    ) -> tuple[Array, Any]:
        """Logits of a batch of images, and the collections after it."""
        return self.apply(reconstruct_params(params, self.plan), state, images, key)


def scored(subject: Subject, model: Model, examples: Examples) -> dict[str, Any]:
    """Performance of a network whose kernels are multiplied out.

    Parameters of equal shapes share one compiled program, whatever was compressed.
    """
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], model)
    scores = evaluate(one, subject.network, examples, subject.settings.test.batch_size)
    return performance(scores, 0, len(examples.labels))


def reestimated(subject: Subject, model: Model, batches: Sequence[Batch]) -> Model:
    """The network with its batch normalisation estimated anew; labels are not looked at."""
    variables = {**model.state, "params": model.params}
    state = dict(reestimate_batch_stats(subject.module, variables, batches))
    return Model(state.pop("params"), state)


def tuned(
    subject: Subject, factors: Mapping[str, Any], state: Any, plan: Plan, name: str
) -> tuple[int, Model]:
    """Train the factors of a compressed network on; the best epoch, and the factors there.

    Arguments:
        name: of the random stream of the order of the data.
    """
    network = FactorisedNetwork(subject.network, plan)
    settings = subject.settings.finetune_fit
    return trained_on(subject, Model(factors, state), network, settings, name)


def trained_on(
    subject: Subject, model: Model, network: Apply, settings: FitSettings, name: str
) -> tuple[int, Model]:
    """Train any network on the subject's data; the best epoch, and the model there.

    Arguments:
        model: what the training starts from.
        network: its forward function.
        name: of the random stream of the order of the data.
    """
    splits = subject.splits
    models = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], model)
    fit = start_fit(models, settings, steps_per_epoch(splits.train, settings))
    keys, black = named_key(subject.key(FINETUNE), name)[None], jnp.asarray(splits.black)
    for trained in fit_epochs(fit, network, settings, splits.train, splits.validation, keys, black):
        fit = trained
    return int(fit.best_epoch[0]), jax.tree.map(lambda leaf: leaf[0], fit.best)


def named_key(key: Array, name: str) -> Array:
    """A key of its own for each name."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
