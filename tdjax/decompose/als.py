"""The outer loop that alternating methods share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

State = TypeVar("State")

# Below this an error found as a difference of squared norms is mostly rounding.
CANCELS_BELOW = 1e-2


class Info(NamedTuple):
    """How an iterative decomposition went.

    Arguments:
        error: norm(x - result) / norm(x), computed from the difference itself.
        iterations: number of sweeps that were made.
        errors: (max_iters,) relative error after each sweep, NaN behind the last one.
        converged: whether the last sweep changed the relative error by less than `tol`.
    """

    error: Float[Array, ""]
    iterations: Int[Array, ""]
    errors: Float[Array, " sweeps"]
    converged: Bool[Array, ""]


class Progress(NamedTuple):
    """What the loop knows besides the state of the method."""

    iterations: Int[Array, ""]
    errors: Float[Array, " sweeps"]
    last: Float[Array, ""]
    converged: Bool[Array, ""]


def iterate(
    sweep: Callable[[State], tuple[State, Float[Array, ""]]],
    state: State,
    error: Float[Array, ""],
    *,
    max_iters: int,
    tol: Float[Array, ""] | float,
    stop_when_worse: bool = False,
) -> tuple[State, Progress]:
    """Sweep until the relative error changes by less than `tol`, at most `max_iters` times.

    Arguments:
        sweep: state -> (new state, its relative error).
        state: where to start, any pytree.
        error: relative error of the start; `inf` where it is not known.
        max_iters: static.
        tol: may be traced.
        stop_when_worse: drop a sweep that raises the error, which only rounding can do, and end
            there. For methods whose error is exact enough to tell.
    """
    start = Progress(
        jnp.asarray(0), jnp.full((max_iters,), jnp.nan, error.dtype), error, jnp.asarray(False)
    )

    if max_iters == 0:
        return state, start

    def unfinished(carry: tuple[State, Progress]) -> Bool[Array, ""]:
        return (carry[1].iterations < max_iters) & ~carry[1].converged

    def body(carry: tuple[State, Progress]) -> tuple[State, Progress]:
        state, progress = carry
        new, error = sweep(state)
        worse = error > progress.last if stop_when_worse else jnp.asarray(False)
        error = jnp.where(worse, progress.last, error)
        state = jax.tree.map(lambda old, fresh: jnp.where(worse, old, fresh), state, new)
        return state, Progress(
            progress.iterations + 1,
            progress.errors.at[progress.iterations].set(error),
            error,
            worse | (jnp.abs(progress.last - error) < tol),
        )

    return jax.lax.while_loop(unfinished, body, (state, start))


def relative_error(x: Float[Array, "*_"], approximation: Float[Array, "*_"]) -> Float[Array, ""]:
    """norm(x - approximation) / norm(x), and 0 where both vanish."""
    return safe_ratio(jnp.linalg.norm(x - approximation), jnp.linalg.norm(x))


def safe_ratio(above: Float[Array, "*_"], below: Float[Array, "*_"]) -> Float[Array, "*_"]:
    """above / below, and 0 where `below` is 0."""
    return jnp.where(below == 0, 0.0, above / jnp.where(below == 0, 1.0, below))
