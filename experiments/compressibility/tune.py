"""Pruned networks trained on, their zeros kept."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.network.network import Subject
from experiments.network.train_on import trained_on
from experiments.network.training import FitSettings, Model
from tdjax.pruning.masks import keep_zeros
from tdjax.pruning.prunable import WEIGHTS, names_of


@dataclass(frozen=True, kw_only=True)
class MaskedFit(FitSettings):
    """Training in which weights that are zero at its start stay so."""

    def optimiser(self, steps_per_epoch: int) -> optax.GradientTransformation:
        """As of `FitSettings`, with no updates of such weights."""
        return optax.chain(super().optimiser(steps_per_epoch), keep_zeros(present))


def present(params: Any) -> Any:
    """A mask that is False where a weight of a kernel is zero; biases and scales are True."""

    def one(path: Any, leaf: Any) -> Any:
        is_kernel = names_of(path)[-1:] in [(name,) for name in WEIGHTS] and leaf.ndim > 1
        return leaf != 0 if is_kernel else jnp.ones(leaf.shape, bool)

    return jax.tree_util.tree_map_with_path(one, params)


def tuned(subject: Subject, model: Model, name: str) -> tuple[int, Model]:
    """Train a pruned network on; the best epoch, and the network there.

    Arguments:
        name: of the random stream of the order of the data.
    """
    after = subject.settings.finetune_fit
    settings = MaskedFit(**{f.name: getattr(after, f.name) for f in dataclasses.fields(after)})
    return trained_on(subject, model, subject.network, settings, name)
