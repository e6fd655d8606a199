"""Approximation errors of weights and features."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tdjax.decompose.dealing import in_this_process
from tdjax.decompose.inputs import all_finite
from tdjax.decompose.meshes import on_any_mesh
from tdjax.decompose.products import HIGHEST
from tdjax.decompose.scale import (
    at_least_single,
    error_ratio,
    exponent_of,
    shifted,
    unit,
    unit_difference,
)
from tdjax.decompose.second_moment import times
from tdjax.evaluate.candidates import Network, examples
from tdjax.moments.feeding import Fed
from tdjax.moments.weighing import laid_out, weighed, weights_of_examples
from tdjax.params.factorize import dense_tree, factor_tree, weight_name, weight_names
from tdjax.params.options import Options
from tdjax.params.partitioning import unboxed
from tdjax.params.tree import find, join_path, layer_params, mappings
from tdjax.plan.form import PAIRED
from tdjax.plan.layers import LEAF
from tdjax.plan.plan import Plan
from tdjax.processes import are_apart, gathered, together
from tdjax.progress import Steps
from tdjax.trace.call import StaticPart, peeked, split_arrays

ERRORS = ("absolute", "relative", "scaled")


@on_any_mesh
def weight_errors(
    kernel: Float[Array, "*_"], approx: Float[Array, "*_"]
) -> dict[str, Float[Array, ""]]:
    """Errors of an approximated kernel in the Frobenius norm.

    "absolute" is norm(W - W~), "relative" norm(W - W~) / norm(W) (of a kernel of zeros, 0 for
    another one, else inf), "scaled" norm(W - W~) / n with n the number of weights (Schuurmans et
    al., ICLR 2023). At every scale that the dtype holds; subnormal numbers count as zeros.

        >>> import jax.numpy as jnp, tdjax
        >>> errors = tdjax.weight_errors(jnp.ones((2, 2)), jnp.zeros((2, 2)))
        >>> {name: float(value) for name, value in errors.items()}
        {'absolute': 2.0, 'relative': 1.0, 'scaled': 0.5}

    Arguments:
        kernel, approx: arrays of one shape. Raises ValueError for different shapes.
    """
    if jnp.shape(kernel) != jnp.shape(approx):
        raise ValueError(f"weight_errors: shapes {jnp.shape(kernel)} and {jnp.shape(approx)}")
    kernel, approx = at_least_single(kernel), at_least_single(approx)
    difference, exponent = unit_difference(kernel, approx)
    whole, own = unit(kernel)
    error = jnp.linalg.norm(difference.ravel())
    relative = error_ratio(error, jnp.linalg.norm(whole.ravel()))
    return {
        "absolute": shifted(error, exponent),
        "relative": shifted(relative, exponent - own),
        "scaled": shifted(error / kernel.size, exponent),
    }


@on_any_mesh
def data_errors(
    kernel: Float[Array, "*_"],
    approx: Float[Array, "*_"],
    inputs: Float[Array, "*_"],
    outputs: Float[Array, "*_"] | None = None,
) -> dict[str, Float[Array, ""]]:
    """Errors of an approximated kernel in the norm of a layer's data.

    "absolute" is sqrt(tr(G E^T S E)) with E = W - W~, both (D, T), summed over the groups under the
    root; "relative" is that over the same of W (where the data does not tell W apart from zero, 0
    if it does not tell W~ apart either, else inf). S is the second moment of the rows that go in;
    with G the identity, the absolute error is the root of the mean square of what the
    approximation changes in a row that comes out (Kalle et al., NeurIPS 2025). With G that of the
    loss gradient at those rows, its square predicts, up to a constant, by how much the loss rises
    (Martens & Grosse 2015).

    Arguments:
        kernel, approx: arrays of one shape, (*window, C / groups, T), or (in, out).
        inputs: S, (groups, D, D), or its diagonal, (groups, D); see `tdjax.LayerMoments`.
        outputs: G, (groups, T / groups, T / groups), or its diagonal; None for the identity.

    Raises ValueError for shapes that do not fit each other.
    """
    if jnp.shape(kernel) != jnp.shape(approx):
        raise ValueError(f"data_errors: shapes {jnp.shape(kernel)} and {jnp.shape(approx)}")
    groups, columns = len(inputs), kernel.shape[-1]
    rows = kernel.size // columns
    fitting = columns % groups == 0 and inputs.shape[1] == rows
    if fitting and outputs is not None:
        fitting = outputs.shape[:2] == (groups, columns // groups)
    if not fitting:
        raise ValueError(
            f"data_errors: moments of shapes {inputs.shape} and "
            f"{None if outputs is None else outputs.shape} do not fit a kernel of shape "
            f"{kernel.shape}"
        )

    inputs, scale = unit(jnp.asarray(inputs))
    if outputs is not None:
        outputs, more = unit(jnp.asarray(outputs))
        scale = scale + more

    def norm(x: Array) -> Array:
        parts = jnp.moveaxis(x.reshape(rows, groups, columns // groups), 1, 0)
        # Not a `Norm`, which takes a moment of zeros for the identity: right where a factor is
        # sought, but a change that a dead group never shows is no error.
        weighed = jax.vmap(times)(inputs, parts)
        if outputs is not None:
            weighed = jax.vmap(times)(outputs, weighed.mT).mT
        return jnp.sqrt(jnp.maximum(0.0, jnp.vdot(parts, weighed, precision=HIGHEST)))

    kernel, approx = at_least_single(kernel), at_least_single(approx)
    difference, exponent = unit_difference(kernel, approx)
    whole, own = unit(kernel)
    error = norm(difference)
    return {
        # The exponents of moments are even.
        "absolute": shifted(error, exponent + scale // 2),
        "relative": shifted(error_ratio(error, norm(whole)), exponent - own),
    }


def feature_errors(
    network: Network,
    variables: Any,
    weights: Mapping[str, Any],
    plan_or_weights: Plan | Mapping[str, Any],
    batches: Iterable[Fed],
    *,
    key: Array | None = None,
    steps: Steps,
) -> dict[str, dict[str, float]]:
    """Errors of each layer's output features; see `tdjax.feature_errors`.

    Raises ValueError for NaN or Inf, naming the layer, and the batch that brings them.

    Arguments:
        network, variables: the model as a static argument, and its arrays.
        weights: the layers' arrays as nested mappings by path.
        plan_or_weights: a plan, or approximated weights.
        steps: is told how many batches are done, and of how many layers factors are made.
    """
    _check_finite(weights)
    if isinstance(plan_or_weights, Plan):
        plan = plan_or_weights
        _check_apart(plan)
        options = Options(key=jax.random.key(0) if key is None else key, steps=steps)
        # Layers that stay dense change where they are stored in fewer bits.
        changed = (own for own in plan.layers if own.form is not None or own.dtype is not None)
        paths = [entry.layer.path for entry in changed]
        other: Mapping[str, Any] = dense_tree(factor_tree(weights, plan, options), plan)
    else:
        paths, other = _changed_kernels(weights, plan_or_weights), plan_or_weights
        _check_finite(other)
    kernels = {path: _kernel(other, path) for path in paths}
    first, batches = together("feature_errors", lambda: peeked(batches))
    apart = are_apart("feature_errors", first)
    if apart:
        variables, kernels = jax.tree.map(in_this_process, (variables, kernels))
    with steps.over("features", batches) as counted_out:
        run = partial(_totals, network, variables, kernels, counted_out)
        own = together("feature_errors", run)
    every = gathered(own) if apart else [own]
    count = sum(number for _, number in every)
    if count == 0:
        none = first is None or first.weights is None
        reason = "no batches" if none else "row_weights leave no row that counts"
        raise ValueError(f"feature_errors: {reason}")
    return {
        path: {name: sum(totals[path][name] for totals, _ in every) / count for name in ERRORS}
        for path in paths
    }


def _check_apart(plan: Plan) -> None:
    """Refuse a plan with layers between which other numbers pass than between the dense ones."""
    for entry in plan.factorised:
        if entry.method in PAIRED:
            raise ValueError(
                f"feature_errors: layer {entry.layer.path!r} is in a pair: what passes between its "
                "layers is no output of the dense one; compare what the models put out"
            )


def _totals(
    network: Network, variables: Any, kernels: dict[str, Array], batches: Iterable[Fed]
) -> tuple[dict[str, dict[str, float]], float]:
    """The errors summed over the examples of batches, and how much these count."""
    totals = {path: dict.fromkeys(ERRORS, 0.0) for path in kernels}
    count = 0.0
    for turn, batch in enumerate(batches, 1):
        count += counted(batch)
        arrays, frame = split_arrays(batch)
        sums = _errors_of_batch(network, frame, variables, kernels, arrays)
        for path in kernels:
            _check_sums("feature_errors", path, sums[path], turn)
        for path, name in itertools.product(kernels, ERRORS):
            totals[path][name] += float(sums[path][name])
    return totals, count


@dataclass(frozen=True)
class FeatureErrors:
    """The three feature errors of a layer with the kernel in place of its own."""

    network: Network
    path: str

    def count(self, batch: Fed) -> float:
        """How much the examples of a batch count."""
        return counted(batch)

    def __call__(self, kernel: Array, variables: Any, batch: Any) -> dict[str, Array]:
        """Sums over the examples."""
        return _error_sums(self.network, variables, {self.path: kernel}, batch)[self.path]

    def check(self, sums: Mapping[str, Any], turn: int) -> None:
        """Refuse sums over a batch that are not finite, see `KernelFunction`."""
        _check_sums("candidate_feature_errors", self.path, sums, turn)


def _check_sums(function: str, path: str, sums: Mapping[str, Any], turn: int) -> None:
    # Relative ones may be infinite, where features are zero.
    if not np.isfinite(np.asarray(sums["absolute"])).all():
        raise ValueError(
            f"{function}: with batch {turn} (the first is 1) the features of layer {path!r} are "
            "NaN or Inf: look for them in the batch and in the model's weights"
        )


def _check_finite(weights: Mapping[str, Any]) -> None:
    """Refuse weights that hold NaN or Inf, with a ValueError that names the layer."""
    for path, own in mappings(weights):
        for name, leaf in own.items():
            array: Any = unboxed(leaf)
            numeric = hasattr(array, "dtype") and jnp.issubdtype(array.dtype, jnp.inexact)
            if numeric and not all_finite(array):
                raise ValueError(f"feature_errors: layer {path!r}: the {name} holds NaN or Inf")


def _errors_of_batch(
    network: Network,
    frame: StaticPart,
    variables: Any,
    kernels: dict[str, Array],
    arrays: Sequence[Any],
) -> dict[str, dict[str, Array]]:
    """`_layer_errors`; a ValueError for a layer whose outputs stay where it is called."""

    def comes_out(path: str) -> bool:
        try:
            # A value that has left its place is seen no earlier than in a call.
            _layer_errors(network, frame, variables, {path: kernels[path]}, arrays)
        except (TypeError, ValueError):
            return False
        return True

    try:
        sums = _layer_errors(network, frame, variables, kernels, arrays)
    except (TypeError, ValueError) as error:
        # What is wrong with the batch is said by a plain call.
        jax.eval_shape(lambda: network.outputs(variables, frame.join(arrays).inputs))
        lost = [path for path in kernels if not comes_out(path)]
        if not lost:
            raise
        raise ValueError(
            f"feature errors: layer {lost[0]!r} is called inside a loop, a condition or a "
            "gradient, out of which its outputs cannot be carried: leave it dense"
        ) from error
    _check_called(sums)
    return sums


@partial(jax.jit, static_argnames=("network", "frame"))
def _layer_errors(
    network: Network,
    frame: StaticPart,
    variables: Any,
    kernels: dict[str, Array],
    arrays: Sequence[Any],
) -> dict[str, dict[str, Array]]:
    return _sums(network, variables, kernels, frame.join(arrays))


def _error_sums(
    network: Network, variables: Any, kernels: Mapping[str, Array], batch: Fed
) -> dict[str, dict[str, Array]]:
    sums = _sums(network, variables, kernels, batch)
    _check_called(sums)
    return sums


def _check_called(sums: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse layers whose outputs are not known."""
    for path, own in sums.items():
        if not own:
            raise ValueError(
                f"feature errors: the model never calls layer {path!r}, or only as one of a stack "
                "or inside a loop"
            )


