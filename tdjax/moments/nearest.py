"""The nearest Kronecker product of a layer's Fisher information, by power iterations.

With rows x that go into a layer and gradients g at the rows that come out, a change E of the kernel
raises the loss of a row by half of <E, F E>, F = E[(x x^T) (x) (g g^T)]. Were x and g independent,
F would be the product of S = E[x x^T] and G = E[g g^T]. The product A (x) B nearest to F in the
Frobenius norm is the leading pair of singular vectors of F with its entries rearranged (Van Loan
and Pitsianis 1993). Power iterations find it without F, as each is a moment of weighed rows:

    A = E[(g^T B g) x x^T] / |B|^2 is the best for a given B,
    B = E[(x^T A x) g g^T] / |A|^2 the best for a given A.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tdjax.moments.losses import Turn, TurnLoss
from tdjax.moments.rows import FullRows
from tdjax.moments.sums import SummedCall, spread, summed_loss, zeros_of
from tdjax.moments.weighing import laid_out, weights_of_rows
from tdjax.trace.call import Reading, StaticPart, call_arguments, split_arrays
from tdjax.trace.kept import kept as kept_program
from tdjax.trace.marks import INPUT, Mark
from tdjax.trace.trace import Trace
from tdjax.trace.visit import run


class Product(NamedTuple):
    """A Kronecker product A (x) B, of a layer or of each one of a stack.

    Arguments:
        inputs: A, (groups, D, D), a second moment of the inputs with weights of mean 1.
        mean: (groups, D), the mean of the inputs with these weights.
        outputs: B, (groups, T, T).
    """

    inputs: Float[Array, "*_"]
    mean: Float[Array, "*_"]
    outputs: Float[Array, "*_"]

    def given(self, *, of_inputs: bool) -> Float[Array, "*_"]:
        """The end by which rows are weighed, divided by its norm."""
        known = self.outputs if of_inputs else self.inputs
        return known / _at_least_tiny(norms(known))

    def bettered(
        self, sums: Sequence[Array], rows: Float[Array, ""], *, of_inputs: bool
    ) -> Product:
        """The product with one end the best for the other; as it is where its norm is zero.

        Arguments:
            sums: over all rows, from `half_sums`.
            rows: their number.
        """
        known = self.given(of_inputs=of_inputs)
        if not of_inputs:
            found = sums[0] / rows / _at_least_tiny(norms(self.inputs))
            return self._replace(outputs=jnp.where(norms(self.inputs) > 0, found, self.outputs))
        moment, total, weight = sums
        some = weight > 0
        own = jnp.where(some, weight, 1.0)
        return Product(
            jnp.where(some[..., None, None], moment / own[..., None, None], self.inputs),
            jnp.where(some[..., None], total / own[..., None], self.mean),
            # What the weights are divided by.
            jnp.where(some[..., None, None], known * (own / rows)[..., None, None], self.outputs),
        )


@dataclass(frozen=True)
class Half:
    """What is summed over the rows of a call, where the gradient at what comes out is known.

    Arguments:
        inputs, outputs: rows of both ends.
        of_inputs: whether those that go in are summed, weighed by those that come out, or these
            weighed by those.
        constant: see `tdjax.moments.sums.SummedCall`.
    """

    inputs: FullRows
    outputs: FullRows
    of_inputs: bool
    constant: bool = False

    def seen(self, known: Array, x: Array) -> Array:
        """What of the inputs is needed when the gradient is known."""
        return x if self.of_inputs else self.inputs.forms(x, known)

    def sums(
        self, weights: Array | None, known: Array, seen: Array, gradient: Array
    ) -> list[Array]:
        """The sums; of inputs the moment, the sum and the weights.

        Arguments:
            weights: of the rows, see `tdjax.moments.weighing`.
            known: the other end of the product.
        """
        forms = self.outputs.forms(gradient, known) if self.of_inputs else seen
        # Of a matrix whose least eigenvalues may be rounded below zero.
        own = jnp.maximum(forms, 0.0)
        if weights is not None:
            front = self.outputs.front(gradient.shape)
            laid = laid_out(weights, front, constant=self.constant, summed=True)
            counted = weights_of_rows(laid, front)[:, None]
            own = jnp.where(counted > 0, counted * own, 0.0)
        if self.of_inputs:
            return [*self.inputs.weighed_sums(seen, own), own.sum(axis=0)]
        return [self.outputs.weighed_sums(gradient, own)[0]]


def halves_of(calls: Mapping[int, SummedCall], *, of_inputs: bool) -> dict[int, Half]:
    """What is summed, by number of the call; nothing of layers with calls without both ends."""
    lacking = {
        own.path
        for own in calls.values()
        if not (isinstance(own.rows, FullRows) and isinstance(own.outputs, FullRows))
    }
    return {
        n: Half(own.rows, own.outputs, of_inputs, own.constant)  # type: ignore[arg-type]
        for n, own in calls.items()
        if own.path not in lacking
    }


def half_sums(
    trace: Trace,
    halves: Mapping[int, Half],
    static: StaticPart,
    loss_fn: TurnLoss,
    reading: Reading,
) -> Callable[[Any, Any, Turn, Mapping[int, Array]], dict[int, list[Array]]]:
    """(leaves, arrays of a batch, its turn, other ends) -> sums, by number of the call.

    Arguments as of `tdjax.moments.sums.batch_sums`.
    """

    def sums(leaves: Any, arrays: Any, turn: Turn, known: Any) -> dict[int, list[Array]]:
        batch = static.join(arrays)
        inputs, _ = split_arrays(call_arguments(reading.inputs(batch)))
        weights = loss_fn.weights(turn)

        def loss(slots: Any) -> Array:
            given = {n: (known[n], slots[n]) for n in slots}
            visit = _visitor(halves, weights)
            results, _ = run(trace.jaxpr, trace.survey, visit, [*leaves, *inputs], given)
            return summed_loss(trace, loss_fn, results, batch, turn)

        return jax.grad(loss)(_slots(trace, halves, known, weights))

    return kept_program(sums)


def norms(moments: Float[Array, "*_"]) -> Float[Array, "*_"]:
    """Frobenius norms of matrices, however small their entries; the last two axes are kept."""
    largest = _at_least_tiny(jnp.abs(moments).max(axis=(-2, -1), keepdims=True))
    return largest * jnp.linalg.norm(moments / largest, axis=(-2, -1), keepdims=True)


def _at_least_tiny(x: Array) -> Array:
    return jnp.maximum(x, jnp.finfo(x.dtype).tiny)


def _visitor(halves: Mapping[int, Half], weights: Any) -> Callable[[Mark, Any, Any], Any]:
    """What is done at marks: the inputs of a call are kept for the gradient at its outputs."""
    taken: dict[int, Array] = {}

    def visit(mark: Mark, x: Any, given: Any) -> tuple[Any, Any]:
        if mark.number not in halves or given is None:
            return x, None
        if mark.end == INPUT:
            seen = jax.lax.stop_gradient(x)
            # The axis of a stack in front, as of what is given.
            stacked = True in mark.stacked
            taken[mark.number] = (
                jnp.moveaxis(seen, mark.stacked.index(True), 0) if stacked else seen
            )
            return x, None
        tapped = partial(_tapped, halves[mark.number], weights)
        return spread(tapped, mark.stacked, x, taken[mark.number], *given, through=True), None

    return visit


def _slots(
    trace: Trace, halves: Mapping[int, Half], known: Mapping[int, Array], weights: Any
) -> dict[int, list[Array]]:
    """Zeros of the shapes of the sums."""

    def shapes(half: Half, known: Array, x: Any, y: Any) -> Any:
        return half.sums(weights, known, half.seen(known, x), y)

    def of(number: int, half: Half) -> list[Array]:
        made, own = trace.calls[number], known[number]
        assert made.call is not None
        own = own if made.layer.storage.stack is None else own[0]
        ends = made.call.inputs, made.call.output
        return zeros_of(made, jax.eval_shape(partial(shapes, half), own, *ends))

    return {number: of(number, half) for number, half in halves.items()}


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tapped(
    half: Half, weights: Array | None, y: Array, x: Array, known: Array, slot: list[Array]
) -> Array:
    """y itself; the "gradient" with respect to `slot` are the sums."""
    return y


def _tapped_forward(
    half: Half, weights: Array | None, y: Array, x: Array, known: Array, slot: list[Array]
) -> tuple[Array, Any]:
    return y, (weights, known, half.seen(known, x))


def _tapped_backward(half: Half, kept: Any, gradient: Array) -> tuple[Any, ...]:
    weights, known, seen = kept
    return None, gradient, None, None, half.sums(weights, known, seen, gradient)


_tapped.defvjp(_tapped_forward, _tapped_backward)
