"""Batch normalisation of an NNX model, estimated again."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache, partial
from typing import Any, TypeVar

import flax.errors
from flax import nnx

from tdjax.arguments.called import Method, call_model, calling_the_model
from tdjax.moments.feeding import Fed
from tdjax.moments.pooled import Masks, batch_statistics, pooled_statistics, statistics_coming_out
from tdjax.nnx.graph import become, modules_of
from tdjax.trace.call import StaticPart, batch_size, call_arguments, split_arrays
from tdjax.trace.kept import kept

M = TypeVar("M", bound=nnx.Module)
KINDS = ("mean", "var")


def reestimate_batch_stats(model: M, batches: Iterable[Fed], method: Method = None) -> M:
    """See `tdjax.reestimate_batch_stats`."""
    result = nnx.clone(model)
    layers = _layers(result)
    if not layers:
        raise ValueError("reestimate_batch_stats: the model has no batch statistics")
    graph, state = nnx.split(result)

    def step(frame: StaticPart, state: Any, arrays: Any, rows: Any) -> Any:
        args, kwargs = frame.join(arrays)
        known = {
            (path, kind): getattr(layer, kind)[...]
            for path, layer in _layers(nnx.merge(graph, state)).items()
            for kind in KINDS
        }
        after = partial(_after, graph, state, method, args, kwargs)
        found, shares = batch_statistics(after, known, rows)
        return tuple(
            {path: x for (path, own), x in of_all.items() if own == kind}
            for of_all, kind in ((found, "mean"), (found, "var"), (shares, "mean"))
        )

    steps: dict[StaticPart, Any] = {}

    def of_batch(state: Any, batch: Fed) -> tuple[Any, Any, Any, int]:
        inputs, rows = batch
        arrays, frame = split_arrays(call_arguments(inputs))
        with statistics_coming_out((flax.errors.TraceContextError,)), calling_the_model(inputs):
            own = steps.setdefault(frame, kept(partial(step, frame)))
            return (*own(state, arrays, rows), batch_size(arrays))

    means, variances = pooled_statistics(batches, state, of_batch)
    for path, layer in layers.items():
        for kind, found in (("mean", means), ("var", variances)):
            variable = getattr(layer, kind)
            variable[...] = found[path].astype(variable[...].dtype)
    return result


def keeps_batch_stats(model: nnx.Module) -> bool:
    """Whether a model has statistics that are re-estimated.

    Raises ValueError for one that has others beside them.
    """
    known = any(isinstance(own, nnx.BatchNorm) for own in modules_of(model).values())
    return known and bool(_layers(model))


def _layers(model: nnx.Module) -> dict[str, Any]:
    """The layers that are re-estimated, by path; ValueError for others that keep statistics."""
    modules = modules_of(model)
    for path, module in modules.items():
        if not isinstance(module, nnx.BatchNorm) and any(
            isinstance(own, nnx.BatchStat) for own in vars(module).values()
        ):
            raise ValueError(_refusal(path, module))
    return {path: m for path, m in modules.items() if isinstance(m, nnx.BatchNorm)}


def _refusal(path: str, module: nnx.Module) -> str:
    return (
        f"reestimate_batch_stats: layer {path!r} ({type(module).__name__}) keeps statistics in a "
        "way of its own: let its call pass on to that of nnx.BatchNorm, or run the model in its "
        "training mode"
    )


def _after(
    graph: Any,
    state: Any,
    method: Method,
    args: Any,
    kwargs: Any,
    start: dict[Any, Any],
    masks: Masks,
) -> dict[Any, Any]:
    """The statistics after a batch in training mode, from those before."""
    copy = nnx.merge(graph, state)
    layers = _layers(copy)
    for (path, kind), x in start.items():
        getattr(layers[path], kind)[...] = x
    for layer in layers.values():
        layer.tdjax_calls = _Calls(masks)
        become(layer, _training_class(type(layer)))  # type: ignore[arg-type]
    call_model(copy, method, args, kwargs)
    for path, layer in layers.items():
        if layer.tdjax_calls.own and not layer.tdjax_calls.normalising:
            raise ValueError(_refusal(path, layer))
    return {(path, kind): getattr(layers[path], kind)[...] for path, kind in start}


class _Calls:
    """How often a layer's own call ran, and that of nnx.BatchNorm; equal to itself alone."""

    own = 0
    normalising = 0

    def __init__(self, masks: Masks) -> None:
        self.masks = masks


class _Training(nnx.BatchNorm):
    """Batch normalisation that keeps the statistics of the batch, whatever mode it is given."""

    tdjax_calls: _Calls

    def __call__(self, x: Any, use_running_average: Any = None, **options: Any) -> Any:
        self.tdjax_calls.normalising += 1
        masks, before = self.tdjax_calls.masks, [self.mean[...], self.var[...]]
        mask = masks.of_layer(x, options.get("mask"))
        if mask is not None:
            options["mask"] = mask
        given, self.momentum = self.momentum, 0.0
        try:
            output = super().__call__(x, use_running_average=False, **options)
        finally:
            self.momentum = given
        share = masks.share(x, self.axis, mask)
        for variable, old in zip((self.mean, self.var), before, strict=True):
            variable[...] = masks.kept(old, variable[...], share)
        return output


@lru_cache(maxsize=256)
def _training_class(cls: Any) -> type:
    """A subclass between whose calls and that of nnx.BatchNorm is the one for training."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.tdjax_calls.own += 1
        return super(made, self).__call__(*args, **kwargs)

    bases = (_Training,) if cls is nnx.BatchNorm else (cls, _Training)
    made: Any = type(cls.__name__, bases, {"__call__": call})
    return made
