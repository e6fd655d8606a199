"""Errors and performance of all decompositions of one layer, before and after training on."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.data import Examples
from experiments.error_study.bench import PlannedStudy
from experiments.error_study.candidates import (
    CompressedNetwork,
    Factors,
    choice_key,
    dense_kernel,
    widened,
    without_kernel,
)
from experiments.error_study.error_names import COVARIANCE, FEATURES, KRONECKER, WEIGHTS, Family
from experiments.error_study.records import Choice, Key, choice_fields
from experiments.network.network import FINETUNE
from experiments.network.train_on import fitted
from experiments.network.training import Scores, Variables, evaluate, example_scores, performance
from tdjax.dispatch import collect_moments
from tdjax.evaluate.candidates import evaluate_candidates
from tdjax.evaluate.errors import candidate_feature_errors, data_errors, weight_errors
from tdjax.moments.collect import LayerMoments
from tdjax.params.factorize import layer_params
from tdjax.plan.plan import PlannedLayer


def moments_of_layers(study: PlannedStudy, model: Variables) -> dict[str, LayerMoments]:
    """What the norms of the data are made of, for every layer that the study compresses.

    From the same training images as the feature errors; the loss is the cross-entropy of the
    uncompressed network. All layers at once, whichever are still to be measured: the same program
    gives the same numbers however often a study is interrupted.
    """
    settings, train = study.protocol.measure, study.network.splits.train
    count = settings.feature_images
    known = Examples(train.images[:count], train.labels[:count])
    with warnings.catch_warnings():
        # Few images say little about others, but here as for the feature errors the norm is meant
        # over just these; no factor is fitted to them.
        warnings.filterwarnings("ignore", "too few rows for second moments")
        return collect_moments(
            study.network.module,
            model.collections,
            list(_batches(known, settings.batch_size)),
            loss_fn=_losses,
            paths=[re.escape(path) for path in study.protocol.layers],
        )


def compressed_records(
    study: PlannedStudy,
    model: Variables,
    path: str,
    plans: Mapping[Choice, PlannedLayer],
    factors: Mapping[Key, Factors],
    moments: LayerMoments | None,
) -> dict[Key, dict[str, Any]]:
    """Errors and performance of every decomposition of one layer, no training.

    Without `moments` the errors in the norms of the data are left out.
    """
    settings, splits = study.protocol.measure, study.network.splits
    # Runs that share one decomposition are evaluated once.
    distinct = {id(own): (key, own) for key, own in factors.items()}
    place = {name: index for index, name in enumerate(distinct)}
    kernels = jnp.stack([_dense(own, plans[key[0]]) for key, own in distinct.values()])
    variables = model.collections
    size = settings.batch_size
    scores = {
        name: evaluate_candidates(
            study.network.module,
            variables,
            path,
            kernels,
            list(_batches(examples, size)),
            _metrics,
            chunk=settings.chunk,
        )
        for name, examples in (("validation", splits.validation), ("test", splits.test))
    }
    images = splits.train.images[: settings.feature_images]
    inputs = [images[start : start + size] for start in range(0, len(images), size)]
    original = layer_params(model.params, path)["kernel"]
    found: dict[Family, Mapping[str, Any]] = {
        WEIGHTS: jax.vmap(lambda kernel: weight_errors(original, kernel))(kernels),
        FEATURES: candidate_feature_errors(
            study.network.module, variables, path, kernels, inputs, chunk=settings.chunk
        ),
    }
    if moments is not None:
        chunk = min(settings.chunk, len(kernels))
        for family, outputs in ((COVARIANCE, None), (KRONECKER, moments.outputs)):
            found[family] = _data_errors(original, kernels, moments.inputs, outputs, chunk=chunk)
    errors = {
        name: np.asarray(found[family][kind])
        for family in found
        for name, kind in zip(family.errors, family.kinds, strict=True)
    }

    records: dict[Key, dict[str, Any]] = {}
    for key, own in factors.items():
        k, plan = place[id(own)], plans[key[0]]
        records[key] = {
            "kind": "compressed",
            **choice_fields(key),
            "ranks": list(plan.ranks),
            "kept": plan.kept,
            "saves": plan.size < plan.layer.size,
            "errors": {name: float(values[k]) for name, values in errors.items()},
            **{
                name: performance(Scores(*found_scores), k, len(examples.labels))
                for (name, found_scores), examples in zip(
                    scores.items(), (splits.validation, splits.test), strict=True
                )
            },
        }
    return records


def finetune_records(
    study: PlannedStudy,
    model: Variables,
    choice: Choice,
    plan: PlannedLayer,
    factors: Mapping[Key, Factors],
    alike: Sequence[Factors],
) -> dict[Key, dict[str, Any]]:
    """Train all runs of one choice on and measure them; shapes are those of all `alike`."""
    network, runs = study.network, range(study.protocol.runs)
    settings = network.settings.finetune_fit
    layer = plan.layer
    compressed = CompressedNetwork(
        network.apply, layer.path, layer.kernel_shape, layer.groups, str(plan.method)
    )
    dense = without_kernel(model.params, layer.path)
    models = [
        Variables({"dense": dense, "factors": widened(factors[choice, run], alike)}, model.state)
        for run in runs
    ]
    keys = [choice_key(network.key(FINETUNE), choice, run) for run in runs]
    splits = network.splits
    records: dict[Key, dict[str, Any]] = {}
    for group in side_by_side(runs):
        fit = fitted(
            jax.tree.map(lambda *leaves: jnp.stack(leaves), *[models[run] for run in group]),
            compressed,
            settings,
            splits,
            jnp.stack([keys[run] for run in group]),
        )
        scores = {
            name: (evaluate(fit.best, compressed, examples), len(examples.labels))
            for name, examples in (("validation", splits.validation), ("test", splits.test))
        }
        for k, run in enumerate(group):
            records[choice, run] = {
                "kind": "finetuned",
                **choice_fields((choice, run)),
                "epoch": int(fit.best_epoch[k]),
                **{name: performance(s, k, count) for name, (s, count) in scores.items()},
            }
    return records


def side_by_side(runs: Sequence[int]) -> list[Sequence[int]]:
    """Which runs share one program: all on an accelerator, each alone on CPU.

    Networks whose parameters all differ become grouped convolutions under vmap, for which XLA has
    no fast path on CPU (a small CNN's step: 15 ms alone, 190 ms for five under vmap). The numbers
    are the same either way.
    """
    if jax.default_backend() == "cpu":
        return [[run] for run in runs]
    return [runs]


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


def _losses(outputs: Any, batch: Any) -> jax.Array:
    return example_scores(outputs, batch[1])[1]


def _metrics(outputs: jax.Array, batch: Any) -> tuple[jax.Array, jax.Array]:
    return example_scores(outputs, batch[1])


def _batches(examples: Examples, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(examples.labels), size):
        part = slice(start, start + size)
        yield examples.images[part], examples.labels[part]


def _dense(factors: Factors, plan: PlannedLayer) -> jax.Array:
    layer = plan.layer
    return dense_kernel(factors, layer.kernel_shape, layer.groups, str(plan.method))
