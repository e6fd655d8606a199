"""Batch normalisation of a Linen model, estimated again."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import flax.errors
import flax.linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from tdjax.arguments.called import Method, call_model, calling_the_model
from tdjax.linen.intercept import Interceptor, apply_inside
from tdjax.linen.place import Path, Place
from tdjax.moments.feeding import Fed
from tdjax.moments.pooled import Masks, batch_statistics, pooled_statistics, statistics_coming_out
from tdjax.params.tree import join_path
from tdjax.trace.call import batch_size, call_arguments, split_arrays
from tdjax.trace.kept import kept

# What computes the statistics of a batch; subclasses that have another call pass on to it.
NORMALISES = inspect.unwrap(nn.BatchNorm.__call__)
_passes = itertools.count()


def reestimate_batch_stats(
    model: nn.Module,
    variables: Mapping[str, Any],
    batches: Iterable[Fed],
    method: Method = None,
) -> dict[str, Any]:
    """See `tdjax.reestimate_batch_stats`."""
    if not variables.get("batch_stats"):
        raise ValueError("reestimate_batch_stats: the model has no batch statistics")
    known: dict[Path, Any] = dict(flatten_dict(variables["batch_stats"]))
    steps: dict[Any, Callable[..., Any]] = {}

    def of_batch(variables: Any, batch: Fed) -> tuple[Any, Any, Any, int]:
        inputs, rows = batch
        arrays, frame = split_arrays(call_arguments(inputs))
        if frame not in steps:
            steps[frame] = _step(model, method, frame)
        with (
            statistics_coming_out((flax.errors.JaxTransformError,)),
            calling_the_model(inputs),
        ):
            return (*steps[frame](variables, arrays, rows), batch_size(arrays))

    found = pooled_statistics(batches, variables, of_batch)
    for kind, values in zip(("mean", "var"), found, strict=True):
        for path, value in values.items():
            known[(*path, kind)] = value.astype(known[(*path, kind)].dtype)
    return {**variables, "batch_stats": unflatten_dict(known)}


def keeps_batch_stats(model: nn.Module, variables: Mapping[str, Any]) -> bool:
    """Whether a model has statistics that are re-estimated."""
    del model
    known = flatten_dict(variables.get("batch_stats", {}))
    return any(path[-1] in ("mean", "var") for path in known)


def _step(model: nn.Module, method: Method, frame: Any) -> Callable[..., Any]:
    """(variables, arrays, weights of rows) -> means, variances, shares of one batch, by path."""

    def step(variables: Any, arrays: Any, rows: Any) -> Any:
        every = flatten_dict(variables["batch_stats"])
        args, kwargs = frame.join(arrays)

        def after(start: dict[Path, Any], masks: Masks) -> Any:
            # A collection of another name every time: `nn.jit` in the model traces again.
            mutable = ["batch_stats", f"tdjax_{next(_passes)}"]
            call = partial(call_model, method=method, args=args, kwargs=kwargs)
            given = {**variables, "batch_stats": unflatten_dict({**every, **start})}
            interceptor_at = partial(_training, set(), masks)
            _, changed = apply_inside(model, interceptor_at, given, call, mutable=mutable)
            made = flatten_dict(changed["batch_stats"])
            return {path: made[path] for path in start}

        known = {path: x for path, x in every.items() if path[-1] in ("mean", "var")}
        found, shares = batch_statistics(after, known, rows)
        return tuple(
            {path[:-1]: x for path, x in own.items() if path[-1] == kind}
            for own, kind in ((found, "mean"), (found, "var"), (shares, "mean"))
        )

    return kept(step)


def _training(reached: set[Path], masks: Masks, place: Place) -> Interceptor:
    """An interceptor that lets batch normalisation keep the statistics of the batch.

    Arguments:
        reached: filled in: the layers that do.
        masks: of this run.
    """

    def intercept(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, path = context.module, place.path_of(context.module)
        if path is None or context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        if getattr(context.orig_method, "func", None) is NORMALISES:
            reached.add(path)
            before = {kind: module.get_variable("batch_stats", kind) for kind in ("mean", "var")}
            x = args[0] if args else kwargs["x"]
            mask = masks.of_layer(x, kwargs.get("mask"))
            given = {**kwargs, "use_running_average": False}
            if mask is not None:
                given["mask"] = mask
            with _settings(module, momentum=0.0, use_running_average=None):
                output = next_fun(*args[:1], **given)
            share = masks.share(x, module.axis, mask)
            for kind, old in before.items():
                batch = module.get_variable("batch_stats", kind)
                module.put_variable("batch_stats", kind, masks.kept(old, batch, share))
            return output
        output = next_fun(*args, **kwargs)
        _check(module, path, reached)
        return output

    return intercept


@contextmanager
def _settings(module: Any, **settings: Any) -> Iterator[None]:
    """A module with other settings. The mode is given to it or to its call, never to both."""
    given = {name: getattr(module, name) for name in settings}
    try:
        for name, value in settings.items():
            object.__setattr__(module, name, value)
        yield
    finally:
        for name, value in given.items():
            object.__setattr__(module, name, value)


def _check(module: nn.Module, path: Path, reached: set[Path]) -> None:
    """Refuse a layer that was called and keeps statistics of batches in a way of its own."""
    own = module.variables.get("batch_stats", {})
    # That of a spectral norm is one of the weights.
    known = path in reached or isinstance(module, nn.SpectralNorm)
    if not known and any(not isinstance(leaf, Mapping) for leaf in own.values()):
        raise ValueError(
            f"reestimate_batch_stats: layer {join_path(*path)!r} ({type(module).__name__}) keeps "
            "statistics in a way of its own: let its call pass on to that of nn.BatchNorm, or run "
            "the model in its training mode with mutable=['batch_stats']"
        )
