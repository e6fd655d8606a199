"""Means and variances of batch normalisation, from those of single batches."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tdjax.decompose.dealing import in_this_process
from tdjax.moments.feeding import Fed
from tdjax.moments.finite import Watch
from tdjax.moments.weighing import laid_out
from tdjax.processes import are_apart, gathered, summed, together
from tdjax.trace.call import peeked

# Of what a layer knew, the share that is left after a call in training mode.
LEFT = 1 - 2**-4
# The weight of statistics that no row of a batch has changed.
NO_ROWS = 1e-30


@dataclass
class Masks:
    """What is known of the masks of one run, and what the run is for.

    Attributes:
        counting: whether layers keep the share of the rows that count, in place of statistics.
        seen: whether a layer had a mask.
        weights: of the rows of the batch, see `tdjax.moments.weighing`, or None.
    """

    counting: bool = False
    seen: bool = False
    weights: Array | None = None

    def of_layer(self, x: Array, mask: Array | None) -> Array | None:
        """The mask of a layer with this input: its own, without rows of weight zero."""
        if self.weights is None:
            return mask
        counted = laid_out(self.weights, x.shape[:-1]) > 0
        counted = counted.reshape(*counted.shape, *(1,) * (x.ndim - counted.ndim))
        return counted if mask is None else counted & jnp.asarray(mask, bool)

    def share(self, x: Array, axis: int | Sequence[int], mask: Array | None) -> Any:
        """Of the rows of a layer's input, the share that its mask lets count, by feature."""
        if mask is None:
            return 1.0
        self.seen = True
        features = {k % x.ndim for k in ([axis] if isinstance(axis, int) else axis)}
        rows = tuple(k for k in range(x.ndim) if k not in features)
        # As Flax reads a mask.
        return jnp.broadcast_to(jnp.asarray(mask, bool), x.shape).mean(rows)

    def kept(self, before: Array, batch: Array, share: Any) -> Array:
        """What a layer keeps after a call.

        Arguments:
            before: what it kept.
            batch: the statistic of the rows of this call that count.
        """
        own = share if self.counting else jnp.where(share > 0, share * batch, 0)
        # Loops carry it, in the numbers that it has.
        return (LEFT * before + (1 - LEFT) * own).astype(before.dtype)


