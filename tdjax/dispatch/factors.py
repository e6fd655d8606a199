"""Smaller models: layers as chains of factors, neurons taken out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, overload

import flax.linen as nn
from flax import nnx
from jaxtyping import Array, Float

from tdjax.arguments.called import Method
from tdjax.dispatch.feeding import fed_to
from tdjax.dispatch.models import kind_of, on_models, room_of, with_arrays
from tdjax.functions import FactorisedFunction
from tdjax.moments.collect import LayerMoments, RowWeights
from tdjax.params.options import Options
from tdjax.plan.plan import Plan
from tdjax.progress import Progress, Steps
from tdjax.pruning.dead import SmallerModel

Variables = Mapping[str, Any]
Model = TypeVar("Model", bound=nnx.Module)


@overload
def factorize(  # type: ignore[overload-overlap]
    model: nn.Module, plan: Plan
) -> nn.Module: ...


@overload
def factorize(  # type: ignore[overload-overlap]
    model: Model,
    plan: Plan,
    *,
    key: Array | None = ...,
    init: str = ...,
    max_iters: int = ...,
    tol: float | Float[Array, ""] = ...,
    moments: Mapping[str, LayerMoments] | None = ...,
    norm: str | None = ...,
    correct_bias: bool = ...,
    progress: Progress = ...,
) -> Model: ...


@overload
def factorize(model: Callable[..., Any], plan: Plan) -> FactorisedFunction: ...


@on_models
def factorize(
    model: Any,
    plan: Plan,
    *,
    key: Array | None = None,
    init: str = Options.init,
    max_iters: int = Options.max_iters,
    tol: float | Float[Array, ""] = Options.tol,
    moments: Mapping[str, LayerMoments] | None = None,
    norm: str | None = None,
    correct_bias: bool = False,
    progress: Progress = True,
) -> Any:
    """The model with the layers of the plan factorised: same signature, fewer parameters.

    A Linen model has no parameters of its own: see `tdjax.factorize_params` for those; where the
    plan has sparse corrections, it also takes their collection "sparsity". Nor has a function: the
    result is called as small(factors, *inputs). Of an NNX model the result is a copy with the
    factors filled in; the model is not changed.

        >>> import jax, jax.numpy as jnp, tdjax
        >>> from flax import nnx
        >>> model, x = nnx.Linear(64, 64, rngs=nnx.Rngs(0)), jnp.ones((8, 64))
        >>> rules = [tdjax.Rule(path="", method="svd", rank=4)]
        >>> small = tdjax.factorize(model, tdjax.make_plan(model, rules, x))
        >>> small.input.kernel.shape, small(x).shape
        ((64, 4), (8, 64))

    Arguments:
        model: a Linen or NNX module, or a function of parameters and inputs.
        plan: from `tdjax.make_plan`.
        key, init, max_iters, tol, moments, norm, correct_bias, progress: for NNX alone, see
            `tdjax.factorize_params`.

    Raises TypeError for something that is no module, ValueError for a Linen model that is
    factorised already; such a model refuses, when it is first called, a plan that was made for
    another. For NNX KeyError or ValueError for a model that does not fit the plan and ValueError
    for NaN or Inf in a kernel, naming the layer.
    """
    if kind_of(model).held is not None:
        return room_of(model).factorize(model, plan)
    return room_of(model).factorize(
        model, plan, key=key, init=init, max_iters=max_iters, tol=tol, moments=moments, norm=norm,
        correct_bias=correct_bias, progress=progress,
    )  # fmt: skip


@overload
def factorize_sequentially(
    model: nn.Module,
    variables: Variables,
    plan: Plan,
    batches: Iterable[Any],
    *,
    moments: Mapping[str, LayerMoments] | None = ...,
    row_weights: RowWeights | None = ...,
    blocks: str | Sequence[str] | None = ...,
    correct_bias: bool = ...,
    key: Array | None = ...,
    init: str = ...,
    max_iters: int = ...,
    tol: float | Float[Array, ""] = ...,
    progress: Progress = ...,
    method: Method = ...,
) -> dict[str, Any]: ...


@overload
def factorize_sequentially(
    model: Model,
    plan: Plan,
    batches: Iterable[Any],
    *,
    moments: Mapping[str, LayerMoments] | None = ...,
    row_weights: RowWeights | None = ...,
    blocks: str | Sequence[str] | None = ...,
    correct_bias: bool = ...,
    key: Array | None = ...,
    init: str = ...,
    max_iters: int = ...,
    tol: float | Float[Array, ""] = ...,
    progress: Progress = ...,
    method: Method = ...,
) -> Model: ...


@overload
def factorize_sequentially(
    model: Callable[..., Any],
    params: Any,
    plan: Plan,
    batches: Iterable[Any],
    *,
    moments: Mapping[str, LayerMoments] | None = ...,
    row_weights: RowWeights | None = ...,
    blocks: str | Sequence[str] | None = ...,
    correct_bias: bool = ...,
    key: Array | None = ...,
    init: str = ...,
    max_iters: int = ...,
    tol: float | Float[Array, ""] = ...,
    progress: Progress = ...,
) -> Any: ...


@on_models
def factorize_sequentially(
    model: Any,
    variables: Any,
    plan: Plan,
    batches: Iterable[Any],
    *,
    moments: Mapping[str, LayerMoments] | None = None,
    row_weights: RowWeights | None = None,
    blocks: str | Sequence[str] | None = None,
    correct_bias: bool = False,
    key: Array | None = None,
    init: str = Options.init,
    max_iters: int = Options.max_iters,
    tol: float | Float[Array, ""] = Options.tol,
    progress: Progress = True,
    method: Method = None,
) -> Any:
    """Factors of all layers of a plan, each making up for what the layers before it lost.

    `factorize_sequentially(model, variables, plan, batches)` for Linen gives the parameters of the
    factorised model, `factorize_sequentially(model, plan, batches)` for NNX that model,
    `factorize_sequentially(apply_fn, params, plan, batches)` the parameters of a function. Layers
    are decomposed in the order in which they are called, each in the norm of the inputs that the
    compressed network so far gives it, towards the outputs that the original gave: the least change
    of E norm(W^T x - W~^T x^)^2 (Kalle et al., NeurIPS 2025). Layers of a stack, and layers inside
    a scan, take the inputs of the compressed network towards their own kernel.

        >>> import flax.linen as nn, jax, tdjax
        >>> model, x = nn.Dense(16), jax.random.normal(jax.random.key(0), (200, 16))
        >>> variables = model.init(jax.random.key(1), x)
        >>> rules = [tdjax.Rule(path="", method="svd", rank=2)]
        >>> plan = tdjax.make_plan(model, variables, rules, x)
        >>> params = tdjax.factorize_sequentially(model, variables, plan, [x])
        >>> sorted(params)
        ['bias', 'input', 'output']

    Arguments:
        model, variables, plan: as for `tdjax.factorize`; a Linen model's variables are arrays.
        batches: a list or the like of the model's inputs as in `tdjax.make_plan`, with
            `row_weights` also tuples (input, rest); read once for each layer, or each block. Under
            `jax.distributed` the means are over those of all processes, of which each needs one.
        moments: from `tdjax.collect_moments` with a `loss_fn`, to weigh the outputs by their
            gradient too.
        row_weights: see `tdjax.collect_moments`; rows that go in count by them.
        blocks: layers that are decomposed together, each in the norm of the inputs that the
            compressed blocks before it give: None for each layer alone, "auto" for the largest
            modules that hold at most a quarter of the layers, or patterns for `re.fullmatch` of
            paths of modules, as r"layers_\\d+"; layers in none of them stand alone. The cost is two
            forward passes over the batches for each block, as far as it lies; the sums of all its
            layers are held together, 8 D^2 bytes for one with inputs of D entries.
        correct_bias: see `tdjax.factorize_params`.
        key, init, max_iters, tol: see `tdjax.factorize_params`.
        progress: see `tdjax.compress`.
        method: how the model is called, as for `tdjax.make_plan`.

    Raises ValueError for no batches or an iterator, NaN or Inf in a batch, weights that leave a
    layer no row, and as `tdjax.factorize_params`.
    """
    options = Options(
        key=key, init=init, max_iters=max_iters, tol=tol, moments=moments,
        correct_bias=correct_bias, steps=Steps("factorize_sequentially", progress),
    )  # fmt: skip
    own = fed_to("factorize_sequentially", model, variables, batches, row_weights, method)
    return room_of(model).factorize_sequentially(
        *with_arrays(model, variables), plan, own, options, method=method, blocks=blocks
    )


@overload
def remove_dead(
    model: nn.Module, variables: Variables, sample: Any, *, method: Method = ...
) -> SmallerModel: ...


@overload
def remove_dead(model: nnx.Module, sample: Any, *, method: Method = ...) -> SmallerModel: ...


@on_models
def remove_dead(model: Any, variables: Any, sample: Any, *, method: Method = None) -> SmallerModel:
    """The same function with smaller arrays: neurons go that no layer takes any more.

    `remove_dead(model, variables, sample)` for Linen, `remove_dead(model, sample)` for NNX. A
    neuron is dead where the layers that it goes into have only zeros for it, and those that have
    others are dead themselves. With it go the column of its kernel, its bias, its entries of
    vectors such as those of batch normalisation, and its rows in the layers above. Of a layer
    all of whose neurons are dead one stays.

    Neurons are followed through the traced model: from Dense, Conv and ConvTranspose layers
    without feature groups, through elementwise functions, normalisation with stored statistics,
    pools, means and flattening with channels last, into such layers. Those that meet anything
    else, as the sum of a shortcut does, are left alone, and so is the last layer; so are those
    that go into a layer which takes other inputs too, those with a parameter that is read
    elsewhere, and those whose number the model states or computes with, as where it flattens to
    a size that is written out. Trace it in the mode in which it is used: batches without
    `train=True`, `model.eval()`.

        >>> import flax.linen as nn, jax, jax.numpy as jnp, tdjax
        >>> model, x = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]), jnp.ones((4, 3))
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> params["layers_2"]["kernel"] = params["layers_2"]["kernel"].at[2:].set(0)
        >>> small = tdjax.remove_dead(model, {"params": params}, x)
        >>> small.variables["params"]["layers_0"]["kernel"].shape
        (3, 2)

    Arguments:
        model, variables, sample, method: as for `tdjax.make_plan`, with arrays in `variables`.

    Returns: a `tdjax.pruning.dead.SmallerModel`: model, variables, the neurons kept, and the layers
    left alone with the reason. What was given is not changed.

    Raises TypeError for something that is no module.
    """
    return room_of(model).remove_dead(*with_arrays(model, variables), sample, method=method)
