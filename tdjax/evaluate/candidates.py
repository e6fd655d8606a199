"""Many kernels of one layer, evaluated side by side."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tdjax.params.factorize import replace_kernel
from tdjax.params.tree import layer_params
from tdjax.trace.call import StaticPart, call_arguments, split_arrays
from tdjax.trace.hoist import split

MetricFn = Callable[[Any, Any], Any]
# (kernel, variables, batch) -> pytree of sums over the examples. Hashable: equal functions share
# their compiled programs.
KernelFunction = Callable[[Array, Any, Any], Any]


@dataclass(frozen=True)
class Network:
    """A model as a static argument: models may hold lists, which have no hash."""

    model: Any

    def __hash__(self) -> int:
        """Equal models have equal classes."""
        return hash(type(self.model))


@dataclass(frozen=True)
class Performance:
    """A metric of the network with the kernel in place of a layer's own."""

    network: Network
    path: str
    metric_fn: MetricFn

    def __call__(self, kernel: Array, variables: Any, batch: Any) -> Any:
        """Sums of `metric_fn` over the examples."""
        params = replace_kernel(variables["params"], self.path, kernel)
        args, kwargs = call_arguments(batch[0] if isinstance(batch, tuple) else batch)
        outputs = self.network.model.apply({**variables, "params": params}, *args, **kwargs)
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), self.metric_fn(outputs, batch))


def evaluate_candidates(
    model: Any,
    variables: Mapping[str, Any],
    path: str,
    kernels: Float[Array, "n ..."],
    batches: Iterable[Any],
    metric_fn: MetricFn,
    *,
    chunk: int = 25,
) -> Any:
    """Performance of a network with each of many kernels in place of one layer's, side by side.

    Everything that the layer's kernel does not reach runs once for a batch. Behind the layer, a
    compiled program maps over the candidates, to which they are a larger batch.

    Arguments:
        model: a Linen module.
        variables: its trained variables.
        path: '/'-joined path of the layer.
        kernels: (n, *kernel shape), the candidates.
        batches: each batch is the model's input, or a tuple whose first entry that is and whose
            rest `metric_fn` may use.
        metric_fn: (outputs, batch) -> pytree of arrays over the examples, (batch,).
        chunk: candidates at once, which bounds memory; more candidates run in turns.

    Returns: pytree as of `metric_fn` with float64 arrays (n,): the mean over all examples.

    Raises ValueError for a kernel shape that does not fit, NaN or Inf, or no batches.
    """
    function = Performance(Network(model), path, metric_fn)
    return candidate_means(function, variables, path, kernels, batches, chunk)


def candidate_means(
    function: KernelFunction,
    variables: Mapping[str, Any],
    path: str,
    kernels: Float[Array, "n ..."],
    batches: Iterable[Any],
    chunk: int,
) -> Any:
    """Means over all examples of a function of each kernel; see `evaluate_candidates`.

    Arguments:
        path: of the layer whose kernels these are.
    """
    own = layer_params(variables["params"], path).get("kernel")
    if own is None:
        raise KeyError(f"candidates: {path!r} has no kernel")
    if chunk < 1:
        raise ValueError(f"candidates: chunk must be at least 1, got {chunk}")
    kernels = jnp.asarray(kernels)
    if kernels.shape[1:] != own.shape or kernels.shape[:1] in ((), (0,)):
        raise ValueError(
            f"candidates: kernels of shape {kernels.shape} for layer {path!r}, "
            f"expected (n, {', '.join(map(str, own.shape))}) with n of 1 or more"
        )
    if not bool(jnp.isfinite(kernels).all()):
        raise ValueError(f"candidates: a kernel for layer {path!r} holds NaN or Inf")
    n, totals, count = kernels.shape[0], None, 0
    size = min(chunk, n)
    # The last turn is filled up with kernels seen before, so that one program serves all turns.
    turns = [kernels[jnp.arange(start, start + size) % n] for start in range(0, n, size)]
    for batch in batches:
        count += examples(batch)
        arrays, frame = split_arrays(batch)
        fixed = (variables, arrays)
        shapes, structure = jax.tree.flatten(jax.eval_shape(lambda fixed=fixed: fixed))
        kernel = jax.ShapeDtypeStruct(own.shape, kernels.dtype)
        before, after = _programs(function, frame, kernel, structure, tuple(shapes))
        known = before(fixed)
        sums = [after(turn, known) for turn in turns]
        joined = jax.tree.map(lambda *parts: np.concatenate(parts)[:n].astype(np.float64), *sums)
        totals = joined if totals is None else jax.tree.map(np.add, totals, joined)
    if totals is None:
        raise ValueError("candidates: no batches")
    return jax.tree.map(lambda total: total / count, totals)


@functools.lru_cache(maxsize=256)
def _programs(
    function: KernelFunction,
    frame: StaticPart,
    kernel: Any,
    structure: Any,
    shapes: tuple[Any, ...],
) -> tuple[Callable[[Any], list[Array]], Callable[[Array, list[Array]], Any]]:
    """What runs once for a batch, and what runs for each turn of candidates."""

    def one(kernel: Array, fixed: Any) -> Any:
        variables, arrays = fixed
        return function(kernel, variables, frame.join(arrays))

    before, after = split(one, kernel, jax.tree.unflatten(structure, shapes))
    return jax.jit(before), jax.jit(jax.vmap(after, in_axes=(0, None)))


def examples(batch: Any) -> int:
    """Size of a batch: the first axis of its arrays. Raises ValueError for 0."""
    arrays, _ = split_arrays(batch)
    number = next((array.shape[0] for array in arrays if array.shape), 0)
    if number == 0:
        raise ValueError("an empty batch")
    return number
