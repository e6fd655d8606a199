"""Plans of a model: by rules, or under a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import flax.linen as nn
import jax
from flax import nnx

from tdjax.allocation.allocate import allocate as allocate_budget
from tdjax.allocation.choices import PREFERRED
from tdjax.allocation.corrected import allocate_measured
from tdjax.allocation.limits import Budget, check_one, names_of
from tdjax.allocation.measured import MeasuredRises
from tdjax.allocation.posing import strategy_of
from tdjax.allocation.problem import Rules
from tdjax.arguments.called import Method
from tdjax.arguments.checks import check_moments_fit
from tdjax.decompose.meshes import on_any_mesh
from tdjax.dispatch.clocks import Called, clocked
from tdjax.dispatch.models import on_models, room_of, with_arrays
from tdjax.dispatch.pairing import Pairs, pairs_asked
from tdjax.dispatch.sharing import Shared, groups_of
from tdjax.moments.collect import LayerMoments
from tdjax.plan.layers import Layer
from tdjax.plan.plan import Plan
from tdjax.plan.rules import Rule
from tdjax.plan.wishes import LossRise
from tdjax.progress import Progress
from tdjax.timings.timings import Timings

Variables = Mapping[str, Any]


@overload
def make_plan(
    model: nn.Module,
    variables: Variables,
    rules: Sequence[Rule],
    sample: Any,
    *,
    method: Method = ...,
) -> Plan: ...


@overload
def make_plan(
    model: nnx.Module, rules: Sequence[Rule], sample: Any, *, method: Method = ...
) -> Plan: ...


@overload
def make_plan(
    model: Callable[..., Any], params: Any, rules: Sequence[Rule], sample: Any
) -> Plan: ...


@on_models
@on_any_mesh
def make_plan(
    model: Any, variables: Any, rules: Sequence[Rule], sample: Any, *, method: Method = None
) -> Plan:
    """Decide for every layer of a model which format it gets.

    `make_plan(model, variables, rules, sample)` for Linen, `make_plan(model, rules, sample)` for
    NNX, `make_plan(apply_fn, params, rules, sample)` for any pure function of parameters and inputs
    that JAX can trace: its layers are the arrays of `params` that go into products as they are,
    under the '/'-joined paths of the pytree. So are those of a module of any class of your own with
    several kernels, or with modules beside them: `block/wi`.

        >>> import flax.linen as nn, jax, jax.numpy as jnp, tdjax
        >>> model, x = nn.Dense(64), jnp.ones((8, 32))
        >>> variables = model.init(jax.random.key(0), x)
        >>> rules = [tdjax.Rule(path=".*", method="svd", compression=0.5)]
        >>> plan = tdjax.make_plan(model, variables, rules, x)
        >>> plan.factorised[0].ranks
        (11,)

    Arguments:
        model: any Linen or NNX module, or a function apply_fn(params, *inputs); nothing in it
            needs to know of this library.
        variables: of a Linen model, as `model.init` returns them; arrays or shapes. Method "auto"
            needs arrays.
        params: of a function, any pytree of arrays or shapes; what else is in it is static.
        rules: the first whose path matches a layer decides; see `tdjax.Rule`.
        sample: one batch as the model takes it, arrays or shapes: the input, a tuple of
            positional or a dict of keyword arguments. The first axis is the batch.
        method: how the model is called, where not by its own call: the name of one of its
            methods, as "encode", or a function of the model and the inputs, as
            `lambda model, x: model.decode(model.encode(x))`. The model that is factorised answers
            to all of its methods. Not for functions.

    Raises ValueError for a rule that matches no layer or asks for ranks out of range, and for a
    sample that the model cannot be called with; TypeError for something that is no module.
    """
    return room_of(model).make_plan(*with_arrays(model, variables), rules, sample, method=method)


@overload
def layer_table(
    model: nn.Module, variables: Variables, sample: Any, *, method: Method = ...
) -> tuple[Layer, ...]: ...


@overload
def layer_table(model: nnx.Module, sample: Any, *, method: Method = ...) -> tuple[Layer, ...]: ...


@overload
def layer_table(model: Callable[..., Any], params: Any, sample: Any) -> tuple[Layer, ...]: ...


@on_models
def layer_table(
    model: Any, variables: Any, sample: Any, *, method: Method = None
) -> tuple[Layer, ...]:
    """All modules of a model that hold a weight array, in the order in which they are called.

    `layer_table(model, variables, sample)` for Linen, `layer_table(model, sample)` for NNX,
    `layer_table(apply_fn, params, sample)` for a function, of which all arrays of two axes or more
    are listed. No arithmetic is done: the model is traced with shapes. Arguments and errors as
    `make_plan`. Modules that cannot be factorised are listed with the obstacle.

        >>> import jax, jax.numpy as jnp, tdjax
        >>> from flax import nnx
        >>> model = nnx.Sequential(nnx.Linear(32, 16, rngs=nnx.Rngs(0)), nnx.relu)
        >>> [(layer.path, layer.macs) for layer in tdjax.layer_table(model, jnp.ones((8, 32)))]
        [('layers/0', 512)]
    """
    return room_of(model).layer_table(*with_arrays(model, variables), sample, method=method)


@overload
def allocate(
    model: nn.Module,
    variables: Variables,
    sample: Any,
    *,
    budget: Budget | None = ...,
    cost: str | None = ...,
    strategy: str | None = ...,
    methods: Sequence[str] = ...,
    moments: Mapping[str, LayerMoments] | None = ...,
    splits: Sequence[int] | None = ...,
    objective: str = ...,
    seed: int = ...,
    rules: Rules = ...,
    multiple_of: int = ...,
    dtypes: Sequence[str] | None = ...,
    target: LossRise | None = ...,
    measured: MeasuredRises | None = ...,
    batch: int | None = ...,
    timings: Timings | None = ...,
    shared: Shared | None = ...,
    pairs: Pairs | None = ...,
    progress: Progress = ...,
    method: Method = ...,
) -> Plan: ...


@overload
def allocate(
    model: nnx.Module,
    sample: Any,
    *,
    budget: Budget | None = ...,
    cost: str | None = ...,
    strategy: str | None = ...,
    methods: Sequence[str] = ...,
    moments: Mapping[str, LayerMoments] | None = ...,
    splits: Sequence[int] | None = ...,
    objective: str = ...,
    seed: int = ...,
    rules: Rules = ...,
    multiple_of: int = ...,
    dtypes: Sequence[str] | None = ...,
    target: LossRise | None = ...,
    measured: MeasuredRises | None = ...,
    batch: int | None = ...,
    timings: Timings | None = ...,
    shared: Shared | None = ...,
    pairs: Pairs | None = ...,
    progress: Progress = ...,
    method: Method = ...,
) -> Plan: ...


@overload
def allocate(
    model: Callable[..., Any],
    params: Any,
    sample: Any,
    *,
    budget: Budget | None = ...,
    cost: str | None = ...,
    strategy: str | None = ...,
    methods: Sequence[str] = ...,
    moments: Mapping[str, LayerMoments] | None = ...,
    splits: Sequence[int] | None = ...,
    objective: str = ...,
    seed: int = ...,
    rules: Rules = ...,
    multiple_of: int = ...,
    dtypes: Sequence[str] | None = ...,
    target: LossRise | None = ...,
    measured: MeasuredRises | None = ...,
    batch: int | None = ...,
    timings: Timings | None = ...,
    progress: Progress = ...,
) -> Plan: ...


@on_models
@on_any_mesh
def allocate(
    model: Any,
    variables: Any,
    sample: Any,
    *,
    budget: Budget | None = None,
    cost: str | None = None,
    strategy: str | None = None,
    methods: Sequence[str] = PREFERRED,
    moments: Mapping[str, LayerMoments] | None = None,
    splits: Sequence[int] | None = None,
    objective: str = "bound",
    seed: int = 0,
    rules: Rules = (),
    multiple_of: int = 1,
    dtypes: Sequence[str] | None = None,
    target: LossRise | None = None,
    measured: MeasuredRises | None = None,
    batch: int | None = None,
    timings: Timings | None = None,
    shared: Shared | None = None,
    pairs: Pairs | None = None,
    progress: Progress = True,
    method: Method = None,
) -> Plan:
    """A plan that keeps a share of the whole network, formats and ranks chosen together.

    `allocate(model, variables, sample, budget=0.5)` for Linen, `allocate(model, sample,
    budget=0.5)` for NNX, `allocate(apply_fn, params, sample, budget=0.5)` for a function.
    Strategies, by what they make least:

    - "uniform": every layer keeps the same share, in the first of `methods` that makes it
      smaller; weights may be shapes alone.
    - "energy": the greatest relative weight error of any layer.
    - "alds": the greatest relative error of any layer in the operator norm, over low rank with
      the channels in groups (Liebenwein et al., NeurIPS 2021). Where the paper alternates between
      ranks and groups from random starts, this finds the optimum: of all k the cheapest within an
      error is known for every layer and error.
    - "alds+": the same over all `fold` of `tdjax.Rule` that a convolution has, each error that of
      the kernel as it is folded.
    - "loss": the sum of the rises of the loss that the moments predict, all formats compared;
      steps are taken where they save most for what they lose.

    The rest of the budget is filled up with what gains most. Where steps between ranks are too
    large for that, as in small networks, the best of all combinations of the right size is taken.
    Layers that cannot shrink, or are better left alone, are kept dense, with the reason in the
    plan.

        >>> import jax, jax.numpy as jnp, tdjax
        >>> from flax import nnx
        >>> model, x = nnx.Linear(400, 400, rngs=nnx.Rngs(0)), jnp.ones((8, 400))
        >>> plan = tdjax.allocate(model, x, budget=0.5, methods=("svd",))
        >>> plan[""].ranks, round(plan.size / plan.size_before, 2)
        ((99,), 0.5)
        >>> plan = tdjax.allocate(model, x, budget={"bytes": 0.1}, methods=("svd",))
        >>> plan[""].dtype, plan[""].ranks, round(plan.bytes / plan.bytes_before, 2)
        ('int4', (150,), 0.1)
        >>> limit = {"params": 0.5}
        >>> tdjax.allocate(model, x, budget=limit, methods=("svd",), multiple_of=8)[""].ranks
        (96,)

    Half the time, as timings predict it; `tdjax.time_layers(model, x)` takes them, here they are
    made up:

        >>> from tdjax.timings.device import this_device
        >>> from tdjax.timings.timings import FormTimings, LayerTimings
        >>> svd = FormTimings(tdjax.Form("svd"), ((48,), (96,)), (6e-5, 8.95e-5), ((), ()))
        >>> layers = {"": LayerTimings(2e-4, (svd,), (400, 400))}
        >>> timings = tdjax.Timings(this_device(), {}, 8, network=2.2e-4, layers=layers)
        >>> plan = tdjax.allocate(model, x, budget=0.5, cost="time", timings=timings)
        >>> plan[""].ranks, f"{1e3 * plan.seconds_before:.2f} -> {1e3 * plan.seconds:.2f} ms"
        ((96,), '0.22 -> 0.11 ms')

    Arguments:
        model, variables, params, sample, method: as for `tdjax.make_plan`.
        budget: share of the whole network kept, in (0, 1): of all its parameters, biases and
            normalisation included, of its multiply-accumulates, with those that no layer does, or
            of its time, with what passes in no layer. Or one or two limits by name, {"params":
            0.5, "time": 0.6}: the plan is within both, and loses the least that was found within
            them; it need not use up either.
        cost: what the budget is of: "params", which is the default, "macs", "bytes" of the weights
            as they are stored (of a network in float32), "time" as `timings` say it, or "latency at
            batch 1", which is the time of a batch of one.
        strategy: see above; None for "energy", or for "loss" with a `target` or `measured`.
        methods: formats to choose from. "alds" and "alds+" know "svd" alone; of all four together a
            strategy takes those that it knows. "cp" and "tt" are decomposed at some ranks to know
            what they lose, which takes longer than "svd" and "tucker", whose loss is known for all
            ranks at once, and by "loss" far longer, as programs are compiled for it. "cp" is tried
            with the axes of a window apart and as one mode.
        moments: for "loss", from `tdjax.collect_moments` with a `loss_fn`.
        splits: for "alds" and "alds+", the numbers of groups to choose from; None for all divisors.
        objective: for these, "bound" for the paper's, sqrt(k) included, or "released" for that
            of its authors' code, without.
        seed: of the random starts of CP.
        rules: wishes for single layers, of which the first whose path matches decides:
            `tdjax.BudgetRule` keeps a layer dense or bounds its formats, ranks and share;
            `tdjax.Rule` gives it its format and ranks as `tdjax.make_plan` does. The budget is
            that of the whole network all the same.
        multiple_of: what divides all ranks; see `tdjax.BudgetRule`. On a CPU 16 is worth a try
            where time counts: its vectors hold so many floats.
        dtypes: where bytes are counted, the numbers in which layers may be stored, of "float32",
            "bfloat16", "int8" and "int4"; see `Plan.with_dtypes`. For "energy" and "loss", which
            add to what ranks lose what rounding does, in the same norm: ranks and numbers are
            chosen together, and layers that stay dense may be stored in fewer bits. None for all
            of them, but for "float32" alone with other strategies, timings or measured rises, and
            where no bytes are counted.
        target: in place of a budget `tdjax.LossRise`: the smallest plan, by `cost`, whose predicted
            rise of the loss is no greater; for "loss".
        measured: for "loss", from `tdjax.measure_rises` with the same moments: what they correct
            the rises of groups of layers to adds up to the least that is found, beginning with the
            plan that predictions alone give; a target holds for the rise that they expect of all
            layers together.
        batch: examples in a call whose time counts; None for that of the timings, or of `sample`.
        timings: of this network on this device, from `tdjax.time_layers`; None to take them now
            where time is asked for, which is minutes of work. With timings, whatever the budget is
            of, the plan tells its predicted seconds and names for each layer the ways of computing
            it that were fastest; formats that were not timed are left out. A format is no faster
            than the dense layer unless it spares a twentieth of its time, which is about as near
            as timings are; a layer that nothing makes faster stays dense, and says so.
        shared: for "loss", groups of paths of layers that may share one input factor, see
            `Plan.with_shared`, or "inputs" for those that `tdjax.shared_inputs` finds. All of a
            group share, or some (of more than three all but one), where the predicted loss is less
            for it, or the plan smaller with a `target`.
            Layers that a rule is for have factors of their own. Where bytes are counted, all of
            a group are stored in the same numbers. Not for functions, nor with timings or measured
            rises.
        pairs: for "loss", pairs of layers between which fewer numbers may pass, see
            `Plan.with_pairs`, or "found" for those that `tdjax.paired_layers` finds. A layer is in
            one pair, shares an input factor, or is by itself: whatever loses least, or is smallest
            with a `target`. Pairs with a layer that a rule is for stay apart. Where bytes are
            counted, all of a pair are stored in the same numbers. Not for functions, nor with
            timings or measured rises.
        progress: see `tdjax.compress`; of timings that are taken now, and of what the formats of
            each layer lose where it takes more than a few seconds to find out.

    Returns: a plan that is above no budget, and below one of one number by half a percent of the
    network at most; multiply-accumulates of a model whose layers run under conditions are as near
    below it as a search over the sum of all layers gets.

    Raises ValueError for a budget that cannot be met, with what is within reach, for a rule that
    matches no layer or asks for what its layers cannot have, for an unknown name, for moments that
    are missing or another network's, for timings of another network, device or batch, and for NaN
    or Inf in the weights. All but the last is checked before any work.
    """
    inventory = room_of(model).inventory(*with_arrays(model, variables), sample, method=method)
    if moments is not None:
        check_moments_fit(inventory.layers, moments)
    if measured is not None and strategy not in ("loss", None):
        raise ValueError(
            "allocate: measured rises correct those of strategy 'loss', not "
            f"{strategy!r}: leave out one of them"
        )
    check_one("allocate", budget, target)
    strategy = "loss" if measured is not None else strategy_of(strategy, target)
    choices: dict[str, Any] = {"methods": methods, "moments": moments, "rules": rules}
    choices["multiple_of"] = multiple_of
    if measured is None:
        choices |= {"splits": splits, "objective": objective, "dtypes": dtypes}
    elif shared is not None or pairs is not None:
        raise ValueError(
            "allocate: measured rises are those of layers with factors of their own: leave out "
            f"{'pairs' if shared is None else 'shared'} or measured"
        )
    elif dtypes is not None:
        raise ValueError(
            "allocate: measured rises are those of layers in float32: leave out dtypes or measured"
        )
    counted = names_of([budget], cost)
    groups = groups_of("allocate", inventory, shared, counted, timings)
    pairs = pairs_asked("allocate", inventory, pairs, counted, timings)
    (budget,), cost, timings = clocked(
        "allocate", Called(model, variables, sample, method, inventory), [budget], cost,
        batch=batch, timings=timings, strategy=strategy, choices=choices, progress=progress,
    )  # fmt: skip
    choices |= {"budget": budget, "target": target, "cost": cost, "timings": timings}
    choices["progress"] = progress
    if measured is not None:
        return allocate_measured(inventory, measured, key=jax.random.key(seed), **choices)
    choices |= {"shared": groups, "pairs": pairs}
    return allocate_budget(inventory, strategy=strategy, key=jax.random.key(seed), **choices)
