"""Batch normalisation of an NNX model, estimated again."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from tdjax.arguments.called import calling_the_model
from tdjax.moments.pooled import Pooled
from tdjax.nnx.graph import modules_of
from tdjax.trace.call import StaticPart, batch_size, call_arguments, split_arrays

M = TypeVar("M", bound=nnx.Module)


def reestimate_batch_stats(model: M, batches: Iterable[Any]) -> M:
    """See `tdjax.reestimate_batch_stats`."""
    result = nnx.clone(model)
    layers = {path: m for path, m in modules_of(result).items() if type(m) is nnx.BatchNorm}
    if not layers:
        raise ValueError("reestimate_batch_stats: the model has no batch statistics")
    moving = {path: layer for path, layer in layers.items() if layer.momentum < 1}
    before = {path: layer.use_running_average for path, layer in moving.items()}
    for layer in moving.values():
        layer.use_running_average = False
    graph, state = nnx.split(result)

    @partial(jax.jit, static_argnums=2)
    def step(state: Any, arrays: Any, frame: StaticPart) -> Any:
        copy = nnx.merge(graph, state)
        own = {path: m for path, m in modules_of(copy).items() if path in moving}
        for layer in own.values():
            layer.mean[...], layer.var[...] = (
                jnp.zeros(layer.mean.shape),
                jnp.zeros(layer.var.shape),
            )
        args, kwargs = frame.join(arrays)
        copy(*args, **kwargs)
        shares = {path: 1 - layer.momentum for path, layer in own.items()}
        return tuple(
            {path: getattr(layer, kind)[...] / shares[path] for path, layer in own.items()}
            for kind in ("mean", "var")
        )

    pooled = Pooled("reestimate_batch_stats")
    for batch in batches:
        arrays, frame = split_arrays(call_arguments(batch))
        with calling_the_model(batch):
            found, spread = step(state, arrays, frame)
        pooled.add(found, spread, batch_size(arrays))
    if pooled.examples == 0:
        raise ValueError("reestimate_batch_stats: no batches")
    means, variances = pooled.mean_and_variance()
    for path, layer in moving.items():
        layer.mean[...], layer.var[...] = means[path], variances[path]
        layer.use_running_average = before[path]
    return result
