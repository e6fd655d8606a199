"""Many kernels of one layer, evaluated side by side."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tdjax.arguments.called import check_metrics, number_of
from tdjax.decompose.dealing import in_this_process
from tdjax.decompose.inputs import all_finite
from tdjax.params.partitioning import unboxed
from tdjax.processes import are_apart, gathered, together
from tdjax.progress import Steps
from tdjax.trace.call import WHOLE, Reading, StaticPart, peeked, split_arrays
from tdjax.trace.hoist import split

MetricFn = Callable[[Any, Any], Any]


@runtime_checkable
class Network(Protocol):
    """A model as a static argument, its variables apart: what an adapter makes of one.

    Equal networks share their compiled programs.
    """

    def outputs(self, variables: Any, inputs: Any) -> Any:
        """What the model returns for one batch."""

    def kernel(self, variables: Any, path: str) -> Any:
        """The kernel of a layer, None where it has none. Raises KeyError for an unknown path."""

    def with_kernel(self, variables: Any, path: str, kernel: Array) -> Any:
        """The variables with another kernel in place of a layer's own."""

    def layer_outputs(
        self, variables: Any, kernels: Mapping[str, Array], inputs: Any
    ) -> dict[str, list[tuple[Array, Array]]]:
        """Outputs of some layers with their own kernel and with another, on the same input."""


@runtime_checkable
class KernelFunction(Protocol):
    """Sums over the examples of a batch, as a function of one layer's kernel.

    Hashable: equal functions share their compiled programs.
    """

    @property
    def network(self) -> Network:
        """The network."""

    @property
    def path(self) -> str:
        """The layer."""

    def __hash__(self) -> int:
        """Equal functions have equal hashes."""

    def count(self, batch: Any) -> float:
        """How much the examples of a batch count."""

    def __call__(self, kernel: Array, variables: Any, batch: Any) -> Any:
        """A pytree of sums over the examples."""

    def check(self, sums: Any, turn: int) -> None:
        """Refuse the sums of all candidates over a batch, the first being 1. Raises ValueError."""


@dataclass(frozen=True)
class Performance:
    """A metric of the network with the kernel in place of a layer's own.

    Arguments:
        reading: what of a batch the network gets.
    """

    network: Network
    path: str
    metric_fn: MetricFn
    reading: Reading = WHOLE

    def count(self, batch: Any) -> float:
        """The number of examples."""
        return float(examples(batch))

    def __call__(self, kernel: Array, variables: Any, batch: Any) -> tuple[Any, Array]:
        """Sums of `metric_fn` over the examples, and how many outputs are NaN."""
        changed = self.network.with_kernel(variables, self.path, kernel)
        outputs = self.network.outputs(changed, self.reading.inputs(batch))
        values = self.metric_fn(outputs, batch)
        check_metrics(values, number_of(batch))
        arrays, _ = split_arrays(outputs)
        numbers = [y for y in arrays if jnp.issubdtype(y.dtype, jnp.inexact)]
        lost = sum((jnp.isnan(y).sum() for y in numbers), jnp.zeros((), jnp.int32))
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), values), lost

    def check(self, sums: Any, turn: int) -> None:
        """Refuse outputs that are NaN whatever the kernel; a loss may be infinite."""
        if (sums[1] > 0).all():
            raise ValueError(
                f"evaluate_candidates: with batch {turn} (the first is 1) what the model puts out "
                f"behind layer {self.path!r} is NaN with every kernel: look for NaN and Inf in the "
                "batch and in the model's weights"
            )


def candidate_means(
    function: KernelFunction,
    variables: Any,
    kernels: Float[Array, "n ..."],
    batches: Iterable[Any],
    chunk: int,
    steps: Steps,
) -> Any:
    """Means over all examples of a function of each kernel; see `tdjax.evaluate_candidates`.

    Arguments:
        function: of the network and the layer whose kernels these are.
        variables: as the network takes them.
        steps: is told how many batches are done.
    """
    path, own = function.path, unboxed(function.network.kernel(variables, function.path))
    if own is None:
        raise KeyError(f"candidates: {path!r} has no kernel")
    kernels = jnp.asarray(kernels)
    if kernels.shape[1:] != own.shape or kernels.shape[:1] in ((), (0,)):
        raise ValueError(
            f"candidates: kernels of shape {kernels.shape} for layer {path!r}, "
            f"expected (n, {', '.join(map(str, own.shape))}) with n of 1 or more"
        )
    if not all_finite(kernels):
        raise ValueError(f"candidates: a kernel for layer {path!r} holds NaN or Inf")
    first, batches = together("candidates", lambda: _peeked(batches))
    apart = are_apart("candidates", first)
    if apart:
        variables, own, kernels = jax.tree.map(in_this_process, (variables, own, kernels))
    with steps.over(f"{len(kernels)} candidates", batches) as counted:
        totals, count = together(
            "candidates", lambda: _totals(function, variables, own, kernels, counted, chunk)
        )
    if apart:
        totals, count = _of_all_processes(totals, count)
    if count == 0:
        raise ValueError("candidates: row_weights leave no row that counts")
    return jax.tree.map(lambda total: total / count, totals)


def _of_all_processes(totals: Any, count: float) -> tuple[Any, float]:
    leaves, structure = jax.tree.flatten(totals)
    every = gathered([count, [leaf.tolist() for leaf in leaves]])
    sums = [sum(map(np.asarray, parts)) for parts in zip(*(own for _, own in every), strict=True)]
    return jax.tree.unflatten(structure, sums), sum(number for number, _ in every)


def _peeked(batches: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    first, batches = peeked(batches)
    if first is None:
        raise ValueError("candidates: no batches")
    return first, batches


def _totals(
    function: KernelFunction,
    variables: Any,
    own: Any,
    kernels: Array,
    batches: Iterable[Any],
    chunk: int,
) -> tuple[Any, float]:
    """The sums over the examples of batches, and how much these count."""
    n, totals, count = kernels.shape[0], None, 0.0
    size = min(chunk, n)
    # The last turn is filled up with kernels seen before, so that one program serves all turns.
    turns = [_taken(kernels, np.arange(start, start + size) % n) for start in range(0, n, size)]
    for number, batch in enumerate(batches, 1):
        count += function.count(batch)
        arrays, frame = split_arrays(batch)
        fixed = (variables, arrays)
        shapes, structure = jax.tree.flatten(jax.eval_shape(lambda fixed=fixed: fixed))
        kernel = jax.ShapeDtypeStruct(own.shape, kernels.dtype)
        before, after = _programs(function, frame, kernel, structure, tuple(shapes))
        known = before(fixed)
        sums = [after(turn, known) for turn in turns]
        joined = jax.tree.map(lambda *parts: np.concatenate(parts)[:n].astype(np.float64), *sums)
        function.check(joined, number)
        totals = joined if totals is None else jax.tree.map(np.add, totals, joined)
    return totals, count


@jax.jit
def _taken(kernels: Array, places: Array) -> Array:
    return kernels[places]


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