def _sums(
    network: Network, variables: Any, kernels: Mapping[str, Array], batch: Fed
) -> dict[str, dict[str, Array]]:
    """The sums of each layer; none of one whose outputs are not known."""
    outputs = network.layer_outputs(variables, kernels, batch.inputs)
    number = examples(batch.inputs)

    def sums(path: str) -> dict[str, Array]:
        if not outputs[path]:
            return {}
        pairs = [(at_least_single(a), at_least_single(b)) for a, b in outputs[path]]
        # The calls of a shared layer together make up its features.
        change = [_of_examples(a - b, number) for a, b in pairs]
        features = [_of_examples(a, number) for a, _ in pairs]
        size: Any = sum(f.shape[1] for f in features)
        if batch.weights is not None:
            shares = [_shares(batch.weights, a.shape) for a, _ in pairs]
            change, features = (
                [weighed(f, jnp.sqrt(share)) for f, share in zip(own, shares, strict=True)]
                for own in (change, features)
            )
            size = sum(share.sum(axis=1) for share in shares)
        absolute, exponent = _unit_norms(change)
        norms, own = _unit_norms(features)
        each = {
            "absolute": shifted(absolute, exponent),
            "relative": shifted(error_ratio(absolute, norms), exponent - own),
        }
        each["scaled"] = each["absolute"] / jnp.where(size > 0, size, 1)
        if batch.weights is not None:
            counts = weights_of_examples(batch.weights)
            each = {name: counts * error for name, error in each.items()}
        return {name: jnp.sum(error) for name, error in each.items()}

    return {path: sums(path) for path in kernels}


