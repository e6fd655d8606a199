"""Errors and performance of all decompositions of one layer, before any training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tdjax.candidates import evaluate_candidates
from tdjax.data import Examples
from tdjax.errors import candidate_feature_errors, weight_errors
from tdjax.factorize import layer_params
from tdjax.plan import PlannedLayer
from tdjax.study.bench import Bench, choice_fields, performance
from tdjax.study.candidates import Factors, dense_kernel
from tdjax.study.records import Choice, Key
from tdjax.training import Model, Scores, example_scores


def compressed_records(
    bench: Bench,
    model: Model,
    path: str,
    plans: Mapping[Choice, PlannedLayer],
    factors: Mapping[Key, Factors],
) -> dict[Key, dict[str, Any]]:
    """Six errors and the performance of every decomposition of one layer, no training."""
    settings, splits = bench.protocol.measure, bench.splits
    # Runs that share one decomposition are evaluated once.
    distinct = {id(found): (key, found) for key, found in factors.items()}
    place = {name: index for index, name in enumerate(distinct)}
    kernels = jnp.stack([_dense(found, plans[key[0]]) for key, found in distinct.values()])
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
    feature_errors = candidate_feature_errors(
        bench.module, variables, path, kernels, inputs, chunk=settings.chunk
    )
    original = layer_params(model.params, path)["kernel"]
    weights = jax.vmap(lambda kernel: weight_errors(original, kernel))(kernels)

    records: dict[Key, dict[str, Any]] = {}
    for key, found in factors.items():
        k, plan = place[id(found)], plans[key[0]]
        records[key] = {
            "kind": "compressed",
            **choice_fields(key),
            "ranks": list(plan.ranks),
            "kept": plan.kept,
            "saves": plan.size < plan.layer.size,
            "errors": {f"weights/{name}": float(values[k]) for name, values in weights.items()}
            | {f"features/{name}": float(values[k]) for name, values in feature_errors.items()},
            **{
                name: performance(Scores(*found_scores), k, len(examples.labels))
                for (name, found_scores), examples in zip(
                    scores.items(), (splits.validation, splits.test), strict=True
                )
            },
        }
    return records


def _metrics(outputs: jax.Array, batch: Any) -> tuple[jax.Array, jax.Array]:
    return example_scores(outputs, batch[1])


def _batches(examples: Examples, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(examples.labels), size):
        part = slice(start, start + size)
        yield examples.images[part], examples.labels[part]


def _dense(factors: Factors, plan: PlannedLayer) -> jax.Array:
    layer = plan.layer
    return dense_kernel(factors, layer.kernel_shape, layer.groups, str(plan.method))
