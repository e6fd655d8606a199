"""The outer loop that alternating methods share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tdjax.decompose.inputs import placed_like
from tdjax.decompose.pytree import described
from tdjax.decompose.scale import error_ratio

State = TypeVar("State")


@runtime_checkable
class HasError(Protocol):
    """The state of a method that knows its relative error."""

    @property
    def error(self) -> float:
        """That."""


OnHost = TypeVar("OnHost", bound=HasError)

# Below this an error found as a difference of squared norms is mostly rounding.
CANCELS_BELOW = 1e-2
# What equations may leave unsolved where sweeps have converged: a share of the squared error, and
# what rounding leaves of any, in units of the dtype's.
UNSOLVED, ROUNDED = 1e-2, 8


class Info(NamedTuple):
    """How an iterative decomposition went.

    >>> import jax, tdjax
    >>> x = jax.random.normal(jax.random.key(0), (4, 5, 6))
    >>> _, info = tdjax.tucker_als(x, (2, 3, 3), max_iters=20, tol=1e-3)
    >>> info.errors.shape, bool(info.converged), bool(info.iterations < 20)
    ((20,), True, True)

    Arguments:
        error: norm(x - result) / norm(x), computed from the difference itself.
        iterations: number of sweeps that were made.
        errors: (max_iters,) relative error after each sweep, NaN behind the last one.
        converged: whether the last sweep is known to have changed the relative error by less than
            `tol`. Where rounding hides so small a change, or keeps the sweeps from one that they
            would make without it, sweeps end when none is seen, and this is False.
    """

    error: Float[Array, ""]
    iterations: Int[Array, ""]
    errors: Float[Array, " sweeps"]
    converged: Bool[Array, ""]

    def __repr__(self) -> str:
        """Its numbers; of the errors after each sweep, how many there may be."""
        return described(self, self._fields)


class Progress(NamedTuple):
    """What the loop knows besides the state of the method.

    Arguments:
        iterations, errors, converged: as in `Info`.
        last: the relative error of the state.
        ended: whether there is nothing left to do.
    """

    iterations: Int[Array, ""]
    errors: Float[Array, " sweeps"]
    last: Float[Array, ""]
    converged: Bool[Array, ""]
    ended: Bool[Array, ""]


class Swept(NamedTuple):
    """What comes of a sweep.

    Arguments:
        state: the new one.
        error: its relative error.
        fall: by how much the sweep lowered the square of that, from the changes that it made: as
            a difference of two errors it drowns in their rounding. None where it is not known.
        left: by how much at least the sweep would have lowered it further, had rounding not kept
            it from solving its equations. None where it is not known.
    """

    state: Any
    error: Float[Array, ""]
    fall: Float[Array, ""] | None = None
    left: Float[Array, ""] | None = None


def iterate(
    sweep: Callable[[State], Swept],
    state: State,
    error: Float[Array, ""],
    *,
    max_iters: int,
    tol: Float[Array, ""] | float,
    stop_when_worse: bool = False,
) -> tuple[State, Progress]:
    """Sweep until the relative error changes by less than `tol`, at most `max_iters` times.

    Where the change cannot be told from rounding, it ends too once no change is seen, but does not
    claim to have converged.

    Arguments:
        sweep: what makes a state better.
        state: where to start, any pytree.
        error: relative error of the start; `inf` where it is not known.
        max_iters: static.
        tol: may be traced.
        stop_when_worse: drop a sweep that raises the error, which only rounding can do, and end
            there. For methods whose error is exact enough to tell.
    """
    no = jnp.asarray(False)
    start = Progress(jnp.asarray(0), jnp.full((max_iters,), jnp.nan, error.dtype), error, no, no)

    if max_iters == 0:
        return state, start

    def unfinished(carry: tuple[State, Progress]) -> Bool[Array, ""]:
        return (carry[1].iterations < max_iters) & ~carry[1].ended

    def body(carry: tuple[State, Progress]) -> tuple[State, Progress]:
        state, progress = carry
        swept, last = sweep(state), progress.last
        converged, still = _at_rest(swept, last, tol)
        error, worse, fresh = swept.error, no, swept.state
        if stop_when_worse:
            # NaN is worse than any error.
            worse = ~(error <= last)
            if swept.fall is not None:
                # Above, an error that rises is one that rounding has raised.
                worse = worse & ~(last >= CANCELS_BELOW)
            error = jnp.where(error <= last, error, last)
            fresh = jax.tree.map(partial(jnp.where, worse), state, fresh)
        return fresh, Progress(
            progress.iterations + 1,
            progress.errors.at[progress.iterations].set(error),
            error,
            converged,
            converged | still | worse,
        )

    return jax.lax.while_loop(unfinished, body, (state, start))


def _at_rest(
    swept: Swept, last: Float[Array, ""], tol: Float[Array, ""] | float
) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
    """Whether a sweep is known to have come to rest, and whether there is nothing left to do."""
    seems = jnp.abs(last - swept.error) < tol
    converged = rests = seems & (resolution(last) <= tol)
    if swept.fall is None:
        return converged, seems
    change = safe_ratio(jnp.abs(swept.fall), last + swept.error)
    converged = rests = rests | (jnp.isfinite(last) & (change < tol))
    if swept.left is not None:
        eps = jnp.finfo(swept.left.dtype).eps
        converged = rests & (swept.left <= UNSOLVED * swept.error**2 + (ROUNDED * eps) ** 2)
    return converged, rests


def iterate_on_host(
    sweep: Callable[[OnHost], OnHost],
    state: OnHost,
    *,
    max_iters: int,
    tol: float,
    eps: float = 0.0,
) -> tuple[OnHost, list[float], bool]:
    """`iterate` for what NumPy computes: the state, the errors after each sweep, `converged`.

    A sweep that raises the error is dropped, and ends it.

    Arguments:
        eps: the rounding of squares of which errors are a difference; 0 where they are none.
    """
    errors: list[float] = []
    while len(errors) < max_iters:
        better = sweep(state)
        fell = state.error - better.error
        # NaN is no fall.
        state = better if fell >= 0 else state
        errors.append(state.error)
        if not fell >= tol:
            exact = state.error < CANCELS_BELOW or eps <= tol * state.error
            return state, errors, abs(fell) < tol and exact
    return state, errors, False


def info_on_host(
    x: Array, error: float, errors: list[float], converged: bool, max_iters: int
) -> Info:
    """`Info` of what NumPy computed of an array, which tells where it lies and in which dtype."""
    history = np.full(max_iters, np.nan, x.dtype)
    history[: len(errors)] = errors
    known = ((error, x.dtype), (len(errors), np.int32), (history, x.dtype), (converged, bool))
    return Info(*(placed_like(x, np.asarray(value, dtype)) for value, dtype in known))


def resolution(error: Float[Array, ""]) -> Float[Array, ""]:
    """What a relative error is uncertain by: more where it comes of squares that cancel."""
    eps = jnp.finfo(error.dtype).eps
    return eps * jnp.where(error < CANCELS_BELOW, error, 1 / error)


def relative_error(x: Float[Array, "*_"], approximation: Float[Array, "*_"]) -> Float[Array, ""]:
    """norm(x - approximation) / norm(x), of entries around 1; see `error_ratio` for zeros."""
    return error_ratio(jnp.linalg.norm(x - approximation), jnp.linalg.norm(x))


def safe_ratio(above: Float[Array, "*_"], below: Float[Array, "*_"]) -> Float[Array, "*_"]:
    """above / below, and 0 where `below` is 0."""
    return jnp.where(below == 0, 0.0, above / jnp.where(below == 0, 1.0, below))
