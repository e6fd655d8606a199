"""How many of a neuron's weights matter: l_q norms, and the indices made of them.

Yang et al. 2022 (arXiv 2206.05604) and Diao et al. (ICLR 2023). With a_i = |w_i| / max |w|, all of
them follow from the logarithms of S_q = sum a_i^q over the weights that are not zero: each S_q is
at least one, so nothing overflows before the norm itself does, and no exponent is too small.

A kernel (..., neurons) holds one neuron in each entry of its last axis. Weights of zero have no
gradient here, where that of |w|^q has no bound. A neuron of zeros alone has norm 0 and effective
number 0; its indices are those of a single spike, the sparsest there is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tdjax.decompose.meshes import on_any_mesh
from tdjax.pruning.checks import as_columns, check_order, check_range


@on_any_mesh
def lq_norm(w: Any, q: Any, *, outputs: int | None = None) -> Float[Array, "*_"]:
    """The l_q norm of each neuron's weights, (sum |w_i|^q)^(1/q); for q < 1 a quasi-norm.

    Differentiable. It overflows to Inf where the norm itself is out of the range of the dtype, as
    d^(1/q) soon is; `sparsity_index` and `effective_number` do not.

    >>> import jax.numpy as jnp, tdjax
    >>> tdjax.lq_norm(jnp.array([[3.0, 1.0], [4.0, 0.0]]), 2.0).tolist()
    [5.0, 1.0]

    Arguments:
        w: weights of any shape with the axes of the neurons last, as a kernel (in, out) or
            (*window, in, out); real, half precision is raised to float32.
        q: exponent, above 0; a number or a scalar that may be traced.
        outputs: number of axes at the end that count neurons. None for 1, and for 0 of a vector,
            which is one neuron. An attention's query kernel (in, heads, head_dim) has 2.

    Returns: an array of the shape of those axes.

    Raises ValueError for q out of range, NaN or Inf, an empty array or too many outputs.
    """
    columns, shape = as_columns(w, outputs)
    return jnp.exp(log_norm(columns, check_range("q", q, 0, jnp.inf))).reshape(shape)


@on_any_mesh
def sparsity_index(w: Any, q: Any, *, outputs: int | None = None) -> Float[Array, "*_"]:
    """The sparsity index of each neuron, norm_1(w) / norm_q(w) for 0 < q < 1.

    It lies in (0, 1]: d equal weights give d^(1 - 1/q), a single spike 1. Differentiable. For tiny
    q it may underflow to 0. Yang et al. 2022, implemented without its full text, from its
    abstract, its authors' code and a derivation of our own.

    >>> import jax.numpy as jnp, tdjax
    >>> equal, spike = jnp.ones(4), jnp.array([0.0, 7.0, 0.0, 0.0])
    >>> [round(float(tdjax.sparsity_index(w, 0.5)), 4) for w in (equal, spike)]
    [0.25, 1.0]

    Arguments, result and errors as `lq_norm`, with q below 1.
    """
    columns, shape = as_columns(w, outputs)
    q = check_range("q", q, 0, 1)
    sums = log_sums(columns)
    return jnp.exp(sums.of(jnp.ones(())) - sums.of(q) / q).reshape(shape)


@on_any_mesh
def pq_index(
    w: Any, p: Any = 0.5, q: Any = 1.0, *, outputs: int | None = None
) -> Float[Array, "*_"]:
    """The PQ index of each neuron, 1 - d^(1/q - 1/p) norm_p(w) / norm_q(w) for 0 < p < q.

    d equal weights give 0, a single spike 1 - d^(1/q - 1/p), the most. Differentiable. Diao et
    al., "Pruning deep neural networks from a sparsity perspective", ICLR 2023.

    >>> import jax.numpy as jnp, tdjax
    >>> three, spike = jnp.array([1.0, 1.0, 1.0, 0.0]), jnp.array([0.0, 7.0, 0.0, 0.0])
    >>> [round(float(tdjax.pq_index(w)), 4) for w in (three, spike)]
    [0.25, 0.75]

    Arguments:
        w, outputs: see `lq_norm`.
        p, q: exponents, numbers or scalars that may be traced.

    Raises ValueError as `lq_norm`, and unless 0 < p < q.
    """
    columns, shape = as_columns(w, outputs)
    p, q = check_order(p, q)
    sums, size = log_sums(columns), jnp.log(columns.shape[0])
    return -jnp.expm1((sums.of(p) - size) / p - (sums.of(q) - size) / q).reshape(shape)


@on_any_mesh
def effective_number(
    w: Any, p: Any = 0.5, q: Any = 1.0, *, outputs: int | None = None
) -> Float[Array, "*_"]:
    """The effective number of weights of each neuron, (norm_p(w) / norm_q(w))^(p q / (q - p)).

    k equal weights beside zeros give exactly k. With q = 1 this is h_p = SI_p^(-p / (1 - p)) of
    Yang et al. 2022; for any p < q, with the PQ index I, d (1 - I)^(p q / (q - p)) of Diao et al.,
    ICLR 2023. Differentiable. Arguments, result and errors as `pq_index`.

    >>> import jax.numpy as jnp, tdjax
    >>> round(float(tdjax.effective_number(jnp.array([2.0, 0.0, 2.0, 2.0, 0.0]))), 4)
    3.0
    """
    columns, shape = as_columns(w, outputs)
    return effective_numbers(columns, *check_order(p, q)).reshape(shape)


class LogSums(NamedTuple):
    """What the indices of the columns of a matrix are made of.

    Arguments:
        top: max |w| of each column, 1 where all are zero.
        logs: log(|w| / top), 0 where w is zero.
        present: where w is not zero.
    """

    top: Float[Array, " n"]
    logs: Float[Array, "d n"]
    present: Bool[Array, "d n"]

    def of(self, q: Float[Array, ""]) -> Float[Array, " n"]:
        """log S_q of each column; 0 where all weights are zero."""
        total = jnp.where(self.present, jnp.exp(q * self.logs), 0).sum(axis=0)
        return jnp.log(jnp.where(self.alive, total, 1))

    @property
    def alive(self) -> Bool[Array, " n"]:
        """Columns with a weight that is not zero."""
        return self.present.any(axis=0)

    @property
    def number(self) -> Int[Array, " n"]:
        """Weights that are not zero."""
        return self.present.sum(axis=0)


def log_sums(columns: Float[Array, "d n"]) -> LogSums:
    """See `LogSums`. The scale cancels in what is made of it, and so does its gradient."""
    sizes = jnp.abs(columns)
    present = sizes > 0
    top = jax.lax.stop_gradient(sizes.max(axis=0))
    top = jnp.where(top > 0, top, 1)
    logs = jnp.where(present, jnp.log(jnp.where(present, sizes, 1)) - jnp.log(top), 0)
    return LogSums(top, logs, present)


def log_norm(columns: Float[Array, "d n"], q: Float[Array, ""]) -> Float[Array, " n"]:
    """The logarithm of the l_q norm of each column."""
    sums = log_sums(columns)
    return jnp.where(sums.alive, jnp.log(sums.top) + sums.of(q) / q, -jnp.inf)


def effective_numbers(
    columns: Float[Array, "d n"], p: Float[Array, ""], q: Float[Array, ""]
) -> Float[Array, " n"]:
    """The effective number of each column. No 1/p is left in it, so that p may be tiny."""
    sums = log_sums(columns)
    number = jnp.exp((q * sums.of(p) - p * sums.of(q)) / (q - p))
    return jnp.where(sums.alive, number, 0)
