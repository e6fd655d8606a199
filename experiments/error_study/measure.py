"""Errors and performance of all decompositions of one layer, before any training."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.data import Examples
from experiments.error_study.bench import Bench, choice_fields
from experiments.error_study.candidates import Factors, dense_kernel
from experiments.error_study.error_names import COVARIANCE, FEATURES, KRONECKER, WEIGHTS, Family
from experiments.error_study.records import Choice, Key
from experiments.network.training import Model, Scores, example_scores, performance
from tdjax.dispatch import collect_moments
from tdjax.evaluate.candidates import evaluate_candidates
from tdjax.evaluate.errors import candidate_feature_errors, data_errors, weight_errors
from tdjax.moments.collect import LayerMoments
from tdjax.params.factorize import layer_params
from tdjax.plan.plan import PlannedLayer


def moments_of_layers(bench: Bench, model: Model) -> dict[str, LayerMoments]:
    """What the norms of the data are made of, for every layer that the study compresses.

    From the same training images as the feature errors; the loss is the cross-entropy of the
    uncompressed network. All layers at once, whichever are still to be measured: the same program
    gives the same numbers however often a study is interrupted.
    """
    settings, train = bench.protocol.measure, bench.splits.train
    count = settings.feature_images
    known = Examples(train.images[:count], train.labels[:count])
    with warnings.catch_warnings():
        # Few images say little about others, but here as for the feature errors the norm is meant
        # over just these; no factor is fitted to them.
        warnings.filterwarnings("ignore", "too few rows for second moments")
        return collect_moments(
            bench.module,
            {**model.state, "params": model.params},
            list(_batches(known, settings.batch_size)),
            loss_fn=_losses,
            paths=[re.escape(path) for path in bench.protocol.layers],
        )


def compressed_records(
    bench: Bench,
    model: Model,
    path: str,
    plans: Mapping[Choice, PlannedLayer],
    factors: Mapping[Key, Factors],
    moments: LayerMoments | None,
) -> dict[Key, dict[str, Any]]:
    """Errors and performance of every decomposition of one layer, no training.

    Without `moments` the errors in the norms of the data are left out.
    """
    settings, splits = bench.protocol.measure, bench.splits
    # Runs that share one decomposition are evaluated once.
    distinct = {id(own): (key, own) for key, own in factors.items()}
    place = {name: index for index, name in enumerate(distinct)}
    kernels = jnp.stack([_dense(own, plans[key[0]]) for key, own in distinct.values()])
    variables = {**model.state, "params": model.params}
    size = settings.batch_size
    scores = {
        name: evaluate_candidates(
            bench.module,
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
            bench.module, variables, path, kernels, inputs, chunk=settings.chunk
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
