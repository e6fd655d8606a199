"""Errors and performance of all decompositions of one layer, before and after training on."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.data import Inputs, mapped
from experiments.error_study.candidates import (
    CompressedNetwork,
    Factors,
    choice_key,
    kernel_of,
    widened,
    without_kernel,
)
from experiments.error_study.choices import PlannedStudy
from experiments.error_study.protocol import Choice, Key, Run
from experiments.error_study.records import choice_fields
from experiments.network.calibrate import Calibration, draw
from experiments.network.forward import Variables
from experiments.network.judge import Judge, LossOf, ScoresOf
from experiments.network.network import FINETUNE
from experiments.network.train_on import fitted
from experiments.network.training import Scores, evaluate, performance
from tdjax.dispatch import candidate_feature_errors, collect_moments, evaluate_candidates
from tdjax.evaluate.errors import data_errors, weight_errors
from tdjax.moments.collect import LayerMoments
from tdjax.plan.layers import Layer
from tdjax.plan.plan import PlannedLayer
from tdjax.plan.stage import format_chain

# The sets of examples that compressed networks are measured on.
MEASURED = ("validation", "test")


@contextmanager
def few_images() -> Iterator[None]:
    """A block in which nobody is warned of second moments of few images.

    These say little about others, but here as for the feature errors the norm is meant over just
    them; no factor is fitted to them. Filters belong to the process: where threads are in such
    blocks, one around all of them must be too.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "too few rows for second moments")
        yield


def moments_of_layers(study: PlannedStudy, model: Variables) -> dict[str, LayerMoments]:
    """What the norms of the data are made of, for every layer that the study compresses.

    From the same training images as the feature errors; the loss is the cross-entropy of the
    uncompressed network. All layers at once, whichever are still to be measured: the same program
    gives the same numbers however often a study is interrupted.
    """
    with few_images():
        moments: dict[str, LayerMoments] = study.network.call(
            collect_moments,
            model,
            _feature_batches(study),
            loss_fn=LossOf(study.network.judge),
            paths=[re.escape(path) for path in study.protocol.layers],
            progress=False,
        )
    return moments


def compressed_records(
    study: PlannedStudy,
    model: Variables,
    path: str,
    plans: Mapping[Choice, PlannedLayer],
    factors: Mapping[Run, Factors],
    moments: LayerMoments | None,
) -> dict[Run, dict[str, Any]]:
    """Errors and performance of every decomposition of one layer, no training.

    Without `moments` the errors in the norms of the data are left out.
    """
    # Runs that share one decomposition are evaluated once.
    distinct = {id(own): (key[0], own) for key, own in factors.items()}
    place = {name: index for index, name in enumerate(distinct)}
    chains = {choice: format_chain(plan.chain) for choice, plan in plans.items()}
    kernels = jnp.stack([chains[choice].dense(own) for choice, own in distinct.values()])
    layer = next(iter(plans.values())).layer
    arrays = jax.vmap(layer.storage.from_kernel)(kernels)
    scores = _candidate_scores(study, model, path, arrays)
    errors = _candidate_errors(study, model, layer, kernels, arrays, moments)
    records = {}
    for (choice, run), own in factors.items():
        plan, index = plans[choice], place[id(own)]
        records[choice, run] = {
            "kind": "compressed",
            **choice_fields(Key(study.number, choice, run)),
            "ranks": list(plan.ranks),
            "kept": plan.kept,
            "saves": plan.size < plan.layer.size,
            "errors": {name: float(values[index]) for name, values in errors.items()},
            **_performances(study, scores, index),
        }
    return records


def finetune_records(
    study: PlannedStudy,
    model: Variables,
    choice: Choice,
    plan: PlannedLayer,
    factors: Mapping[Run, Factors],
    alike: Sequence[Factors],
    runs: Sequence[int] | None = None,
) -> dict[Run, dict[str, Any]]:
    """Train runs of one choice on and measure them; shapes are those of all `alike`.

    Arguments:
        runs: some of `tuned_together`, or None for all runs.
    """
    network = study.network
    runs = range(study.protocol.runs_of(choice.method)) if runs is None else runs
    compressed = CompressedNetwork.of(network.apply, plan)
    dense = without_kernel(model.params, plan.layer)
    groups = tuned_together(runs)
    rest = Variables({"dense": dense}, model.state).copies(len(groups[0]))
    records: dict[Run, dict[str, Any]] = {}
    for group in groups:
        wide = [widened(factors[choice, run], alike) for run in group]
        own = jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *wide))
        models = rest._replace(params={**rest.params, "factors": own})
        keys = jnp.stack([choice_key(network.key(FINETUNE), choice, run) for run in group])
        fit, curves = fitted(network, models, compressed, network.settings.finetune_fit, keys)
        scores = {
            name: evaluate(fit.best, compressed, getattr(network.splits, name), judge=network.judge)
            for name in MEASURED
        }
        for k, run in enumerate(group):
            records[choice, run] = {
                "kind": "finetuned",
                **choice_fields(Key(study.number, choice, run)),
                "epoch": int(np.asarray(fit.best_epoch)[k]),
                "curve": curves[k],
                **_performances(study, scores, k),
            }
    return records


