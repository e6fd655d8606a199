"""Pruning by magnitude: how many of the largest weights stay, by a share, by indices, by error."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tdjax.arguments.checks import checked
from tdjax.decompose.meshes import on_any_mesh
from tdjax.plan.layers import Layer
from tdjax.pruning.bounds import tail_sizes
from tdjax.pruning.checks import check_order, check_range
from tdjax.pruning.indices import effective_numbers
from tdjax.pruning.largest import prune
from tdjax.pruning.prunable import Leaf

# Halvings after which two single-precision factors next to each other are left.
HALVINGS = 48
# Where h is a whole number, rounding must not raise it to the next.
SLACK = 32


@on_any_mesh
@checked()
def magnitude_prune(
    params: Any,
    share: float,
    *,
    scope: str = "layer",
    layers: Sequence[Layer] | None = None,
    paths: str | Sequence[str] = ".*",
) -> Any:
    """Masks that drop a share of the weights, the smallest in absolute value.

    Exactly round(share d) of the d weights of each unit go, zeros and equal ones too; of equal
    ones the last.

    >>> import jax.numpy as jnp, tdjax
    >>> params = {"dense": {"kernel": jnp.array([[4.0, 3.0], [1.0, 2.0]])}}
    >>> tdjax.magnitude_prune(params, 0.5)["dense"]["kernel"].tolist()
    [[True, True], [False, False]]

    Arguments:
        params: pytree of arrays, as `variables["params"]` or `nnx.state(model, nnx.Param)`.
            Kernels and embeddings are pruned, nothing else.
        share: that goes away, in [0, 1); a number, not traced.
        scope: whose weights are compared: "global", all with all; "layer", those of one layer;
            "neuron", those of one output of a layer.
        layers: from `tdjax.layer_table`. Needed where a kernel has several output axes, as in
            attention, or holds a stack of layers; without it, neurons are the last axis.
        paths: of the layers that are pruned, patterns for `re.fullmatch`.

    Returns: a pytree of the structure of `params`, boolean arrays of the shapes of its arrays,
    False where a weight goes; see `tdjax.apply_mask` and `tdjax.keep_zeros`. Arrays that are not
    pruned are True throughout.

    Raises ValueError for a share out of range or an unknown scope, for patterns that match no
    layer, for parameters that are not those of `layers`, and for NaN or Inf in a kernel.
    """
    check_range("share", share, 0, 1, low_too=True)

    def removed(leaves: Sequence[Leaf]) -> tuple[tuple[int, ...]]:
        sizes = [leaf.storage.copies * math.prod(leaf.kernel_shape) for leaf in leaves]
        if scope == "global":
            return ((round(share * sum(sizes)),),)
        units = [
            leaf.storage.copies * (leaf.kernel_shape[-1] if scope == "neuron" else 1)
            for leaf in leaves
        ]
        pairs = zip(sizes, units, strict=True)
        return (tuple(round(share * (size // number)) for size, number in pairs),)

    return prune(params, _without, removed, scope=scope, layers=layers, paths=paths)


@on_any_mesh
@checked()
def adaptive_prune(
    params: Any,
    q: Any = 0.5,
    eta: Any = 0.0,
    *,
    share: float | None = None,
    layers: Sequence[Layer] | None = None,
    paths: str | Sequence[str] = ".*",
) -> Any:
    """Masks that keep as many of each neuron's largest weights as its l_q compressibility asks.

    Adaptive magnitude pruning: m = ceil((1 + eta)^(-1 / (1 - q)) h_q(w)) of a neuron's weights,
    h_q their effective number (`tdjax.effective_number`). With fewer, the l_q mass that goes is
    more than eta times that which stays. Yang et al. 2022 (arXiv 2206.05604),
    implemented without its full text, from its abstract, its authors' code and a derivation of
    our own.

    >>> import jax.numpy as jnp, tdjax
    >>> params = {"dense": {"kernel": jnp.array([[1.0, 1.0], [1.0, 0.01], [1.0, 0.01]])}}
    >>> tdjax.adaptive_prune(params)["dense"]["kernel"].sum(axis=0).tolist()
    [3, 2]

    Arguments:
        params, layers, paths: see `tdjax.magnitude_prune`.
        q: exponent in (0, 1); may be traced.
        eta: above -1; of 0 or more in the paper. May be traced.
        share: in place of eta, the share of all weights that goes, in [0, 1): eta is found by
            bisection. The count is met exactly: the neurons next in line keep one weight more.
            Where more are zero than are to go, all zeros go.

    Returns: masks as of `tdjax.magnitude_prune`. A weight of zero never stays.

    Raises ValueError as there, for numbers out of range, and for both eta and share.
    """
    check_range("q", q, 0, 1)
    return pq_prune(params, q, 1.0, eta, share=share, scope="neuron", layers=layers, paths=paths)


@on_any_mesh
@checked()
def pq_prune(
    params: Any,
    p: Any = 0.5,
    q: Any = 1.0,
    eta: Any = 0.0,
    *,
    share: float | None = None,
    scope: str = "neuron",
    layers: Sequence[Layer] | None = None,
    paths: str | Sequence[str] = ".*",
) -> Any:
    """Masks that keep as many of the largest weights of each unit as its PQ index asks.

    r = ceil(d (1 + eta)^(-q / (q - p)) (1 - I)^(p q / (q - p))) of d weights, I their PQ index
    (`tdjax.pq_index`): one step of the sparsity-informed adaptive pruning of Diao et al., "Pruning
    deep neural networks from a sparsity perspective", ICLR 2023. With q = 1 it is the rule of
    `tdjax.adaptive_prune`.

    >>> import jax.numpy as jnp, tdjax
    >>> params = {"dense": {"kernel": jnp.array([[1.0, 1.0], [1.0, 0.01], [1.0, 0.01]])}}
    >>> tdjax.pq_prune(params, 0.5, 1.0)["dense"]["kernel"].sum(axis=0).tolist()
    [3, 2]

    Arguments:
        params, scope, layers, paths: see `tdjax.magnitude_prune`.
        p, q: exponents with 0 < p < q; may be traced.
        eta, share: see `tdjax.adaptive_prune`.

    Returns and raises as `tdjax.adaptive_prune`.
    """
    p, q = check_order(p, q)
    if share is None:
        arguments: Any = (p, q, check_range("eta", eta, -1, math.inf))
        return prune(
            params, _effective, lambda _: arguments, scope=scope, layers=layers, paths=paths
        )
    check_range("share", share, 0, 1, low_too=True)
    if isinstance(eta, jax.core.Tracer) or eta != 0:
        raise ValueError("give eta or share, not both")

    def target(leaves: Sequence[Leaf]) -> Any:
        total = sum(leaf.storage.copies * math.prod(leaf.kernel_shape) for leaf in leaves)
        return p, q, total - round(share * total)

    return prune(params, _effective_share, target, scope=scope, layers=layers, paths=paths)


@on_any_mesh
@checked()
def tail_prune(
    params: Any,
    tolerance: Any,
    bound: Any = 1.0,
    *,
    layers: Sequence[Layer] | None = None,
    paths: str | Sequence[str] = ".*",
) -> Any:
    """Masks that keep the fewest weights with which no neuron's output is wrong by more.

    See `tdjax.tail_size`: exact for the worst of all inputs within their bound.

    >>> import jax.numpy as jnp, tdjax
    >>> params = {"dense": {"kernel": jnp.array([[4.0, 3.0], [1.0, 2.0]])}}
    >>> tdjax.tail_prune(params, 1.5)["dense"]["kernel"].tolist()
    [[True, True], [False, True]]

    Arguments:
        params, layers, paths: see `tdjax.magnitude_prune`.
        tolerance: the error that a neuron's output may have, before its activation; 0 or more.
        bound: largest absolute value of an input, above 0; one for all layers, or by path.

    Returns: masks as of `tdjax.magnitude_prune`. A weight of zero never stays.

    Raises ValueError as there, for numbers out of range, and for a layer without a bound.
    """
    tolerance = check_range("tolerance", tolerance, 0, math.inf, low_too=True)

    def tails(leaves: Sequence[Leaf]) -> Any:
        if not isinstance(bound, Mapping):
            return ((tolerance / check_range("bound", bound, 0, math.inf),) * len(leaves),)
        lacking = [leaf.path for leaf in leaves if leaf.path not in bound]
        if lacking:
            raise ValueError(f"bound has no entry for layers {', '.join(lacking)}")
        limits = (check_range(f"bound of {leaf.path!r}", bound[leaf.path], 0, math.inf)
                  for leaf in leaves)  # fmt: skip
        return (tuple(tolerance / limit for limit in limits),)

    return prune(params, _tails, tails, scope="neuron", layers=layers, paths=paths)


def _without(ascending: Sequence[Array], removed: Sequence[Any]) -> list[Int[Array, " n"]]:
    return [
        jnp.full(columns.shape[1], columns.shape[0] - number, jnp.int32)
        for columns, number in zip(ascending, removed, strict=True)
    ]


def _tails(ascending: Sequence[Array], tails: Sequence[Any]) -> list[Int[Array, " n"]]:
    return [tail_sizes(*each) for each in zip(ascending, tails, strict=True)]


def _effective(ascending: Sequence[Array], p: Any, q: Any, eta: Any) -> list[Int[Array, " n"]]:
    factor = (1 + eta) ** (-q / (q - p))
    return [
        _whole(factor * effective_numbers(columns, p, q), (columns > 0).sum(axis=0))
        for columns in ascending
    ]


def _effective_share(
    ascending: Sequence[Array], p: Any, q: Any, target: Any
) -> list[Int[Array, " n"]]:
    """Effective numbers times the factor, (1 + eta) to a power, at which `target` weights stay."""
    numbers = jnp.concatenate([effective_numbers(columns, p, q) for columns in ascending])
    most = jnp.concatenate([(columns > 0).sum(axis=0) for columns in ascending])
    target = jnp.minimum(target, most.sum())

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        fits = _whole(jnp.exp(middle) * numbers, most).sum() <= target
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    # From less than one weight of the largest unit to all weights of the smallest.
    widest = jnp.log(max(columns.shape[0] for columns in ascending)) + 1.0
    low, _ = jax.lax.fori_loop(0, HALVINGS, halve, (-widest, widest))
    counts = _whole(jnp.exp(low) * numbers, most)
    # One weight for every neuron may be more than is asked for.
    counts = jnp.where(counts.sum() <= target, counts, 0)
    # What is left goes to those whose next weight the growing factor reaches first.
    following = jnp.where(counts < most, counts / jnp.where(numbers > 0, numbers, 1), jnp.inf)
    turn = jnp.argsort(jnp.lexsort((-numbers, following)))
    counts = counts + (turn < target - counts.sum())
    ends = list(itertools.accumulate(columns.shape[1] for columns in ascending))[:-1]
    return [part.astype(jnp.int32) for part in jnp.split(counts, ends)]


def _whole(numbers: Float[Array, " n"], most: Int[Array, " n"]) -> Int[Array, " n"]:
    """So many weights, rounded up, none of them zero."""
    slack = 1 - SLACK * jnp.finfo(numbers.dtype).eps
    return jnp.minimum(jnp.ceil(numbers * slack), most).astype(jnp.int32)
