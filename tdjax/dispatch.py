"""One name for both module systems: functions on models, whether of `flax.linen` or `flax.nnx`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, overload

import flax.linen as nn
import jax
from flax import nnx
from jaxtyping import Array, Float

import tdjax.linen.batch_stats
import tdjax.linen.model
import tdjax.linen.removal
import tdjax.linen.sequential
import tdjax.linen.table
import tdjax.nnx.batch_stats
import tdjax.nnx.model
import tdjax.nnx.removal
import tdjax.nnx.sequential
import tdjax.nnx.table
from tdjax.allocation.allocate import allocate as allocate_budget
from tdjax.moments.collect import LayerMoments, collect
from tdjax.moments.sums import LossFn
from tdjax.params.options import Options
from tdjax.plan.layers import Layer
from tdjax.plan.plan import Plan
from tdjax.plan.rules import Rule
from tdjax.pruning.dead import SmallerModel

Model = TypeVar("Model", bound=nnx.Module)


@overload
def make_plan(
    model: nn.Module, variables: Mapping[str, Any], rules: Sequence[Rule], sample: Any
) -> Plan: ...


@overload
def make_plan(model: nnx.Module, rules: Sequence[Rule], sample: Any) -> Plan: ...


def make_plan(model: Any, *args: Any, **kwargs: Any) -> Plan:
    """Decide for every layer of a model which format it gets.

    `make_plan(model, variables, rules, sample)` for Linen, `make_plan(model, rules, sample)` for
    NNX.

    Arguments:
        model: any Linen or NNX module; nothing in it needs to know of this library.
        variables: of a Linen model, as `model.init` returns them; arrays or shapes. Method "auto"
            needs arrays.
        rules: the first whose path matches a layer decides; see `tdjax.Rule`.
        sample: one batch as the model takes it, arrays or shapes: the input, a tuple of
            positional or a dict of keyword arguments. The first axis is the batch.

    Raises ValueError for a rule that matches no layer or asks for ranks out of range, TypeError
    for something that is no module.
    """
    if _is_nnx(model):
        return tdjax.nnx.table.make_plan(model, *args, **kwargs)
    return tdjax.linen.table.make_plan(model, *args, **kwargs)


@overload
def layer_table(
    model: nn.Module, variables: Mapping[str, Any], sample: Any
) -> tuple[Layer, ...]: ...


@overload
def layer_table(model: nnx.Module, sample: Any) -> tuple[Layer, ...]: ...


def layer_table(model: Any, *args: Any, **kwargs: Any) -> tuple[Layer, ...]:
    """All modules of a model that hold a weight array, in the order in which they are called.

    `layer_table(model, variables, sample)` for Linen, `layer_table(model, sample)` for NNX. No
    arithmetic is done: the model is traced with shapes. Arguments and errors as `make_plan`.
    Modules that cannot be factorised are listed with the obstacle.
    """
    if _is_nnx(model):
        return tdjax.nnx.table.layer_table(model, *args, **kwargs)
    return tdjax.linen.table.layer_table(model, *args, **kwargs)


@overload
def factorize(model: nn.Module, plan: Plan) -> nn.Module: ...


@overload
def factorize(
    model: Model,
    plan: Plan,
    *,
    key: Array | None = None,
    init: str = Options.init,
    max_iters: int = Options.max_iters,
    tol: float | Float[Array, ""] = Options.tol,
    moments: Mapping[str, LayerMoments] | None = None,
    norm: str | None = None,
    correct_bias: bool = False,
) -> Model: ...


def factorize(model: Any, plan: Plan, **options: Any) -> Any:
    """The model with the layers of the plan factorised: same signature, fewer parameters.

    A Linen model has no parameters of its own: see `tdjax.factorize_params` for those; where the
    plan has sparse corrections, it also takes their collection "sparsity". Of an NNX
    model the result is a copy with the factors filled in; the model is not changed.

    Arguments:
        model: a Linen or NNX module.
        plan: from `tdjax.make_plan`.
        key, init, max_iters, tol, moments, norm, correct_bias: for NNX alone, see
            `tdjax.factorize_params`.

    Raises TypeError for something that is no module; for NNX also KeyError or ValueError for a
    model that does not fit the plan and ValueError for NaN or Inf in a kernel, naming the layer.
    """
    if _is_nnx(model):
        return tdjax.nnx.model.factorize(model, plan, **options)
    return tdjax.linen.model.factorize(model, plan, **options)


def collect_moments(
    model: Any,
    *variables_and_batches: Any,
    loss_fn: LossFn | None = None,
    paths: str | Sequence[str] = ".*",
    memory: int = 2**32,
) -> dict[str, LayerMoments]:
    """Second moments of what goes into each layer that can be factorised, and of what comes back.

    `collect_moments(model, variables, batches)` for Linen, `collect_moments(model, batches)` for
    NNX, in the mode that the model's arguments set: batches without `train=True`, `model.eval()`.
    Exact for every stride, padding, dilation and group; rows of zero padding count. Where batches
    are split over devices, each sums its part. The patches of a convolution are not held, and
    most of them not even made.

    Arguments:
        model: a Linen or NNX module.
        variables: its trained variables, of Linen.
        batches: each the model's input as in `tdjax.make_plan`, or a tuple whose first entry that
            is, and whose rest `loss_fn` may use.
        loss_fn: (outputs, batch) -> losses of the examples, (batch,), or their mean. With it the
            moments of its gradient at the layers' outputs are collected too.
        paths: the layers, by patterns for `re.fullmatch`.
        memory: bytes that sums may take; layers that do not fit are left to further passes over
            the batches, which must then be a list or the like.

    Returns: for each path a `tdjax.moments.collect.LayerMoments`.

    Warns (UserWarning) of layers with less than ten rows for each entry of a row.

    Raises ValueError for no batches, no layer that matches, a layer inside a while loop, or an
    iterator where several passes are needed.
    """
    *variables, batches = variables_and_batches
    if _is_nnx(model):
        trace_of = partial(tdjax.nnx.table.trace, model)
        leaves = jax.tree.leaves(nnx.state(model))
    else:
        trace_of = partial(tdjax.linen.table.trace, model, *variables)
        leaves = jax.tree.leaves(tdjax.linen.table.plain(*variables))
    return collect(trace_of, leaves, batches, loss_fn=loss_fn, paths=paths, memory=memory)


def allocate(
    model: Any,
    *variables_and_sample: Any,
    budget: float,
    cost: str = "params",
    strategy: str = "energy",
    methods: Sequence[str] = ("svd", "tucker", "cp", "tt"),
    moments: Mapping[str, LayerMoments] | None = None,
    splits: Sequence[int] | None = None,
    objective: str = "bound",
    seed: int = 0,
) -> Plan:
    """A plan that keeps a share of the whole network, formats and ranks chosen together.

    `allocate(model, variables, sample, budget=0.5)` for Linen, `allocate(model, sample,
    budget=0.5)` for NNX. Strategies, by what they make least:

    - "uniform": every layer keeps the same share, in the first of `methods` that makes it
      smaller; weights may be shapes alone.
    - "energy": the greatest relative weight error of any layer.
    - "alds": the greatest relative error of any layer in the operator norm, over low rank with
      the channels in groups (Liebenwein et al., NeurIPS 2021). Where the paper alternates between
      ranks and groups from random starts, this finds the optimum: of all k the cheapest within an
      error is known for every layer and error.
    - "loss": the sum of the rises of the loss that the moments predict, all formats compared;
      steps are taken where they save most for what they lose.

    The rest of the budget is filled up with what gains most. Layers that cannot shrink, or are
    better left alone, are kept dense, with the reason in the plan.

    Arguments:
        model, variables, sample: as for `tdjax.make_plan`.
        budget: share of the whole network kept, in (0, 1): of all its parameters, biases and
            normalisation included, or of its multiply-accumulates.
        cost: "params" or "macs".
        strategy: see above.
        methods: formats to choose from; "alds" knows "svd" alone. "cp" and "tt" are decomposed at
            some ranks to know what they lose, which takes far longer than "svd" and "tucker",
            whose loss is known for all ranks at once.
        moments: for "loss", from `tdjax.collect_moments` with a `loss_fn`.
        splits: for "alds", the numbers of groups to choose from; None for all divisors.
        objective: for "alds", "bound" for the paper's, sqrt(k) included, or "released" for that
            of its authors' code, without.
        seed: of the random starts of CP.

    Returns: a plan whose count is within half a percent of the network of the budget, and not
    above it.

    Raises ValueError for a budget that cannot be met, with what is within reach, for an unknown
    name, for moments that are missing, and for NaN or Inf in the weights.
    """
    table = tdjax.nnx.table if _is_nnx(model) else tdjax.linen.table
    return allocate_budget(
        table.inventory(model, *variables_and_sample), budget=budget, cost=cost, strategy=strategy,
        methods=methods, moments=moments, splits=splits, objective=objective, seed=seed,
    )  # fmt: skip


def factorize_sequentially(
    model: Any,
    *args: Any,
    moments: Mapping[str, LayerMoments] | None = None,
    correct_bias: bool = False,
    key: Array | None = None,
    init: str = Options.init,
    max_iters: int = Options.max_iters,
    tol: float | Float[Array, ""] = Options.tol,
) -> Any:
    """Factors of all layers of a plan, each making up for what the layers before it lost.

    `factorize_sequentially(model, variables, plan, batches)` for Linen gives the parameters of the
    factorised model, `factorize_sequentially(model, plan, batches)` for NNX that model. Layers are
    decomposed in the order in which they are called, each in the norm of the inputs that the
    compressed network so far gives it, towards the outputs that the original gave: the least
    change of E norm(W^T x - W~^T x^)^2 (Kalle et al., NeurIPS 2025). Layers of a stack, and layers
    inside a scan, take the inputs of the compressed network towards their own kernel.

    Arguments:
        model, variables, plan: as for `tdjax.factorize`; a Linen model's variables are arrays.
        batches: a list or the like, as for `tdjax.collect_moments`; read once for each layer.
        moments: from `tdjax.collect_moments` with a `loss_fn`, to weigh the outputs by their
            gradient too.
        correct_bias: see `tdjax.factorize_params`.
        key, init, max_iters, tol: see `tdjax.factorize_params`.

    Raises ValueError for no batches or an iterator, and as `tdjax.factorize_params`.
    """
    run = tdjax.nnx.sequential if _is_nnx(model) else tdjax.linen.sequential
    options = Options(
        key=key, init=init, max_iters=max_iters, tol=tol, moments=moments, correct_bias=correct_bias
    )
    return run.factorize_sequentially(model, *args, options)


def reestimate_batch_stats(model: Any, *args: Any) -> Any:
    """Means and variances of batch normalisation, estimated again on batches without labels.

    `reestimate_batch_stats(model, variables, batches)` for Linen gives the variables with other
    `batch_stats`, `reestimate_batch_stats(model, batches)` for NNX a new model. A factorised
    network hands its normalisation layers other statistics than the network that was trained;
    this puts them right without any training. Every batch is normalised by itself, as in
    training; dropout stays as the model's arguments set it. The statistics are those of all
    batches together.

    Arguments:
        model, variables: factorised or not.
        batches: as for `tdjax.collect_moments`; of the sizes that training had, or larger.

    Raises ValueError for no batches or a model without batch normalisation.
    """
    run = tdjax.nnx.batch_stats if _is_nnx(model) else tdjax.linen.batch_stats
    return run.reestimate_batch_stats(model, *args)


def remove_dead(model: Any, *variables_and_sample: Any) -> SmallerModel:
    """The same function with smaller arrays: neurons go that no layer takes any more.

    `remove_dead(model, variables, sample)` for Linen, `remove_dead(model, sample)` for NNX. A
    neuron is dead where the layers that it goes into have only zeros for it, and those that have
    others are dead themselves. With it go the column of its kernel, its bias, its entries of
    vectors such as those of batch normalisation, and its rows in the layers above. Of a layer
    all of whose neurons are dead one stays.

    Neurons are followed through the traced model: from Dense, Conv and ConvTranspose layers
    without feature groups, through elementwise functions, normalisation with stored statistics,
    pools, means and flattening with channels last, into such layers. Those that meet anything
    else, as the sum of a shortcut does, are left alone, and so is the last layer. Trace it in the
    mode in which it is used: batches without `train=True`, `model.eval()`.

    Arguments:
        model, variables, sample: as for `tdjax.make_plan`, with arrays in `variables`.

    Returns: a `tdjax.pruning.dead.SmallerModel`: model, variables, the neurons kept, and the layers
    left alone with the reason. What was given is not changed. A model that states the shapes it
    flattens to, in place of -1, cannot run narrower layers.

    Raises TypeError for something that is no module.
    """
    run = tdjax.nnx.removal if _is_nnx(model) else tdjax.linen.removal
    return run.remove_dead(model, *variables_and_sample)


def _is_nnx(model: Any) -> bool:
    """Whether a model is of NNX rather than Linen. Raises TypeError where it is of neither."""
    if not isinstance(model, (nn.Module, nnx.Module)):
        found = type(model).__name__
        raise TypeError(f"expected a flax.linen.Module or a flax.nnx.Module, got {found}")
    return isinstance(model, nnx.Module)
