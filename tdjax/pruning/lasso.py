"""The LASSO for many right-hand sides at once, from second moments alone.

The alternating direction method of multipliers (Boyd et al. 2011) in the eigenvectors of the
moments, with a step of its own for every right-hand side, fitted to its residuals: two matrix
products for all of them together. Inputs of a layer are alike, and often all positive. On such
moments it needs some dozens of turns, where coordinate descent and accelerated gradients take
thousands.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tdjax.decompose.inputs import as_float
from tdjax.decompose.meshes import on_any_mesh
from tdjax.decompose.products import HIGHEST
from tdjax.pruning.checks import check_range

# Turns between two looks at the optimality conditions and at the step.
TURNS = 10
# Over-relaxation; how much the step may change at once, and from which imbalance on it does.
RELAXATION, FASTEST, BALANCED = 1.6, 5.0, 1.5
# Steps, in units of an input's mean square, and the one for weights that are all zero.
STEPS, FIRST = (1e-6, 1e3), 0.05
# Below this multiple of rounding no gradient is known.
ROUNDING = 16
# Looks without progress after which rounding has the last word.
PATIENCE = 4


class LassoInfo(NamedTuple):
    """How a solution came about.

    Arguments:
        iterations: number of turns.
        violation: of each column, how far the optimality conditions are from met, in units of
            half the penalty: the worst of |c - G w - sign(w) penalty / 2| where w is selected, of
            what |c - G w| exceeds penalty / 2 by elsewhere.
        converged: whether no column violates them by more than the tolerance, or rounding.
    """

    iterations: Int[Array, ""]
    violation: Float[Array, " t"]
    converged: Bool[Array, ""]


@on_any_mesh
def lasso(
    gram: Any,
    cross: Any,
    penalty: Any,
    *,
    start: Any = None,
    max_iters: int = 1000,
    tol: float = 1e-2,
) -> tuple[Float[Array, "d t"], LassoInfo]:
    """Weights w that minimise E (y - x^T w)^2 + sum_j penalty_j |w_j|, for many y at once.

    From the moments G = E x x^T and c = E x y it is w^T G w - 2 c^T w + sum_j penalty_j |w_j|. The
    squares are a mean over rows, not half of it: scikit-learn's `Lasso` has half this penalty as
    its alpha. An intercept is an x that is one.

    >>> import jax.numpy as jnp, tdjax
    >>> weights, info = tdjax.lasso(jnp.eye(3), jnp.array([[2.0], [0.3], [-1.0]]), penalty=1.0)
    >>> weights.round(2).tolist(), bool(info.converged)
    ([[1.5], [0.0], [-0.5]], True)

    Arguments:
        gram: G, (d, d), symmetric and positive semi-definite.
        cross: c of each y in a column, (d, t).
        penalty: 0 or more; one for all or one for each of the d weights.
        start: weights to start from, (d, t); None for zeros.
        max_iters: turns at most, 1 or more; rounded up to tens, after which it is looked whether
            they do.
        tol: of the optimality conditions, relative to the penalty; above 0.

    Returns: weights (d, t), exactly zero where they are not selected, as those of an x that is
    always zero; and a `LassoInfo`.

    Raises ValueError for shapes that do not fit, NaN or Inf, and numbers out of range.
    """
    gram, cross = as_float(gram, ndim=2), as_float(cross, ndim=2)
    if gram.shape != (len(cross), len(cross)):
        raise ValueError(f"lasso: gram has shape {gram.shape}, but cross {cross.shape}")
    penalty = check_range("penalty", penalty, 0, jnp.inf, low_too=True)
    if penalty.shape not in ((), (len(cross),)):
        raise ValueError(f"lasso: penalty has shape {penalty.shape} for {len(cross)} weights")
    if max_iters < 1:
        raise ValueError(f"lasso: max_iters must be at least 1, got {max_iters}")
    tolerance = check_range("tol", tol, 0, jnp.inf)
    start = jnp.zeros_like(cross) if start is None else as_float(start, ndim=2)
    if start.shape != cross.shape:
        raise ValueError(f"lasso: start has shape {start.shape}, but cross {cross.shape}")
    return solve(gram, cross, penalty, start, max_iters, tolerance)


class _Problem(NamedTuple):
    """The moments, scaled so that all inputs are alike to the steps.

    Arguments:
        gram, cross: in units of the root mean square of each x.
        half: half the penalty of each weight, as the gradient is taken of half the squares.
        present: where x is not always zero.
        values, vectors: eigenvalues and eigenvectors of the moments.
        turned: `cross` in the eigenvectors.
        tol: of the optimality conditions.
    """

    gram: Float[Array, "d d"]
    cross: Float[Array, "d t"]
    half: Float[Array, "d 1"]
    present: Bool[Array, "d 1"]
    values: Float[Array, "d 1"]
    vectors: Float[Array, "d d"]
    turned: Float[Array, "d t"]
    tol: Float[Array, ""]

    @property
    def eps(self) -> Any:
        """Rounding of one."""
        return jnp.finfo(self.gram.dtype).eps

    def gradient(self, weights: Float[Array, "d t"]) -> Float[Array, "d t"]:
        """Downhill, of half the squares."""
        return self.cross - jnp.matmul(self.gram, weights, precision=HIGHEST)


class _Solution(NamedTuple):
    """The weights after some turns, and what the next turns go on with.

    Arguments:
        number: of turns.
        weights: the selected ones.
        multipliers: scaled by the steps.
        steps: of each column.
        violation: see `LassoInfo`.
        excess: the worst violation in units of what is allowed.
        best, stalled: the least excess so far, and the looks since.
    """

    number: Int[Array, ""]
    weights: Float[Array, "d t"]
    multipliers: Float[Array, "d t"]
    steps: Float[Array, " t"]
    violation: Float[Array, " t"]
    excess: Float[Array, ""]
    best: Float[Array, ""]
    stalled: Int[Array, ""]


@partial(jax.jit, static_argnames="max_iters")
def solve(
    gram: Float[Array, "d d"],
    cross: Float[Array, "d t"],
    penalty: Float[Array, "*_"],
    start: Float[Array, "d t"],
    max_iters: int,
    tol: Float[Array, ""],
) -> tuple[Float[Array, "d t"], LassoInfo]:
    """`lasso` without its checks, safe inside `vmap`."""
    power = jnp.diagonal(gram)
    present = (power > 0)[:, None]
    unit = jnp.sqrt(jnp.where(power > 0, power, 1))[:, None]
    gram, cross = gram / unit / unit.T, jnp.where(present, cross / unit, 0)
    half = jnp.broadcast_to(penalty, power.shape)[:, None] / unit / 2
    values, vectors = jnp.linalg.eigh(gram)
    values = jnp.maximum(values, 0)[:, None]
    turned = jnp.matmul(vectors.T, cross, precision=HIGHEST)
    problem = _Problem(gram, cross, half, present, values, vectors, turned, tol)

    def going(found: _Solution) -> Bool[Array, ""]:
        early = (found.number < max_iters) & (found.stalled < PATIENCE)
        return (found.excess > 1) & early

    first = _first(problem, jnp.where(present, start * unit, 0))
    last = jax.lax.while_loop(going, partial(_some_turns, problem), first)
    return last.weights / unit, LassoInfo(last.number, last.violation, last.excess <= 1)


def _first(problem: _Problem, weights: Float[Array, "d t"]) -> _Solution:
    """Before the first turn."""
    half = problem.half
    sizes = jnp.abs(weights).mean(axis=0)
    steps = jnp.where(sizes > 0, half.mean() / jnp.where(sizes > 0, sizes, 1), FIRST)
    steps = jnp.clip(steps, *STEPS)
    multipliers = jnp.clip(problem.gradient(weights), -half, half) / steps
    endless, none = jnp.asarray(jnp.inf, weights.dtype), jnp.asarray(0)
    return _Solution(
        none, weights, multipliers, steps, jnp.zeros_like(steps), endless, endless, none
    )


def _some_turns(problem: _Problem, found: _Solution) -> _Solution:
    """`TURNS` turns, a look at the optimality conditions, and new steps."""
    none, eps = jnp.ones_like(found.steps), problem.eps
    weights, multipliers, steps, apart, moved = jax.lax.fori_loop(
        0,
        TURNS,
        lambda _, state: _turn(problem, state),
        (found.weights, found.multipliers, found.steps, none, none),
    )
    change = jnp.clip(jnp.sqrt((apart + eps) / (moved + eps)), 1 / FASTEST, FASTEST)
    unbalanced = (change > BALANCED) | (change < 1 / BALANCED)
    wanted = jnp.clip(steps * jnp.where(unbalanced, change, 1), *STEPS)
    violation, excess = _violation(problem, weights)
    return _Solution(
        found.number + TURNS,
        weights,
        multipliers * steps / wanted,
        wanted,
        violation,
        excess,
        best=jnp.minimum(excess, found.best),
        stalled=jnp.where(excess < found.best, 0, found.stalled + 1),
    )


def _turn(problem: _Problem, state: tuple[Array, ...]) -> tuple[Array, ...]:
    """One turn of the method of multipliers.

    Arguments:
        state: weights, multipliers, steps, and of each column how far the two sides are apart
            and how far the weights moved.
    """
    weights, multipliers, steps, *_ = state
    aim = jnp.matmul(problem.vectors.T, weights - multipliers, precision=HIGHEST)
    solved = (problem.turned + steps * aim) / (problem.values + steps)
    fitted = jnp.matmul(problem.vectors, solved, precision=HIGHEST)
    ahead = RELAXATION * fitted + (1 - RELAXATION) * weights + multipliers
    selected = jnp.sign(ahead) * jnp.maximum(jnp.abs(ahead) - problem.half / steps, 0)
    selected = jnp.where(problem.present, selected, 0)
    apart = _norms(fitted - selected) / (_norms(selected) + problem.eps)
    moved = _norms(selected - weights) / (_norms(ahead - selected) + problem.eps)
    return selected, ahead - selected, steps, apart, moved


def _violation(
    problem: _Problem, weights: Float[Array, "d t"]
) -> tuple[Float[Array, " t"], Float[Array, ""]]:
    """How far the optimality conditions are from met, by column, and in units of the allowed."""
    half, left = problem.half, problem.gradient(weights)
    off = jnp.where(weights != 0, jnp.abs(left - half * jnp.sign(weights)), jnp.abs(left) - half)
    off = jnp.where(problem.present, jnp.maximum(off, 0), 0)
    violation = (off / jnp.where(half > 0, half, 1)).max(axis=0)
    # No entry of the moments is above one now.
    entries = jnp.abs(problem.cross).max(axis=0) + jnp.abs(weights).sum(axis=0)
    allowed = problem.tol * half + ROUNDING * problem.eps * entries
    return violation, (off / (allowed + jnp.finfo(left.dtype).tiny)).max()


def _norms(columns: Float[Array, "d t"]) -> Float[Array, " t"]:
    return jnp.linalg.norm(columns, axis=0)
