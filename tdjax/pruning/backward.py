"""Adaptive backward pruning by LASSO (ABP-L): layers refitted from the output backwards.

Each neuron's output in the trained network, before its activation, is regressed on the inputs
that its layer has there, with an l_1 penalty on weights and bias. Below, only those neurons are
refitted whose outputs were selected. As y = W^T x + b holds in the trained network, E x y^T =
E[x x^T] W + E[x] b^T: second moments of the inputs are all that is needed of the data. Yang et
al. 2022 (arXiv 2206.05604), implemented without its full text, from its abstract, its authors'
code and a derivation of our own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tdjax.arguments.checks import checked
from tdjax.decompose.meshes import on_any_mesh
from tdjax.decompose.products import HIGHEST
from tdjax.moments.collect import LayerMoments
from tdjax.params.tree import join_path
from tdjax.plan.layers import Layer
from tdjax.progress import Progress, Steps
from tdjax.pruning.checks import check_range
from tdjax.pruning.lasso import solve
from tdjax.pruning.prunable import Leaf, prunable
from tdjax.trace.names import names_of


class Pruned(NamedTuple):
    """Parameters and what is left of them.

    Arguments:
        params: with zeros where the mask is False.
        mask: boolean arrays in the structure of the parameters.
        converged: by path of a layer, whether its LASSO did.
    """

    params: Any
    mask: Any
    converged: dict[str, bool]


@on_any_mesh
@checked()
def lasso_prune(
    params: Any,
    moments: Mapping[str, LayerMoments],
    penalty: Any,
    bias_penalty: Any = None,
    *,
    chain: Sequence[str] | None = None,
    layers: Sequence[Layer] | None = None,
    max_iters: int = 1000,
    tol: float = 1e-2,
    progress: Progress = True,
) -> Pruned:
    """Prune a chain of layers from the output backwards, weights that stay being refitted.

        moments = tdjax.collect_moments(model, variables, batches)
        pruned = tdjax.lasso_prune(variables["params"], moments, 1e-4)

    >>> import jax, jax.numpy as jnp, tdjax
    >>> from flax import nnx
    >>> model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    >>> model.kernel[...] = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.01, 0.0], [0.0, 0.01]])
    >>> x = jax.random.normal(jax.random.key(0), (200, 4))
    >>> moments = tdjax.collect_moments(model, [x])
    >>> pruned = tdjax.lasso_prune(nnx.state(model, nnx.Param), moments, 0.1)
    >>> int(pruned.mask["kernel"][...].sum()), pruned.converged
    (2, {'': True})

    Of each neuron in use, E (y - x^T w - b)^2 + penalty |w|_1 + bias_penalty |b| is made least, y
    and x being its output and inputs in the network as it is. Neurons not in use lose all weights
    and their bias: `tdjax.remove_dead` takes them away.

    The layers must follow each other: all that a layer takes in comes from the layer before it,
    channel by channel, through activations, pools, normalisation and flattening with channels
    last. Networks with shortcuts or branches are no chain; that sizes fit is checked, and nothing
    more. Layers in front of the chain stay as they are.

    Arguments:
        params: pytree of arrays, as for `tdjax.magnitude_prune`; it is not changed.
        moments: from `tdjax.collect_moments`, of the layers in the chain.
        penalty: lambda_1, 0 or more, on weights; in units of squared outputs.
        bias_penalty: lambda_2 on biases; None for the same.
        chain: paths of the layers in forward order; None for all that have moments, in the order
            in which they are called.
        layers: see `tdjax.magnitude_prune`.
        max_iters, tol: see `tdjax.lasso`.
        progress: see `tdjax.compress`.

    Raises KeyError for a layer without moments, ValueError for layers that cannot follow each
    other, that look rows up or are stacked, for numbers out of range, and as
    `tdjax.magnitude_prune`.
    """
    settings = _settings(penalty, bias_penalty, tol)
    if max_iters < 1:
        raise ValueError(f"lasso_prune: max_iters must be at least 1, got {max_iters}")
    leaves, structure = jax.tree.flatten(params)
    ordered, biases = _ordered(params, moments, chain, layers), _bias_places(params)
    masks = [jnp.ones(leaf.shape, bool) for leaf in leaves]
    converged: dict[str, bool] = {}
    here = jnp.ones(ordered[-1].kernel_shape[-1], bool)
    steps = Steps("lasso_prune", progress)
    with steps.lasting("weights", "layer", len(ordered)) as tick:
        for leaf, below in zip(ordered[::-1], [*ordered[-2::-1], None], strict=True):
            place = biases.get(leaf.path)
            kernel = leaf.storage.to_kernel(leaves[leaf.place], leaf.kernel_shape)
            bias = None if place is None else leaves[place]
            refitted = _refit(kernel, bias, moments[leaf.path], here, settings, max_iters)
            kernel = leaf.storage.from_kernel(refitted.kernel)
            leaves[leaf.place] = kernel.astype(leaves[leaf.place].dtype)
            masks[leaf.place] = leaves[leaf.place] != 0
            if place is not None and refitted.bias is not None:
                leaves[place] = refitted.bias.astype(leaves[place].dtype)
            converged[leaf.path] = bool(refitted.converged)
            tick(len(converged))
            if below is not None:
                here = _neurons(refitted.used, below, leaf)
    return Pruned(
        jax.tree.unflatten(structure, leaves), jax.tree.unflatten(structure, masks), converged
    )


def _bias_places(params: Any) -> dict[str, int]:
    """Places of the biases among the leaves, by path of the layer."""
    return {
        join_path(*names[:-1]): place
        for place, (path, _) in enumerate(jax.tree.leaves_with_path(params))
        if (names := names_of(path))[-1:] == ("bias",)
    }


class _Settings(NamedTuple):
    """Of the LASSO of every layer; see `lasso_prune`."""

    penalty: Float[Array, ""]
    bias_penalty: Float[Array, ""]
    tol: Float[Array, ""]


def _settings(penalty: Any, bias_penalty: Any, tol: float) -> _Settings:
    penalty = check_range("penalty", penalty, 0, jnp.inf, low_too=True)
    bias_penalty = penalty if bias_penalty is None else bias_penalty
    bias_penalty = check_range("bias_penalty", bias_penalty, 0, jnp.inf, low_too=True)
    return _Settings(penalty, bias_penalty, check_range("tol", tol, 0, jnp.inf))


class _Refitted(NamedTuple):
    """One layer.

    Arguments:
        kernel, bias: of the shapes that they had, in float32.
        used: the inputs that a neuron takes, (channels,) or (rows,).
    """

    kernel: Float[Array, "*_"]
    bias: Float[Array, "*_"] | None
    used: Bool[Array, " c"]
    converged: Bool[Array, ""]


@partial(jax.jit, static_argnames="max_iters")
def _refit(
    kernel: Float[Array, "*_"],
    bias: Float[Array, "*_"] | None,
    moments: LayerMoments,
    here: Bool[Array, " t"],
    settings: _Settings,
    max_iters: int,
) -> _Refitted:
    """A layer with weights selected for the neurons that are in use.

    Arguments:
        kernel: (*window, channels / groups, T).
        here: the neurons in use.
    """
    moment, columns, penalties = _problem(kernel, bias, moments, here, settings)
    cross = jnp.matmul(moment, columns, precision=HIGHEST)

    def one(moment: Array, cross: Array, start: Array) -> Any:
        own = penalties.astype(moment.dtype)
        return solve(moment, cross, own, start, max_iters, settings.tol)

    # The trained weights solve the problem without the penalty.
    columns, info = jax.vmap(one)(moment, cross, columns)
    groups, channels = len(moment), kernel.shape[-2]
    rows = kernel.size // kernel.shape[-1]
    weights = columns[:, :rows]
    used = (weights.reshape(groups, -1, channels, weights.shape[-1]) != 0).any(axis=(1, 3))
    return _Refitted(
        weights.swapaxes(0, 1).reshape(kernel.shape),
        None if bias is None else columns[:, rows:].reshape(bias.shape),
        used.reshape(-1),
        info.converged.all(),
    )


def _problem(
    kernel: Float[Array, "*_"],
    bias: Float[Array, "*_"] | None,
    moments: LayerMoments,
    here: Bool[Array, " t"],
    settings: _Settings,
) -> tuple[Float[Array, "g e e"], Float[Array, "g e s"], Float[Array, " e"]]:
    """Moments of a layer's inputs, trained weights, and penalties, those of the bias behind."""
    moment, mean = moments.inputs, moments.mean
    assert moment is not None
    assert mean is not None
    groups, rows = mean.shape
    columns = kernel.astype(moment.dtype).reshape(rows, groups, -1).swapaxes(0, 1)
    columns = jnp.where(here.reshape(groups, 1, -1), columns, 0)
    penalties = jnp.full(rows, settings.penalty)
    if bias is None:
        return moment, columns, penalties
    offsets = jnp.where(here, bias.astype(moment.dtype).reshape(-1), 0).reshape(groups, 1, -1)
    columns = jnp.concatenate([columns, offsets], axis=1)
    return _with_one(moment, mean), columns, jnp.append(penalties, settings.bias_penalty)