def tuned_together(runs: Sequence[int]) -> list[list[int]]:
    """Which runs of a choice are fine-tuned side by side, in one computation.

    Networks whose parameters all differ become grouped convolutions under vmap, for which XLA has
    no fast path on CPU (a small CNN's step: 15 ms alone, 190 ms for five under vmap).
    """
    return [[run] for run in runs] if jax.default_backend() == "cpu" else [list(runs)]


def _candidate_scores(
    study: PlannedStudy, model: Variables, path: str, arrays: Float[Array, "n ..."]
) -> dict[str, Scores]:
    """Performance with each of the kernels in one layer's place, by set of examples."""
    settings = study.protocol.measure
    return {
        name: _scores(
            study.network.judge,
            *study.network.call(
                evaluate_candidates,
                model,
                path,
                arrays,
                getattr(study.network.splits, name).batches(settings.batch_size),
                ScoresOf(study.network.judge),
                chunk=settings.chunk,
                progress=False,
            ),
        )
        for name in MEASURED
    }


def _scores(judge: Judge, metric: np.ndarray, loss: np.ndarray) -> Scores:
    return Scores(judge.bounded(metric), loss)


def _candidate_errors(
    study: PlannedStudy,
    model: Variables,
    layer: Layer,
    kernels: Float[Array, "n ..."],
    arrays: Float[Array, "n ..."],
    moments: LayerMoments | None,
) -> dict[str, Float[np.ndarray, " n"]]:
    """Errors of each of the kernels in one layer's place, by name."""
    settings, network = study.protocol.measure, study.network
    inputs = mapped(itemgetter(0), _feature_batches(study))
    original = kernel_of(model, layer)
    found: dict[str, Mapping[str, Any]] = {
        "weights": _weight_errors(original, kernels),
        "features": network.call(
            candidate_feature_errors,
            model,
            layer.path,
            arrays,
            inputs,
            chunk=settings.chunk,
            progress=False,
        ),
    }
    if moments is not None:
        chunk = min(settings.chunk, len(kernels))
        for norm, outputs in (("covariance", None), ("kronecker", moments.outputs)):
            found[norm] = _data_errors(original, kernels, moments.inputs, outputs, chunk=chunk)
    return {
        f"{of}/{kind}": np.asarray(values)
        for of, errors in found.items()
        for kind, values in sorted(errors.items())
    }


def _performances(
    study: PlannedStudy, scores: Mapping[str, Scores], index: int
) -> dict[str, dict[str, Any]]:
    """The fields of a record that say how run or candidate `index` did."""
    splits = study.network.splits
    return {
        name: performance(found, index, len(getattr(splits, name).labels))
        for name, found in scores.items()
    }


@jax.jit
def _weight_errors(
    original: Float[Array, "*_"], kernels: Float[Array, "n ..."]
) -> dict[str, Float[Array, " n"]]:
    return jax.vmap(partial(weight_errors, original))(kernels)


@partial(jax.jit, static_argnames=("chunk",))
def _data_errors(
    original: Float[Array, "*_"],
    kernels: Float[Array, "n ..."],
    inputs: Float[Array, "*_"],
    outputs: Float[Array, "*_"] | None,
    chunk: int,
) -> dict[str, Float[Array, " n"]]:
    """The errors of all candidates, mapped over `chunk` at once, which bounds memory."""
    return jax.lax.map(
        lambda kernel: data_errors(original, kernel, inputs, outputs), kernels, batch_size=chunk
    )


def _feature_batches(study: PlannedStudy) -> Sequence[tuple[Inputs, np.ndarray]]:
    """The training images over which errors are measured, with their labels."""
    train, settings = study.network.splits.train, study.protocol.measure
    if settings.drawn:
        chosen = Calibration(images=settings.feature_images)
        train = draw(train, chosen, study.network.settings.seed)
    return train.batches(settings.batch_size, settings.feature_images)
