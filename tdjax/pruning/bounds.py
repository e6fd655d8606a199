"""What a neuron's output may lose when only its largest weights are kept, inputs being bounded."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tdjax.decompose.meshes import on_any_mesh
from tdjax.pruning.checks import as_columns, check_range
from tdjax.pruning.indices import log_norm


@on_any_mesh
def pruning_error_bound(
    w: Any, kept: Any, q: Any, bound: Any = 1.0, *, outputs: int | None = None
) -> Float[Array, "*_"]:
    """Bound on the error of each neuron's output: B c_q norm_q(w) m^(1 - 1/q).

    c_q = (q^q (1 - q)^(1 - q))^(1/q), the sharp constant of the tail of an l_q ball in l_1. It
    needs no sort and says how the error falls with m; `tail_size` is exact, and tighter. Yang et
    al. 2022 (arXiv 2206.05604), derived without the full text.

    >>> import jax.numpy as jnp, tdjax
    >>> w = jnp.array([4.0, 2.0, 1.0, 0.5])
    >>> float(w[2:].sum()), round(float(tdjax.pruning_error_bound(w, 2, 0.5)), 2)
    (1.5, 3.28)

    Arguments:
        w, outputs: see `tdjax.lq_norm`.
        kept: number m of the largest weights that stay, one for all or of the shape of the
            result; of 0 nothing is known, and the bound is Inf.
        q: exponent in (0, 1).
        bound: B, the largest absolute value of an input.

    Raises ValueError as `tdjax.lq_norm`, and for negative numbers.
    """
    columns, shape = as_columns(w, outputs)
    q = check_range("q", q, 0, 1)
    kept = check_range("kept", kept, 0, jnp.inf, low_too=True)
    bound = check_range("bound", bound, 0, jnp.inf)
    constant = jnp.log(q) + (1 - q) / q * jnp.log1p(-q)
    norm = log_norm(columns, q).reshape(shape)
    log_bound = jnp.log(bound) + constant + norm + (1 - 1 / q) * jnp.log(kept)
    return jnp.where(jnp.isneginf(norm), 0, jnp.exp(log_bound))


@on_any_mesh
def tail_size(
    w: Any, tolerance: Any, bound: Any = 1.0, *, outputs: int | None = None
) -> Int[Array, "*_"]:
    """The least number m of largest weights to keep of each neuron within an error of its output.

    With inputs of absolute value B at most, what the others change is B times the sum of their
    absolute values, and no less for the worst input: the search is exact. One sort for all
    neurons.

    >>> import jax.numpy as jnp, tdjax
    >>> [int(tdjax.tail_size(jnp.array([4.0, 2.0, 1.0, 0.5]), t)) for t in (0.0, 1.5, 10.0)]
    [4, 2, 0]

    Arguments:
        w, outputs: see `tdjax.lq_norm`.
        tolerance: the error that an output may have, 0 or more.
        bound: B, above 0.

    Returns: int32 of the shape of the neurons' axes.

    Raises ValueError as `tdjax.lq_norm`, and for numbers out of range.
    """
    columns, shape = as_columns(w, outputs)
    tolerance = check_range("tolerance", tolerance, 0, jnp.inf, low_too=True)
    bound = check_range("bound", bound, 0, jnp.inf)
    return tail_sizes(jnp.sort(jnp.abs(columns), axis=0), tolerance / bound).reshape(shape)


def tail_sizes(ascending: Float[Array, "d n"], tail: Float[Array, ""]) -> Int[Array, " n"]:
    """How many to keep of each column so that the others sum to `tail` at most.

    Arguments:
        ascending: absolute values in rising order; summed from the least, which loses least.
    """
    lost = jnp.cumsum(ascending, axis=0) <= tail
    return (ascending.shape[0] - lost.sum(axis=0)).astype(jnp.int32)