def _with_one(moment: Float[Array, "g d d"], mean: Float[Array, "g d"]) -> Float[Array, "g e e"]:
    """The second moment of inputs and, behind them, an input that is one: that of the bias."""
    edge = jnp.concatenate([mean, jnp.ones((len(mean), 1), mean.dtype)], axis=1)
    moment = jnp.concatenate([moment, mean[:, None]], axis=1)
    return jnp.concatenate([moment, edge[:, :, None]], axis=2)


def _neurons(used: Bool[Array, " c"], leaf: Leaf, above: Leaf) -> Bool[Array, " t"]:
    """The neurons of a layer that are in use, from the inputs in use of the layer above."""
    features = leaf.kernel_shape[-1]
    if used.size % features:
        raise ValueError(
            f"layer {above.path!r} has {used.size} inputs, which layer {leaf.path!r} with its "
            f"{features} neurons cannot make: give the layers of a chain in forward order"
        )
    return used.reshape(-1, features).any(axis=0)


def _ordered(
    params: Any,
    moments: Mapping[str, LayerMoments],
    chain: Sequence[str] | None,
    layers: Sequence[Layer] | None,
) -> list[Leaf]:
    """The leaves of a chain in forward order."""
    by_path = {leaf.path: leaf for leaf in prunable(params, layers, ".*")}
    paths = list(moments) if chain is None else list(chain)
    if not paths:
        raise ValueError("lasso_prune: the chain holds no layers")
    for path in paths:
        if path not in by_path:
            raise ValueError(
                f"layer {path!r} cannot be pruned; layers that can are: {', '.join(by_path)}"
            )
        if path not in moments:
            raise KeyError(f"lasso_prune: no moments of layer {path!r}; collect them with its path")
        _check_link(by_path[path], moments[path])
    if len(set(paths)) < len(paths):
        raise ValueError(f"lasso_prune: a layer is in the chain twice: {', '.join(paths)}")
    return [by_path[path] for path in paths]


def _check_link(leaf: Leaf, moments: LayerMoments) -> None:
    """Raise ValueError for a layer that no chain may hold, or moments that do not fit it."""
    path, inputs, mean = leaf.path, moments.inputs, moments.mean
    if leaf.storage.stack is not None:
        raise ValueError(f"layer {path!r} is a stack of layers, which a chain cannot hold")
    if inputs is None or mean is None or inputs.ndim != 3:
        raise ValueError(
            f"layer {path!r} looks rows up, and has no inputs that a LASSO could select; leave it "
            "out of the chain"
        )
    if not bool(jnp.isfinite(inputs).all() & jnp.isfinite(mean).all()):
        raise ValueError(f"layer {path!r}: the moments hold NaN or Inf")
    groups, rows = mean.shape
    *front, features = leaf.kernel_shape
    if math.prod(front) != rows or features % groups:
        raise ValueError(
            f"layer {path!r}: moments of {groups} x {rows} inputs do not fit its kernel of "
            f"shape {leaf.kernel_shape}"
        )