def counted(batch: Fed) -> float:
    """How much the examples of a batch count: each as its row that counts most."""
    number = examples(batch.inputs)
    return float(number if batch.weights is None else weights_of_examples(batch.weights).sum())


def _of_examples(features: Array, number: int) -> Float[Array, "b n"]:
    """The features of each example, of which the first axis tells, merged with others or not.

    Else the second; rows that all examples have in common are those of each.
    """
    if features.shape[0] % number == 0:
        return features.reshape(number, -1)
    if features.shape[1:2] == (number,):
        return features.swapaxes(0, 1).reshape(number, -1)
    return jnp.broadcast_to(features.reshape(-1), (number, features.size))


def _shares(weights: Float[Array, "*_"], shape: Sequence[int]) -> Float[Array, "b n"]:
    """For each feature of an example how much it counts, of what counts most."""
    most = weights_of_examples(weights).reshape(-1, *(1,) * (weights.ndim - 1))
    own = laid_out(weights / jnp.where(most > 0, most, 1.0), shape[:-1])
    own = own.reshape(*own.shape, *(1,) * (len(shape) - own.ndim))
    return _of_examples(jnp.broadcast_to(own, tuple(shape)), len(weights))


def _unit_norms(parts: Sequence[Array]) -> tuple[Float[Array, " n"], Int[Array, " n"]]:
    """Norms of the rows of matrices side by side, each divided by 2^e, and these e."""
    largest = jnp.stack([jnp.max(jnp.abs(part), axis=1) for part in parts], axis=1)
    exponents = exponent_of(largest, axis=1)
    squares = [jnp.sum(shifted(part, -exponents) ** 2, axis=1) for part in parts]
    return jnp.sqrt(sum(squares)), exponents[:, 0]