def batch_statistics(
    after: Callable[[dict[Any, Any], Masks], Mapping[Any, Any]],
    known: Mapping[Any, Any],
    weights: Array | None,
) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Running statistics as one batch would have them alone, and their weights.

    Where it does not come, known ones that weigh next to nothing.

    How often a layer is called is not told: transformations run calls in loops, and trace one call
    twice. So the model runs from two starts. What is left of their difference tells the share of
    the calls in the statistics, and with it their mean; all else in the two runs is the same.
    Where rows are masked, a third run counts them.

    Arguments:
        after: statistics before a batch -> those after it, each call leaving the share `LEFT`.
        known: the statistics that there are, by any keys.
        weights: of the rows, see `tdjax.moments.weighing`, or None.
    """
    masks, zeros = Masks(weights=weights), {key: jnp.zeros_like(x) for key, x in known.items()}
    low = after(zeros, masks)
    # As large as the statistics, for the difference to be exact.
    far = {key: 1 + jnp.abs(x).max() for key, x in low.items()}
    high = after({key: jnp.full_like(x, far[key]) for key, x in known.items()}, masks)
    shares = after(zeros, Masks(counting=True, weights=weights)) if masks.seen else None
    found, shared = {}, {}
    for key, x in known.items():
        left = (high[key] - low[key]) / far[key]
        # Of whole calls, of which the difference tells the number and rounds the share.
        calls = jnp.round(jnp.log(jnp.maximum(left, 1e-30)) / math.log(LEFT))
        left = jnp.where(calls == 1, LEFT, LEFT**calls)
        # Where NaN is, too, which is seen later.
        reached = ~(left > (1 + LEFT) / 2)
        once = jnp.where(reached, 1 - left, 1)
        counted = once if shares is None else shares[key]
        reached &= ~(counted <= 0)
        found[key] = jnp.where(reached, low[key] / jnp.where(reached, counted, 1), x)
        shared[key] = jnp.where(reached, counted / once, NO_ROWS)
    return found, shared


# (what is known of the model, a batch) -> means, variances and shares by layer, examples.
OfBatch = Callable[[Any, Fed], tuple[Any, Any, Any, int]]


def pooled_statistics(batches: Iterable[Fed], known: Any, of_batch: OfBatch) -> tuple[Any, Any]:
    """Means and variances of batch normalisation over all batches, by layer.

    Arguments:
        batches: of each process its own, or the same of all; see `tdjax.processes`.
        known: pytree of the model's arrays.

    Raises ValueError for no batches, and NaN or Inf in one.
    """
    function = "reestimate_batch_stats"
    first, batches = together(function, lambda: peeked(batches))
    apart = are_apart(function, first)
    if apart:
        known = jax.tree.map(in_this_process, known)

    def own() -> Pooled:
        pooled = Pooled(function)
        for batch in batches:
            pooled.add(*of_batch(known, batch))
        pooled.close()
        return pooled

    pooled = together(function, own)
    if apart:
        pooled.sum_over_processes()
    if pooled.examples == 0:
        raise ValueError(f"{function}: no batches")
    return pooled.mean_and_variance()


class Pooled:
    """Mean and variance of all examples together, from those of batches.

    The variance is the mean of the batches' and the variance of their means.
    """

    def __init__(self, function: str) -> None:
        """Nothing is known yet.

        Arguments:
            function: for messages.
        """
        self.examples = 0
        self.sums: Any = None
        self.weights: Any = None
        self._watch = Watch(function)

    def add(self, means: Any, variances: Any, shares: Any, examples: int) -> None:
        """Add a batch: mappings by layer, in any order.

        Arguments:
            shares: of the examples that the statistics are of.

        Raises ValueError for NaN and Inf in the batch before, naming a layer.
        """
        own = {path: (means[path], variances[path]) for path in means}
        self._watch.add(own, lambda path: f"the statistics of layer {_name(path)!r}")
        weights = jax.tree.map(lambda share: examples * share, shares)
        made = jax.tree.map(
            lambda mean, variance, weight: weight * jnp.stack([mean, variance + mean**2]),
            means,
            variances,
            weights,
        )
        self.sums = made if self.sums is None else jax.tree.map(jnp.add, self.sums, made)
        self.weights = (
            weights if self.weights is None else jax.tree.map(jnp.add, self.weights, weights)
        )
        self.examples += examples

    def close(self) -> None:
        """Raises ValueError as `add`, of the last batch."""
        self._watch.close()

    def sum_over_processes(self) -> None:
        """Take in the batches of all processes, of which some may have none."""
        ends = {"sums": self.sums or {}, "weights": self.weights or {}}
        named = {
            json.dumps([end, path]): jnp.asarray(x)
            for end, own in ends.items()
            for path, x in own.items()
        }
        self.examples = sum(gathered(self.examples))
        self.sums, self.weights = {}, {}
        for name, array in summed(named).items():
            end, path = json.loads(name)
            own = self.sums if end == "sums" else self.weights
            own[tuple(path) if isinstance(path, list) else path] = array

    def mean_and_variance(self) -> tuple[Any, Any]:
        """The two mappings for all batches."""
        both = jax.tree.map(jnp.divide, self.sums, self.weights)

        means = jax.tree.map(lambda both: both[0], both)
        return means, jax.tree.map(lambda both: jnp.maximum(both[1] - both[0] ** 2, 0.0), both)


@contextmanager
def statistics_coming_out(kept_inside: tuple[type[Exception], ...]) -> Iterator[None]:
    """Say in words where the statistics of a layer cannot leave the place of its call.

    Arguments:
        kept_inside: what a module system raises for it.
    """
    try:
        yield
    except ValueError as error:
        if not isinstance(error.__cause__, (jax.errors.UnexpectedTracerError, *kept_inside)):
            raise
        raise ValueError(
            "reestimate_batch_stats: a layer of batch normalisation is called inside a condition, "
            "a loop or a gradient of JAX's own, out of which its statistics cannot be carried: "
            "call it inside Flax's (nn.cond, nn.scan; nnx.cond, nnx.scan), or outside"
        ) from error


def _name(path: Any) -> str:
    return path if isinstance(path, str) else "/".join(path)
