"""What approximations of layers do to a model: to features, to its performance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, overload

import flax.linen as nn
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

import tdjax.evaluate.errors
from tdjax.arguments.batches import read_batches
from tdjax.arguments.called import Method
from tdjax.dispatch.feeding import fed_to
from tdjax.dispatch.models import caller_of, on_models, room_of, with_arrays
from tdjax.evaluate.candidates import MetricFn, Performance, candidate_means
from tdjax.evaluate.errors import FeatureErrors
from tdjax.moments.collect import RowWeights
from tdjax.plan.plan import Plan
from tdjax.processes import together

Variables = Mapping[str, Any]
Kernels = Float[Array, "n ..."]


@overload
def feature_errors(
    model: nn.Module,
    variables: Variables,
    plan_or_params: Plan | Mapping[str, Any],
    batches: Iterable[Any],
    *,
    row_weights: RowWeights | None = ...,
    key: Array | None = ...,
    method: Method = ...,
) -> dict[str, dict[str, float]]: ...


@overload
def feature_errors(
    model: nnx.Module,
    plan_or_params: Plan | nnx.Module | Mapping[Any, Any],
    batches: Iterable[Any],
    *,
    row_weights: RowWeights | None = ...,
    key: Array | None = ...,
    method: Method = ...,
) -> dict[str, dict[str, float]]: ...


@overload
def feature_errors(
    model: Callable[..., Any],
    params: Any,
    plan_or_params: Any,
    batches: Iterable[Any],
    *,
    row_weights: RowWeights | None = ...,
    key: Array | None = ...,
) -> dict[str, dict[str, float]]: ...


@on_models
def feature_errors(
    model: Any,
    variables: Any,
    plan_or_params: Any,
    batches: Iterable[Any],
    *,
    row_weights: RowWeights | None = None,
    key: Array | None = None,
    method: Method = None,
) -> dict[str, dict[str, float]]:
    """Errors of each layer's output features F, one norm for each example, then the mean.

    `feature_errors(model, variables, plan_or_params, batches)` for Linen, `feature_errors(model,
    plan_or_params, batches)` for NNX, `feature_errors(apply_fn, params, plan_or_params, batches)`
    for a function. "absolute" is E norm(F - F~), "relative" E norm(F - F~) / norm(F), "scaled" E
    norm(F - F~) / n_F with n_F the number of features of one example (Schuurmans et al., ICLR 2023,
    batch size 1). Each layer sees the input that the original network gives it. With
    `jax.distributed` the mean is over the batches of all processes, see `tdjax.collect_moments`.

        >>> import jax, tdjax
        >>> from flax import nnx
        >>> model = nnx.Linear(16, 16, rngs=nnx.Rngs(0))
        >>> x = jax.random.normal(jax.random.key(0), (8, 16))
        >>> rules = [tdjax.Rule(path="", method="svd", rank=7)]
        >>> errors = tdjax.feature_errors(model, tdjax.make_plan(model, rules, x), [x])
        >>> 0.0 < errors[""]["relative"] < 0.5
        True

    Arguments:
        model: a Linen or NNX module, or a function of parameters and inputs.
        variables, params: the trained variables of a Linen model, the parameters of a function.
        plan_or_params: a plan, whose decomposition is made with `key` and rounded to the numbers
            that it stores, in layers that stay dense too; or approximated dense parameters: as from
            `tdjax.reconstruct_params` for Linen; for NNX a model as from `tdjax.nnx.reconstruct`,
            or its parameters as a nested mapping. Kernels that differ are compared.
        batches: inputs of the model as in `tdjax.make_plan`, with `row_weights` also tuples (input,
            rest); the first axis is the batch.
        row_weights: see `tdjax.collect_moments`. In the norms rows then count by their weight over
            the largest of their example, by which the example counts in the mean; n_F counts
            features likewise. Examples without a weight are left out.
        method: how the model is called, as for `tdjax.make_plan`.

    Returns: for each layer path the three errors.

    Raises ValueError for no batches, or factors without their plan.
    """
    room, arrays = room_of(model), with_arrays(model, variables)
    is_plan = isinstance(plan_or_params, Plan)
    other = plan_or_params if is_plan else room.approximated_weights(plan_or_params)
    network, state = room.network_of(*arrays, method=method)
    own = fed_to("feature_errors", model, variables, batches, row_weights, method)
    return tdjax.evaluate.errors.feature_errors(
        network, state, room.layer_weights(*arrays), other, own, key=key
    )


@overload
def candidate_feature_errors(
    model: nn.Module,
    variables: Variables,
    path: str,
    kernels: Kernels,
    batches: Iterable[Any],
    *,
    row_weights: RowWeights | None = ...,
    chunk: int = ...,
    method: Method = ...,
) -> dict[str, Float[np.ndarray, " n"]]: ...


@overload
def candidate_feature_errors(
    model: nnx.Module,
    path: str,
    kernels: Kernels,
    batches: Iterable[Any],
    *,
    row_weights: RowWeights | None = ...,
    chunk: int = ...,
    method: Method = ...,
) -> dict[str, Float[np.ndarray, " n"]]: ...


@overload
def candidate_feature_errors(
    model: Callable[..., Any],
    params: Any,
    path: str,
    kernels: Kernels,
    batches: Iterable[Any],
    *,
    row_weights: RowWeights | None = ...,
    chunk: int = ...,
) -> dict[str, Float[np.ndarray, " n"]]: ...


@on_models
def candidate_feature_errors(
    model: Any,
    variables: Any,
    path: str,
    kernels: Kernels,
    batches: Iterable[Any],
    *,
    row_weights: RowWeights | None = None,
    chunk: int = 25,
    method: Method = None,
) -> dict[str, Float[np.ndarray, " n"]]:
    """The three feature errors of many kernels of one layer, side by side.

    Arguments and errors as `tdjax.evaluate_candidates`, `batches` holding inputs alone unless there
    are `row_weights`, see `tdjax.feature_errors`. Returns a float64 array over the candidates for
    each error of `tdjax.feature_errors`.
    """
    network, arrays = room_of(model).network_of(*with_arrays(model, variables), method=method)
    own = fed_to("candidate_feature_errors", model, variables, batches, row_weights, method)
    return candidate_means(FeatureErrors(network, path), arrays, kernels, own, chunk)


@overload
def evaluate_candidates(
    model: nn.Module,
    variables: Variables,
    path: str,
    kernels: Kernels,
    batches: Iterable[Any],
    metric_fn: MetricFn,
    *,
    chunk: int = ...,
    method: Method = ...,
) -> Any: ...


@overload
def evaluate_candidates(
    model: nnx.Module,
    path: str,
    kernels: Kernels,
    batches: Iterable[Any],
    metric_fn: MetricFn,
    *,
    chunk: int = ...,
    method: Method = ...,
) -> Any: ...


@overload
def evaluate_candidates(
    model: Callable[..., Any],
    params: Any,
    path: str,
    kernels: Kernels,
    batches: Iterable[Any],
    metric_fn: MetricFn,
    *,
    chunk: int = ...,
) -> Any: ...


@on_models
def evaluate_candidates(
    model: Any,
    variables: Any,
    path: str,
    kernels: Kernels,
    batches: Iterable[Any],
    metric_fn: MetricFn,
    *,
    chunk: int = 25,
    method: Method = None,
) -> Any:
    """Performance of a network with each of many kernels in place of one layer's, side by side.

    `evaluate_candidates(model, variables, path, kernels, batches, metric_fn)` for Linen,
    `evaluate_candidates(model, path, kernels, batches, metric_fn)` for NNX, as for Linen with a
    function and its parameters. Everything that the
    layer's kernel does not reach runs once for a batch. Behind the layer, a compiled program maps
    over the candidates, to which they are a larger batch.

        >>> import jax.numpy as jnp, tdjax
        >>> from flax import nnx
        >>> model, x = nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0)), jnp.ones((4, 2))
        >>> kernels = jnp.array([[[1.0], [1.0]], [[2.0], [3.0]]])
        >>> tdjax.evaluate_candidates(model, "", kernels, [x], lambda y, batch: y[:, 0]).tolist()
        [2.0, 5.0]

    Arguments:
        model: a Linen or NNX module, or a function of parameters and inputs.
        variables, params: the trained variables of a Linen model, the parameters of a function.
        path: '/'-joined path of the layer, of a function that of the array.
        kernels: (n, *kernel shape), the candidates.
        batches: each batch is the model's input as in `tdjax.make_plan`, or a tuple
            (input, rest), whose rest `metric_fn` may use. Under `jax.distributed` the means are
            over those of all processes, of which each needs one.
        metric_fn: (outputs, batch) -> pytree of arrays over the examples, (batch,).
        chunk: candidates at once, which bounds memory; more candidates run in turns.
        method: how the model is called, as for `tdjax.make_plan`.

    Returns: pytree as of `metric_fn` with float64 arrays (n,): the mean over all examples.

    Raises KeyError for a path without a kernel, ValueError for a kernel shape that does not fit,
    NaN or Inf, no batches, or a tuple that could be an input as well as (input, rest), TypeError
    or ValueError for a metric of another form.
    """
    room, whole = room_of(model), with_arrays(model, variables)
    trace_of = partial(room.trace, *whole, method=method)
    caller = caller_of(model, variables, method)
    reading, batches = together(
        "evaluate_candidates",
        lambda: read_batches("evaluate_candidates", caller, trace_of, batches),
    )
    network, arrays = room.network_of(*whole, method=method)
    function = Performance(network, path, metric_fn, reading)
    means, _ = candidate_means(function, arrays, kernels, batches, chunk)
    return means
