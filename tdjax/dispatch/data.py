"""What batches tell of a model: moments, statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, overload

import flax.linen as nn
import jax
from flax import nnx
from jaxtyping import Array

from tdjax.arguments.batches import read_batches
from tdjax.arguments.called import Method, checked_weights, example_losses
from tdjax.decompose.meshes import on_any_mesh
from tdjax.dispatch.feeding import fed_to
from tdjax.dispatch.models import caller_of, on_models, room_of, with_arrays
from tdjax.hints import known_are
from tdjax.moments.collect import (
    INDEPENDENT,
    KRONECKER,
    LayerMoments,
    Question,
    RowWeights,
    collect,
)
from tdjax.moments.iterate import nearest_products
from tdjax.moments.losses import SAMPLED, Drawn, Given, LossFn, TurnLoss
from tdjax.processes import together
from tdjax.progress import Progress, Steps
from tdjax.trace.call import WHOLE

Variables = Mapping[str, Any]
Model = TypeVar("Model", bound=nnx.Module)


@overload
def collect_moments(
    model: nn.Module,
    variables: Variables,
    batches: Iterable[Any],
    *,
    loss_fn: LossFn | str | None = ...,
    paths: str | Sequence[str] = ...,
    memory: int = ...,
    row_weights: RowWeights | None = ...,
    kronecker: str = ...,
    iterations: int = ...,
    temperature: float = ...,
    key: Array | None = ...,
    progress: Progress = ...,
    method: Method = ...,
) -> dict[str, LayerMoments]: ...


@overload
def collect_moments(
    model: nnx.Module,
    batches: Iterable[Any],
    *,
    loss_fn: LossFn | str | None = ...,
    paths: str | Sequence[str] = ...,
    memory: int = ...,
    row_weights: RowWeights | None = ...,
    kronecker: str = ...,
    iterations: int = ...,
    temperature: float = ...,
    key: Array | None = ...,
    progress: Progress = ...,
    method: Method = ...,
) -> dict[str, LayerMoments]: ...


@overload
def collect_moments(
    model: Callable[..., Any],
    params: Any,
    batches: Iterable[Any],
    *,
    loss_fn: LossFn | str | None = ...,
    paths: str | Sequence[str] = ...,
    memory: int = ...,
    row_weights: RowWeights | None = ...,
    kronecker: str = ...,
    iterations: int = ...,
    temperature: float = ...,
    key: Array | None = ...,
    progress: Progress = ...,
) -> dict[str, LayerMoments]: ...


@on_models
@partial(on_any_mesh, split=True)
def collect_moments(
    model: Any,
    variables: Any,
    batches: Iterable[Any],
    *,
    loss_fn: LossFn | str | None = None,
    paths: str | Sequence[str] = ".*",
    memory: int = 2**32,
    row_weights: RowWeights | None = None,
    kronecker: str = INDEPENDENT,
    iterations: int = 2,
    temperature: float = 1.0,
    key: Array | None = None,
    progress: Progress = True,
    method: Method = None,
) -> dict[str, LayerMoments]:
    """Second moments of what goes into each layer that can be factorised, and of what comes back.

    `collect_moments(model, variables, batches)` for Linen, `collect_moments(model, batches)` for
    NNX, `collect_moments(apply_fn, params, batches)` for a function, in the mode that the model's
    arguments set: batches without `train=True`, `model.eval()`. Exact for every stride, padding,
    dilation and group; rows of zero padding count. Where batches are split over devices, each sums
    its part. With `jax.distributed` every process calls it with batches of its own, as many as it
    has, and gets the moments of all of them; or with the same global arrays. The patches of a
    convolution are not held, and most of them not even made.

        >>> import jax, tdjax
        >>> from flax import nnx
        >>> model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
        >>> x = jax.random.normal(jax.random.key(0), (64, 4))
        >>> moments = tdjax.collect_moments(model, [x], loss_fn=lambda y, batch: (y**2).sum(axis=1))
        >>> moments[""].inputs.shape, moments[""].outputs.shape
        ((1, 4, 4), (1, 2, 2))

    Arguments:
        model: a Linen or NNX module, or a function of parameters and inputs.
        variables, params: its trained variables, of Linen, or those parameters.
        batches: each the model's input as in `tdjax.make_plan`; with `loss_fn` or `row_weights`
            also a tuple (input, rest), whose rest these may use.
        loss_fn: (outputs, batch) -> losses of the examples, (batch,), or their mean. With it the
            moments of its gradient at the layers' outputs are collected too. It knows nothing of
            `row_weights`: the losses of padded tokens are to be left out there as well. Without
            labels a name, whose losses add up over the rows of an example by their weights:
            "outputs" for half the squared change of all outputs that are floats, or "sampled" for
            the cross-entropy of labels drawn from the softmax of the model's own logits, (batch,
            ..., classes), which is the change in the Kullback-Leibler divergence. Each batch has
            draws of its own: where examples are few, give them several times.
        paths: the layers, by patterns for `re.fullmatch`.
        memory: bytes that sums may take; layers that do not fit are left to further passes over
            the batches, which must then be a list or the like.
        row_weights: batch -> (batch, ...), not negative, how much rows count, as an attention mask
            (batch, tokens) in which padding is 0. All means are then weighed by it, also those of
            the gradient, and `rows` is the sum of the weights. Layers whose rows have these axes
            in front, merged or not, or tokens before examples, are weighed row by row; rows that
            all examples have in common, as those of a table of positions, by the mean over the
            examples; others (a pooled text, another number of positions, the steps of a recurrent
            layer) example by example, by the largest weight that an example has. Axes are told by
            their sizes alone: where encoder and decoder read texts of one length, ask for the
            layers of each by `paths`, with weights of their own. What rows of weight 0 hold does
            not matter.
        kronecker: with a `loss_fn`, "independent" for E[x x^T] and E[g g^T] of inputs x and
            gradients g, or "nearest" for matrices A and B in their place whose Kronecker product
            is nearest to E[(x x^T) (x) (g g^T)] (Van Loan and Pitsianis 1993): rows whose gradient
            is large then count more. Layers with no gradient at their outputs, as embeddings, keep
            what they have.
        iterations: for "nearest", further passes over the batches, which must then be a list or
            the like with a loss that is the same each time: the first finds A for B = E[g g^T],
            the second B for that A, and so on.
        temperature: of "sampled", by which logits are divided; the loss is multiplied by it, as
            with `tdjax.refine`.
        key: PRNG key of the draws of a loss by name; jax.random.key(0) where it is not given.
        progress: see `tdjax.compress`.
        method: how the model is called, as for `tdjax.make_plan`.

    Returns: for each path a `tdjax.moments.collect.LayerMoments`. Where they are "nearest", the
    mean of the inputs is weighed as their moment A is, with weights of mean 1.

    Warns (UserWarning) of layers with less than ten rows for each entry of a row, of weights with
    the axes of no layer's rows, as those of pairs of tokens, and of a model in training mode, as
    all functions that go over batches do.

    Raises ValueError for no batches, no layer that matches, a layer inside a while loop, a tuple
    that could be an input as well as (input, rest), NaN or Inf in a batch, moments that are larger
    than `memory`, an iterator where several passes are needed, or "nearest" without a `loss_fn`;
    TypeError or ValueError for a loss or weights of another form. RuntimeError where another
    process has raised an error.
    """
    _check_kronecker(kronecker, loss_fn, batches)
    room, arrays = room_of(model), with_arrays(model, variables)
    trace_of, reading = partial(room.trace, *arrays, method=method), WHOLE
    if loss_fn is not None or row_weights is not None:
        caller = caller_of(model, variables, method)
        read = partial(read_batches, "collect_moments", caller, trace_of, batches)
        reading, batches = together("collect_moments", read)
    ask = Question(
        "collect_moments",
        trace_of,
        reading,
        _turn_loss(loss_fn, temperature, key),
        None if row_weights is None else checked_weights(row_weights),
    )
    leaves = room.leaves(*arrays)
    with Steps("collect_moments", progress).over("moments", batches) as counted:
        found = collect(ask, leaves, counted, paths=paths, memory=memory)
        if kronecker == INDEPENDENT:
            return found
        return nearest_products(ask, leaves, counted, found, iterations=iterations, memory=memory)


def _turn_loss(
    loss_fn: LossFn | str | None, temperature: float, key: Array | None
) -> TurnLoss | None:
    """A loss as it is called for each batch. Raises ValueError for a temperature without use."""
    if temperature != 1 and loss_fn != SAMPLED:
        raise ValueError(
            f"collect_moments: temperature {temperature:g} is that of sampled labels: pass "
            "loss_fn='sampled' with it"
        )
    if loss_fn is None:
        return None
    if not isinstance(loss_fn, str):
        return Given(example_losses(loss_fn))
    key = jax.random.key(0) if key is None else key
    return Drawn(loss_fn, key, temperature, "collect_moments")


def _check_kronecker(kronecker: str, loss_fn: LossFn | str | None, batches: Iterable[Any]) -> None:
    if kronecker not in KRONECKER:
        raise ValueError(
            f"collect_moments: kronecker {kronecker!r}: {known_are(kronecker, KRONECKER)}"
        )
    if kronecker == INDEPENDENT:
        return
    if loss_fn is None:
        raise ValueError(
            f"collect_moments: kronecker={kronecker!r} needs the gradient of a loss: pass a loss_fn"
        )
    if iter(batches) is batches:
        raise ValueError(
            f"collect_moments: kronecker={kronecker!r} goes over the batches more than once: pass "
            "a list of them"
        )


@overload
def reestimate_batch_stats(
    model: nn.Module,
    variables: Variables,
    batches: Iterable[Any],
    *,
    row_weights: RowWeights | None = ...,
    progress: Progress = ...,
    method: Method = ...,
) -> dict[str, Any]: ...


@overload
def reestimate_batch_stats(
    model: Model,
    batches: Iterable[Any],
    *,
    row_weights: RowWeights | None = ...,
    progress: Progress = ...,
    method: Method = ...,
) -> Model: ...


@on_models
def reestimate_batch_stats(
    model: Any,
    variables: Any,
    batches: Iterable[Any],
    *,
    row_weights: RowWeights | None = None,
    progress: Progress = True,
    method: Method = None,
) -> Any:
    """Means and variances of batch normalisation, estimated again on inputs alone.

    `reestimate_batch_stats(model, variables, batches)` for Linen gives the variables with other
    `batch_stats`, `reestimate_batch_stats(model, batches)` for NNX a new model. A factorised
    network hands its normalisation layers other statistics than the network that was trained;
    this puts them right without any training. Every batch is normalised by itself, as in
    training; dropout stays as the model's arguments set it. The statistics are those of all
    batches together, of all processes as with `tdjax.collect_moments`.

        >>> import jax.numpy as jnp, tdjax
        >>> from flax import nnx
        >>> model = nnx.BatchNorm(2, use_running_average=True, rngs=nnx.Rngs(0))
        >>> x = jnp.array([[1.0, 5.0], [3.0, 5.0]])
        >>> tdjax.reestimate_batch_stats(model, [x]).mean[...].tolist()
        [2.0, 5.0]

    Arguments:
        model, variables: factorised or not.
        batches: each the model's input as in `tdjax.make_plan`, with `row_weights` also a tuple
            (input, rest); of the sizes that training had, or larger.
        row_weights: see `tdjax.collect_moments`; rows of weight 0 are left out as the `mask` of the
            layers leaves them out, beside those that the model leaves out itself; all others count
            alike.
        progress: see `tdjax.compress`.
        method: how the model is called, as for `tdjax.make_plan`.

    Layers of subclasses are re-estimated, whatever momentum and mode they have: those too whose
    momentum of 1 keeps training from changing them.

    Raises ValueError for no batches, NaN or Inf in one, a model without batch normalisation, and a
    layer that keeps batch statistics in a way of its own.
    """
    name, room = "reestimate_batch_stats", room_of(model)
    own = fed_to(name, model, variables, batches, row_weights, method)
    with Steps(name, progress).over("statistics", own) as counted:
        return room.reestimate_batch_stats(*with_arrays(model, variables), counted, method=method)
