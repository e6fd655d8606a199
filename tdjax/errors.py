"""Approximation errors of weights and features, and candidates evaluated side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tdjax.decompose.als import safe_ratio
from tdjax.factorize import factorize_params, layer_params, reconstruct_params, replace_kernel
from tdjax.linen import Frame, call_arguments, layer_outputs, split_arrays
from tdjax.plan import Plan

ERRORS = ("absolute", "relative", "scaled")
MetricFn = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Network:
    """A model as a static argument of `jax.jit`: models may hold lists, which have no hash."""

    model: Any

    def __hash__(self) -> int:
        """Equal models have equal classes."""
        return hash(type(self.model))


def weight_errors(
    kernel: Float[Array, "*_"], approx: Float[Array, "*_"]
) -> dict[str, Float[Array, ""]]:
    """Errors of an approximated kernel in the Frobenius norm.

    "absolute" is norm(W - W~), "relative" norm(W - W~) / norm(W) (0 for two zero kernels),
    "scaled" norm(W - W~) / n with n the number of weights (Schuurmans et al., ICLR 2023).

    Arguments:
        kernel, approx: arrays of one shape. Raises ValueError for different shapes.
    """
    if jnp.shape(kernel) != jnp.shape(approx):
        raise ValueError(f"weight_errors: shapes {jnp.shape(kernel)} and {jnp.shape(approx)}")
    kernel, approx = _at_least_single(kernel), _at_least_single(approx)
    absolute = jnp.linalg.norm((kernel - approx).ravel())
    return {
        "absolute": absolute,
        "relative": safe_ratio(absolute, jnp.linalg.norm(kernel.ravel())),
        "scaled": absolute / kernel.size,
    }


def feature_errors(
    model: Any,
    variables: Mapping[str, Any],
    plan_or_params: Plan | Mapping[str, Any],
    batches: Iterable[Any],
    *,
    key: Array | None = None,
) -> dict[str, dict[str, float]]:
    """Errors of each layer's output features F, one norm for each example, then the mean.

    "absolute" is E norm(F - F~), "relative" E norm(F - F~) / norm(F), "scaled"
    E norm(F - F~) / n_F with n_F the number of features of one example (Schuurmans et al., ICLR
    2023, batch size 1). Each layer sees the input that the original network gives it.

    Arguments:
        model: a Linen module.
        variables: its trained variables.
        plan_or_params: a plan, whose decomposition is made with `key`, or approximated dense
            parameters as from `tdjax.reconstruct_params`; kernels that differ are compared.
        batches: inputs of the model, see `tdjax.make_plan`; the first axis is the batch.

    Returns: for each layer path the three errors.

    Raises ValueError for no batches, or factors without their plan.
    """
    params = variables["params"]
    if isinstance(plan_or_params, Plan):
        approximated = factorize_params(
            params, plan_or_params, key=jax.random.key(0) if key is None else key
        )
        paths = [entry.layer.path for entry in plan_or_params.factorised]
        dense: Mapping[str, Any] = reconstruct_params(approximated, plan_or_params)
    else:
        dense = plan_or_params
        paths = _changed_kernels(params, dense)
    kernels = {path: layer_params(dense, path)["kernel"][None] for path in paths}
    totals, count = _feature_totals(model, variables, kernels, batches)
    return {
        path: {name: float(total[0]) / count for name, total in by_name.items()}
        for path, by_name in totals.items()
    }


def candidate_feature_errors(
    model: Any,
    variables: Mapping[str, Any],
    path: str,
    kernels: Float[Array, "n ..."],
    batches: Iterable[Any],
) -> dict[str, Float[np.ndarray, " n"]]:
    """The three feature errors of many kernels of one layer, computed in one program.

    The network up to the layer runs once for all of them. Arguments as `evaluate_candidates`,
    `batches` holding inputs alone. Returns an array over the candidates for each error.
    """
    totals, count = _feature_totals(model, variables, {path: kernels}, batches)
    return {name: np.asarray(total, np.float64) / count for name, total in totals[path].items()}


def evaluate_candidates(
    model: Any,
    variables: Mapping[str, Any],
    path: str,
    kernels: Float[Array, "n ..."],
    batches: Iterable[Any],
    metric_fn: MetricFn,
    *,
    chunk: int = 25,
) -> Any:
    """Performance of a network with each of many kernels in place of one layer's, side by side.

    One compiled program maps over the kernels. Only that layer's kernel carries the candidate
    axis, so everything before the layer is computed once, and everything after it sees the
    candidates as a larger batch.

    Arguments:
        model: a Linen module.
        variables: its trained variables.
        path: '/'-joined path of the layer.
        kernels: (n, *kernel shape), the candidates.
        batches: each batch is the model's input, or a tuple whose first entry that is and whose
            rest `metric_fn` may use.
        metric_fn: (outputs, batch) -> pytree of arrays over the examples, (batch,).
        chunk: candidates at once, which bounds memory; more candidates run in turns.

    Returns: pytree as of `metric_fn` with float64 arrays (n,): the mean over all examples.

    Raises ValueError for a kernel shape that does not fit, NaN or Inf, or no batches.
    """
    own = layer_params(variables["params"], path).get("kernel")
    if own is None:
        raise KeyError(f"evaluate_candidates: {path!r} has no kernel")
    if chunk < 1:
        raise ValueError(f"evaluate_candidates: chunk must be at least 1, got {chunk}")
    kernels = jnp.asarray(kernels)
    if kernels.shape[1:] != own.shape or kernels.shape[:1] in ((), (0,)):
        raise ValueError(
            f"evaluate_candidates: kernels of shape {kernels.shape} for layer {path!r}, "
            f"expected (n, {', '.join(map(str, own.shape))}) with n of 1 or more"
        )
    if not bool(jnp.isfinite(kernels).all()):
        raise ValueError(f"evaluate_candidates: a kernel for layer {path!r} holds NaN or Inf")
    n, totals, count = kernels.shape[0], None, 0
    size = min(chunk, n)
    # The last turn is filled up with kernels seen before, so that one program serves all turns.
    turns = [kernels[jnp.arange(start, start + size) % n] for start in range(0, n, size)]
    for batch in batches:
        arrays, frame = split_arrays(batch)
        sums = [
            _candidate_sums(Network(model), path, metric_fn, frame, variables, turn, arrays)
            for turn in turns
        ]
        joined = jax.tree.map(lambda *parts: np.concatenate(parts)[:n].astype(np.float64), *sums)
        totals = joined if totals is None else jax.tree.map(np.add, totals, joined)
        count += _examples(batch)
    if totals is None:
        raise ValueError("evaluate_candidates: no batches")
    return jax.tree.map(lambda total: total / count, totals)


@partial(jax.jit, static_argnames=("network", "path", "metric_fn", "frame"))
def _candidate_sums(
    network: Network,
    path: str,
    metric_fn: MetricFn,
    frame: Frame,
    variables: Any,
    kernels: Array,
    arrays: list[Array],
) -> Any:
    batch = frame.join(arrays)

    def one(kernel: Array) -> Any:
        params = replace_kernel(variables["params"], path, kernel)
        args, kwargs = call_arguments(batch[0] if isinstance(batch, tuple) else batch)
        outputs = network.model.apply({**variables, "params": params}, *args, **kwargs)
        return jax.tree.map(lambda values: jnp.sum(values, axis=0), metric_fn(outputs, batch))

    return jax.vmap(one)(kernels)


def _feature_totals(
    model: Any, variables: Any, kernels: Mapping[str, Array], batches: Iterable[Any]
) -> tuple[dict[str, dict[str, np.ndarray]], int]:
    totals: Any = None
    count = 0
    for batch in batches:
        arrays, frame = split_arrays(batch)
        sums = jax.tree.map(
            lambda x: np.asarray(x, np.float64),
            _feature_sums(Network(model), frame, variables, dict(kernels), arrays),
        )
        totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
        count += _examples(batch)
    if totals is None:
        raise ValueError("feature errors: no batches")
    return totals, count


@partial(jax.jit, static_argnames=("network", "frame"))
def _feature_sums(
    network: Network,
    frame: Frame,
    variables: Any,
    kernels: dict[str, Array],
    arrays: list[Array],
) -> Any:
    batch = frame.join(arrays)
    examples = _examples(batch)

    def one(path: str) -> dict[str, Array]:
        def errors(kernel: Array) -> dict[str, Array]:
            pairs = layer_outputs(network.model, variables, {path: kernel}, batch)[path]
            if not pairs:
                raise ValueError(f"feature errors: the model never calls layer {path!r}")
            pairs = [(_at_least_single(a), _at_least_single(b)) for a, b in pairs]
            # The calls of a shared layer together make up its features.
            change = [(a - b).reshape(examples, -1) for a, b in pairs]
            features = [a.reshape(examples, -1) for a, _ in pairs]
            absolute = jnp.sqrt(sum(jnp.sum(c * c, axis=1) for c in change))
            norms = jnp.sqrt(sum(jnp.sum(f * f, axis=1) for f in features))
            number = sum(f.shape[1] for f in features)
            return {
                "absolute": jnp.sum(absolute),
                "relative": jnp.sum(safe_ratio(absolute, norms)),
                "scaled": jnp.sum(absolute) / number,
            }

        return jax.vmap(errors)(kernels[path])

    return {path: one(path) for path in kernels}


def _changed_kernels(params: Any, dense: Any, path: tuple[str, ...] = ()) -> list[str]:
    if not isinstance(params, Mapping):
        return []
    where = "/".join(path)
    dense = dense if isinstance(dense, Mapping) else {}
    if "kernel" in params and not isinstance(params["kernel"], Mapping):
        if "kernel" not in dense:
            raise ValueError(
                f"feature_errors: no kernel at {where!r}; pass the plan, or the parameters from "
                "tdjax.reconstruct_params(params, plan)"
            )
        if jnp.shape(params["kernel"]) != jnp.shape(dense["kernel"]):
            raise ValueError(
                f"feature_errors: layer {where!r} has a kernel of shape "
                f"{jnp.shape(params['kernel'])}, the approximation one of "
                f"{jnp.shape(dense['kernel'])}"
            )
        same = jnp.array_equal(params["kernel"], dense["kernel"])
        return [] if bool(same) else [where]
    return [
        changed
        for name, sub in params.items()
        for changed in _changed_kernels(sub, dense.get(name, {}), (*path, name))
    ]


def _examples(batch: Any) -> int:
    arrays, _ = split_arrays(batch)
    number = next((array.shape[0] for array in arrays if array.shape), 0)
    if number == 0:
        raise ValueError("an empty batch")
    return number


def _at_least_single(x: Any) -> Array:
    """In half precision a norm would be off by a percent."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