def _kernel(params: Any, path: str) -> Array:
    own = layer_params(params, path)
    return jnp.asarray(unboxed(own[weight_name(own) or "kernel"]))


def _changed_kernels(params: Any, dense: Any) -> list[str]:
    """The layers whose weight is another in approximated parameters."""
    found = []
    for path, own in mappings(params):
        # The arrays of a module that holds others are layers by themselves.
        holds = LEAF not in own and any(isinstance(leaf, Mapping) for leaf in own.values())
        only = None if holds else weight_name(own)
        for name in weight_names(own) if only is None else [only]:
            array = not isinstance(own[name], Mapping)
            if array and _is_changed(path, name, own, find(dense, path) or {}):
                found.append(path if only else join_path(path, name))
    return found


def _is_changed(path: str, name: str, own: Mapping[str, Any], dense: Mapping[str, Any]) -> bool:
    if name not in dense:
        raise ValueError(
            f"feature_errors: no {name} at {path!r}; pass the plan, or dense parameters, as "
            "from tdjax.reconstruct_params(params, plan), or tdjax.nnx.reconstruct(model, plan)"
        )
    before, after = unboxed(own[name]), unboxed(dense[name])
    if jnp.shape(before) != jnp.shape(after):
        raise ValueError(
            f"feature_errors: layer {path!r} has a {name} of shape {jnp.shape(before)}, the "
            f"approximation one of {jnp.shape(after)}"
        )
    return not bool(jnp.array_equal(before, after))
