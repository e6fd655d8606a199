"""Batch normalisation of a Linen model, estimated again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from tdjax.arguments.called import calling_the_model
from tdjax.moments.pooled import Pooled
from tdjax.trace.call import batch_size, call_arguments, split_arrays

Path = tuple[str, ...]


def reestimate_batch_stats(
    model: nn.Module, variables: Mapping[str, Any], batches: Iterable[Any]
) -> dict[str, Any]:
    """See `tdjax.reestimate_batch_stats`."""
    if not variables.get("batch_stats"):
        raise ValueError("reestimate_batch_stats: the model has no batch statistics")
    known: dict[Path, Any] = dict(flatten_dict(variables["batch_stats"]))
    pooled = Pooled("reestimate_batch_stats")
    steps: dict[Any, Callable[..., Any]] = {}
    shares: dict[Path, float] = {}
    for batch in batches:
        arrays, frame = split_arrays(call_arguments(batch))
        if frame not in steps:
            steps[frame] = _step(model, frame, shares)
        with calling_the_model(batch):
            found = flatten_dict(steps[frame](variables, arrays))
        own = {
            path: leaf / shares[path[:-1]] for path, leaf in found.items() if path[:-1] in shares
        }
        means = {path[:-1]: leaf for path, leaf in own.items() if path[-1] == "mean"}
        variances = {path[:-1]: leaf for path, leaf in own.items() if path[-1] == "var"}
        pooled.add(means, variances, batch_size(arrays))
    if pooled.examples == 0:
        raise ValueError("reestimate_batch_stats: no batches")
    for kind, values in zip(("mean", "var"), pooled.mean_and_variance(), strict=True):
        for path, value in values.items():
            known[(*path, kind)] = value.astype(known[(*path, kind)].dtype)
    return {**variables, "batch_stats": unflatten_dict(known)}


def _step(model: nn.Module, frame: Any, shares: dict[Path, float]) -> Callable[..., Any]:
    """(variables, arrays) -> the statistics that one batch adds to none.

    Arguments:
        shares: filled in when the program is traced: what part of a batch's own statistics a layer
            adds, by path.
    """

    @jax.jit
    def step(variables: Any, arrays: Any) -> Any:
        calls: Counter[Path] = Counter()

        def training(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
            module = context.module
            if type(module) is not nn.BatchNorm or context.method_name != "__call__":
                return next_fun(*args, **kwargs)
            path = tuple(module.path)
            calls[path] += 1
            if module.momentum < 1:
                shares[path] = 1 - module.momentum ** calls[path]
            # Given to the layer or to its call; it may not be given to both.
            given = module.use_running_average
            object.__setattr__(module, "use_running_average", None)
            try:
                return next_fun(*args[:1], **{**kwargs, "use_running_average": False})
            finally:
                object.__setattr__(module, "use_running_average", given)

        args, kwargs = frame.join(arrays)
        empty = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
        with nn.intercept_methods(training):
            _, changed = model.apply(
                {**variables, "batch_stats": empty}, *args, **kwargs, mutable=["batch_stats"]
            )
        return changed["batch_stats"]

    return step
