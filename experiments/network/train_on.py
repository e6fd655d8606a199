"""What is done with a trained network: score it, collect its moments, train it further."""

from __future__ import annotations

import threading
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from experiments.data import Examples, arguments, mapped
from experiments.network.calibrate import (
    Batch,
    Calibration,
    images_of,
    sampled_loss,
    true_loss,
)
from experiments.network.curves import curve_of
from experiments.network.expanded import Expanded
from experiments.network.forward import Apply, Variables
from experiments.network.judge import LossOf
from experiments.network.network import FINETUNE, Network
from experiments.network.schedule import FitSettings
from experiments.network.training import (
    Fit,
    Scores,
    evaluate,
    fit_epochs,
    performance,
    start_fit,
)
from tdjax.dispatch import collect_moments, reestimate_batch_stats
from tdjax.moments.collect import LayerMoments
from tdjax.moments.file import load_moments, save_moments
from tdjax.moments.losses import LossFn
from tdjax.params.factorize import reconstruct_params
from tdjax.plan.plan import Plan


@dataclass(frozen=True)
class FactorisedNetwork(Expanded):
    """A network whose kernels are multiplied out from the factors of a plan; an `Apply`.

    It computes what the chains of thin layers compute, but at the cost of the dense layers: one
    program for all, and on small networks the faster one.
    """

    plan: Plan

    def whole(self, params: Any) -> Any:
        """The parameters with kernels in place of factors."""
        return reconstruct_params(params, self.plan)


def scored(network: Network, model: Variables, examples: Examples) -> dict[str, Any]:
    """Performance of a network whose kernels are multiplied out.

    Parameters of equal shapes share one compiled program, whatever was compressed.
    """
    size = network.settings.test.batch_size
    scores = evaluate(model.alone(), network.apply, examples, size, network.judge)
    return performance(scores, 0, len(examples.labels))


def moments_file(calibration: Calibration, folder: Path) -> Path:
    """Where the moments on a calibration are kept."""
    return folder / f"{calibration.source}-{calibration.images}-{calibration.subset}.npz"


def moments_for(
    network: Network,
    model: Variables,
    batches: Sequence[Batch],
    calibration: Calibration,
    folder: Path,
    *,
    gradients: bool,
) -> dict[str, LayerMoments]:
    """The moments of a network's layers on a calibration, read from `folder` if they are there.

    Arguments:
        gradients: whether those of the gradient are needed too.
    """
    path = moments_file(calibration, folder)
    # Of several tasks that need the same one makes them.
    with _making[str(path)]:
        if not path.exists():
            _make_moments(network, model, batches, path, gradients=gradients)
    # As a continued run would read them.
    return load_moments(path)


# By the file that is made.
_making: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


def _make_moments(
    network: Network, model: Variables, batches: Sequence[Batch], path: Path, *, gradients: bool
) -> None:
    settings = network.settings.calibration
    loss: LossFn = LossOf(network.judge)
    if network.settings.predicts_classes:
        named = {"true": true_loss, "sampled": sampled_loss}[settings.labels]
        loss = partial(named, temperature=settings.temperature)
    moments = network.call(
        collect_moments,
        model,
        mapped(_of_arguments, batches) if gradients else images_of(batches),
        loss_fn=loss if gradients else None,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_moments(path, moments)


def _of_arguments(batch: Batch) -> Batch:
    return batch._replace(images=arguments(batch.images))


def reestimated(network: Network, model: Variables, batches: Sequence[Batch]) -> Variables:
    """The network with its batch normalisation estimated again; labels are not looked at."""
    found = network.call(reestimate_batch_stats, model, images_of(batches), progress=False)
    collections = network.apply.collections(found)
    return Variables(collections.pop("params"), collections)


def trained_on(
    network: Network, model: Variables, apply: Apply, settings: FitSettings, name: str
) -> tuple[dict[str, Any], Variables]:
    """Train any network on the data of one.

    Returns what its record says of the way, and the variables at the best epoch.

    Arguments:
        model: what the training starts from.
        apply: its forward function.
        name: of the random stream of the order of the data.
    """
    keys = named_key(network.key(FINETUNE), name)[None]
    fit, curves = fitted(network, model.alone(), apply, settings, keys)
    about = {"epoch": int(fit.best_epoch[0]), "curve": curves[0]}
    return about, fit.best.of_run(0)


def fitted(
    network: Network, models: Variables, apply: Apply, settings: FitSettings, keys: Array
) -> tuple[Fit, list[dict[str, Any]]]:
    """Train runs side by side to their end, see `fit_epochs`; with the curve of each."""
    fit = start_fit(models, settings)
    epochs: list[tuple[np.ndarray, Scores]] = []
    for after in fit_epochs(fit, apply, settings, network.splits, keys, network.judge):
        fit = after.fit
        epochs.append((after.loss, after.scores))
    # Those that a run took while it was out of patience, beside others, are none of its own.
    ends = np.asarray(fit.best_epoch) + (settings.patience or len(epochs))
    return fit, [curve_of(epochs[:end], run) for run, end in enumerate(ends)]


def named_key(key: Array, name: str) -> Array:
    """A key of its own for each name."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
