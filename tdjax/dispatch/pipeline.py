"""From a trained model to a small one in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, overload

import flax.linen as nn
import jax
from flax import nnx
from jaxtyping import Array

from tdjax.allocation.allocate import check_reach
from tdjax.allocation.limits import Budget, check_one, names_of, shares_of
from tdjax.allocation.problem import Rules
from tdjax.arguments.called import Method
from tdjax.dispatch.clocks import Called, clocked
from tdjax.dispatch.compressing import (
    Compressed,
    Refine,
    check_equal,
    check_options,
    factorised,
    obstacle_to_refining,
    of_pairs,
    refined,
    renewed,
    source_of,
    stored,
    weights_of_pairs,
)
from tdjax.dispatch.data import collect_moments
from tdjax.dispatch.models import on_models
from tdjax.dispatch.pairing import Pairs, pairs_asked
from tdjax.dispatch.planning import allocate
from tdjax.dispatch.sharing import Shared, groups_of
from tdjax.moments.collect import RowWeights
from tdjax.moments.losses import OUTPUTS, LossFn
from tdjax.plan.wishes import LossRise
from tdjax.processes import together
from tdjax.progress import Counted, Part, Progress, Steps, number_in
from tdjax.timings.timings import Timings

Variables = Mapping[str, Any]
# Those whose loss is known for all ranks at once.
FORMATS = ("svd", "tucker")


@overload
def compress(
    model: nn.Module,
    variables: Variables,
    batches: Iterable[Any],
    *,
    budget: Budget | None = ...,
    loss_fn: LossFn | str | None = ...,
    target: LossRise | None = ...,
    cost: str | None = ...,
    methods: Sequence[str] = ...,
    rules: Rules = ...,
    multiple_of: int = ...,
    dtypes: Sequence[str] | None = ...,
    batch: int | None = ...,
    timings: Timings | None = ...,
    shared: Shared | None = ...,
    pairs: Pairs | None = ...,
    row_weights: RowWeights | None = ...,
    memory: int = ...,
    refine: Refine = ...,
    key: Array | None = ...,
    progress: Progress = ...,
    method: Method = ...,
) -> Compressed: ...


@overload
def compress(
    model: nnx.Module,
    batches: Iterable[Any],
    *,
    budget: Budget | None = ...,
    loss_fn: LossFn | str | None = ...,
    target: LossRise | None = ...,
    cost: str | None = ...,
    methods: Sequence[str] = ...,
    rules: Rules = ...,
    multiple_of: int = ...,
    dtypes: Sequence[str] | None = ...,
    batch: int | None = ...,
    timings: Timings | None = ...,
    shared: Shared | None = ...,
    pairs: Pairs | None = ...,
    row_weights: RowWeights | None = ...,
    memory: int = ...,
    refine: Refine = ...,
    key: Array | None = ...,
    progress: Progress = ...,
    method: Method = ...,
) -> Compressed: ...


@overload
def compress(
    model: Callable[..., Any],
    params: Any,
    batches: Iterable[Any],
    *,
    budget: Budget | None = ...,
    loss_fn: LossFn | str | None = ...,
    target: LossRise | None = ...,
    cost: str | None = ...,
    methods: Sequence[str] = ...,
    rules: Rules = ...,
    multiple_of: int = ...,
    dtypes: Sequence[str] | None = ...,
    batch: int | None = ...,
    timings: Timings | None = ...,
    row_weights: RowWeights | None = ...,
    memory: int = ...,
    refine: Refine = ...,
    key: Array | None = ...,
    progress: Progress = ...,
) -> Compressed: ...


@on_models
def compress(
    model: Any,
    variables: Any,
    batches: Iterable[Any],
    *,
    budget: Budget | None = None,
    loss_fn: LossFn | str | None = None,
    target: LossRise | None = None,
    cost: str | None = None,
    methods: Sequence[str] = FORMATS,
    rules: Rules = (),
    multiple_of: int = 1,
    dtypes: Sequence[str] | None = None,
    batch: int | None = None,
    timings: Timings | None = None,
    shared: Shared | None = None,
    pairs: Pairs | None = None,
    row_weights: RowWeights | None = None,
    memory: int = 2**32,
    refine: Refine = True,
    key: Array | None = None,
    progress: Progress = True,
    method: Method = None,
) -> Compressed:
    """A smaller model under a budget, from batches of data, without labels.

    `compress(model, variables, batches, budget=0.5)` for Linen, `compress(model, batches,
    budget=0.5)` for NNX, `compress(apply_fn, params, batches, budget=0.5)` for a function, whose
    biases are not known and stay. What it does step by step, each a function of its own:

    1. `tdjax.collect_moments`, with the gradient of the loss;
    2. `tdjax.allocate` with strategy "loss": formats and ranks where the loss rises least;
    3. `tdjax.factorize_params` or `tdjax.factorize`, in the norm that weighs inputs and outputs of
       each layer as the loss does, and with biases corrected for what the mean inputs lose;
    4. `tdjax.reestimate_batch_stats`, where the model has batch normalisation;
    5. `tdjax.refine`, on the same batches, where they hold two hundred examples or more.

    Without a `loss_fn` the loss is "outputs", half the squared change of the model's outputs, which
    needs no labels: its second moments come from the gradient of <outputs, r>, r random signs.

        >>> import jax, tdjax
        >>> from flax import nnx
        >>> model = nnx.Linear(64, 64, rngs=nnx.Rngs(0))
        >>> x = jax.random.normal(jax.random.key(0), (1000, 64))
        >>> small = tdjax.compress(model, [x], budget=0.5, progress=False)
        >>> small.model(x).shape, round(small.plan.size / small.plan.size_before, 2)
        ((1000, 64), 0.48)

    Arguments:
        model, variables, params, method: as for `tdjax.make_plan`, in the mode in which the model
            is used: batches without `train=True`, `model.eval()`.
        batches: a list or the like, some hundred to some thousand examples in all: each the
            model's input as in `tdjax.make_plan`; with `loss_fn` or `row_weights` also a tuple
            (input, rest), whose rest these may use. Under `jax.distributed` each process has its
            own, and all get the same network.
        budget, target, cost, rules, multiple_of, dtypes: as for `tdjax.allocate`, a budget or a
            target; what is stored in fewer bits is rounded last of all, and trained as floats;
            here a budget of one number is a limit too, which small networks need not use up.
        batch, timings: as for `tdjax.allocate`, for a budget of time; where neither is given the
            batch is that of the first of `batches`.
        shared: as for `tdjax.allocate`: "inputs" lets query, key and value share one input factor
            where that loses less. Not for functions.
        pairs: as for `tdjax.allocate`: "found" lets fewer hidden units of an MLP pass, and less of
            each head of an attention, where that loses less. Not for functions.
        methods: as for `tdjax.allocate`; here "svd" and "tucker" where it is not said, as others
            take far longer.
        loss_fn, row_weights, memory: as for `tdjax.collect_moments`.
        refine: False to leave the last step out; or its options, as {"epochs": 20, "augment":
            function}, with which it is done however few examples there are.
        key: PRNG key for the draws of a loss by name, and for the random starts of CP.
        progress: True for lines on standard error, False for none, or a function that takes each
            line, as `logging.info`. The steps called by themselves say nothing of what is over
            within three seconds.

    Returns: `Compressed`, with `model`, `variables` (None for NNX), `plan` and `refined`. What was
    given is not changed.

    Raises as those functions do; what shapes tell of budget and rules is checked before any work.
    TypeError for batches that can be read but once.
    """
    check_one("compress", budget, target)
    check_options(refine)
    if budget is not None and not isinstance(budget, Mapping):
        # Small networks cannot meet a number within half a percent, and need not here.
        budget, cost = shares_of(budget, cost).of, None
    labelled = loss_fn is not None or row_weights is not None
    read = partial(source_of, model, variables, batches, labelled=labelled, method=method)
    source = together("compress", read)
    inventory = source.inventory()
    counted = names_of([budget], cost)
    groups = groups_of("compress", inventory, shared, counted, timings)
    paired = pairs_asked("compress", inventory, pairs, counted, timings)
    (budget,), cost, timings = clocked(
        "compress", Called(model, variables, source.sample, method, inventory), [budget], cost,
        batch=batch, timings=timings, strategy="energy", progress=progress,
        choices={"methods": methods, "moments": None, "rules": rules, "multiple_of": multiple_of},
    )  # fmt: skip
    check_reach(
        inventory, budget, cost, methods, rules, multiple_of, timings, dtypes, groups, paired
    )
    renews = source.room.keeps_batch_stats(*source.arrays)
    signs, starts = jax.random.split(jax.random.key(0) if key is None else key)
    steps, total = Steps("compress", progress), number_in(batches)
    with steps.step("moments", "batch", total) as tick:
        moments = source.call(
            collect_moments, Counted(replace(source, automatic=True), tick), memory=memory,
            loss_fn=of_pairs(OUTPUTS if loss_fn is None else loss_fn), key=signs,
            row_weights=None if row_weights is None else partial(weights_of_pairs, row_weights),
            progress=False,
        )  # fmt: skip
    with steps.step("formats and ranks", "layer") as tick:
        asked: dict[str, Any] = {} if groups is None else {"shared": groups}
        asked |= {} if paired is None else {"pairs": paired}
        plan = source.call(
            allocate, source.sample, budget=budget, target=target, cost=cost,
            strategy="loss", methods=methods, moments=moments, rules=rules,
            multiple_of=multiple_of, dtypes=dtypes, timings=timings, progress=Part(tick), **asked,
        )  # fmt: skip
    check_equal(plan)
    with steps.step(f"factors of {len(plan.factorised)} layers", "layer") as tick:
        # What is trained are floats; they are rounded at the end.
        small = factorised(source, plan.with_dtypes(None), moments, starts, Part(tick))
    if renews:
        with steps.step("batch statistics", "batch", total) as tick:
            small = renewed(small, source, row_weights, tick)
    if refine is not False:
        examples = together("compress", lambda: list(replace(source, automatic=True)))
        obstacle = obstacle_to_refining(small, source, examples, asked=refine is not True)
        if obstacle is not None:
            steps.tell(f"not refined: {obstacle}")
        else:
            options = {"key": starts, "progress": progress, **({} if refine is True else refine)}
            if row_weights is not None:
                options["row_weights"] = partial(weights_of_pairs, row_weights)
            small = refined(small, source, examples, options)
    return stored(small, source, plan)
