"""From a trained model to a small one in one call."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, overload

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from tdjax.allocation.allocate import check_reach
from tdjax.allocation.limits import Budget, check_one, shares_of
from tdjax.allocation.problem import Rules
from tdjax.arguments.batches import read_batches
from tdjax.arguments.called import Method, number_of
from tdjax.arguments.checks import check_arguments
from tdjax.decompose.meshes import without_explicit_axes
from tdjax.dispatch import refining
from tdjax.dispatch.clocks import Called, clocked
from tdjax.dispatch.data import collect_moments, reestimate_batch_stats
from tdjax.dispatch.factors import factorize
from tdjax.dispatch.models import caller_of, kind_of, on_models, room_of, with_arrays
from tdjax.dispatch.planning import allocate
from tdjax.dispatch.storing import quantize
from tdjax.hints import did_you_mean
from tdjax.moments.collect import LayerMoments, RowWeights
from tdjax.moments.losses import OUTPUTS, LossFn
from tdjax.params.factorize import factorize_params
from tdjax.plan.layers import Inventory
from tdjax.plan.plan import Plan
from tdjax.plan.wishes import LossRise
from tdjax.processes import are_apart, gathered, together
from tdjax.progress import Counted, Progress, Steps, number_in
from tdjax.refinement.result import Refined
from tdjax.timings.timings import Timings
from tdjax.trace.call import WHOLE, Reading, peeked

Variables = Mapping[str, Any]
# Whether to refine, or by which options of `tdjax.refine`.
Refine = bool | Mapping[str, Any]
# Of fewer examples there are too few to hold some out: it is not refined unless options ask for it.
LEAST = 200
# What the options of refinement need not say again.
PASSED_ON = ("row_weights", "method")
# Those whose loss is known for all ranks at once.
FORMATS = ("svd", "tucker")


@dataclass(frozen=True, eq=False)
class Compressed:
    """A compressed model.

    Arguments:
        model: factorised; called as the original.
        variables: of a Linen model, or the parameters of a function; None for NNX.
        plan: what became of each layer.
        refined: how refinement went, without its factors; None where it was left out.
    """

    model: Any
    variables: Any
    plan: Plan
    refined: Refined | None = None


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
        methods: as for `tdjax.allocate`; here "svd" and "tucker" where it is not said, as others
            take far longer.
        loss_fn, row_weights, memory: as for `tdjax.collect_moments`.
        refine: False to leave the last step out; or its options, as {"epochs": 20, "augment":
            function}, with which it is done however few examples there are.
        key: PRNG key for the draws of a loss by name, and for the random starts of CP.
        progress: True for lines on standard error, False for none, or a function that takes each
            line, as `logging.info`.

    Returns: `Compressed`, with `model`, `variables` (None for NNX), `plan` and `refined`. What was
    given is not changed.

    Raises as those functions do; what shapes tell of budget and rules is checked before any work.
    TypeError for batches that can be read but once.
    """
    check_one("compress", budget, target)
    _check_options(refine)
    if budget is not None and not isinstance(budget, Mapping):
        # Small networks cannot meet a number within half a percent, and need not here.
        budget, cost = shares_of(budget, cost).of, None
    labelled = loss_fn is not None or row_weights is not None
    read = partial(_source, model, variables, batches, labelled=labelled, method=method)
    source = together("compress", read)
    inventory = source.inventory()
    (budget,), cost, timings = clocked(
        "compress", Called(model, variables, source.sample, method, inventory), [budget], cost,
        batch=batch, timings=timings, strategy="energy", progress=progress,
        choices={"methods": methods, "moments": None, "rules": rules, "multiple_of": multiple_of},
    )  # fmt: skip
    check_reach(inventory, budget, cost, methods, rules, multiple_of, timings, dtypes)
    renews = source.room.keeps_batch_stats(*source.arrays)
    signs, starts = jax.random.split(jax.random.key(0) if key is None else key)
    steps, total = Steps("compress", progress), number_in(batches)
    with steps.step("moments", "batch", total) as tick:
        moments = source.call(
            collect_moments, Counted(replace(source, automatic=True), tick), memory=memory,
            loss_fn=_of_pairs(OUTPUTS if loss_fn is None else loss_fn), key=signs,
            row_weights=None if row_weights is None else partial(_weights, row_weights),
        )  # fmt: skip
    with steps.step("formats and ranks"):
        plan = source.call(
            allocate, source.sample, budget=budget, target=target, cost=cost,
            strategy="loss", methods=methods, moments=moments, rules=rules,
            multiple_of=multiple_of, dtypes=dtypes, timings=timings,
        )  # fmt: skip
    _check_equal(plan)
    with steps.step(f"factors of {len(plan.factorised)} layers"):
        # What is trained are floats; they are rounded at the end.
        small = _factorised(source, plan.with_dtypes(None), moments, starts)
    if renews:
        with steps.step("batch statistics", "batch", total) as tick:
            small = _renewed(small, source, row_weights, tick)
    if refine is not False:
        pairs = together("compress", lambda: list(replace(source, automatic=True)))
        obstacle = _obstacle(small, source, pairs, asked=refine is not True)
        if obstacle is not None:
            steps.tell(f"not refined: {obstacle}")
        else:
            options = {"key": starts, "progress": progress, **({} if refine is True else refine)}
            if row_weights is not None:
                options["row_weights"] = partial(_weights, row_weights)
            small = _refined(small, source, pairs, options)
    return _stored(small, source, plan)


@dataclass(frozen=True, eq=False)
class _Source:
    """A model and its data; what is gone over are pairs (arguments of the model, batch).

    Arguments:
        reading: what of a batch the model gets.
        sample: the model's input from one of them.
        automatic: whether arrays on meshes of explicit axes are taken off these.
    """

    model: Any
    variables: Any
    batches: Iterable[Any]
    reading: Reading
    sample: Any
    method: Method
    automatic: bool = False

    @property
    def room(self) -> Any:
        """The adapter of the model."""
        return room_of(self.model)

    @property
    def arrays(self) -> tuple[Any, ...]:
        """The arguments in front of functions on models."""
        return with_arrays(self.model, self.variables)

    def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """What a function on models returns."""
        if "method" not in kind_of(self.model).without:
            options["method"] = self.method
        return function(*self.arrays, *args, **options)

    def inventory(self) -> Inventory:
        """The layers of the model."""
        plain = replace(self, variables=without_explicit_axes(self.variables))
        found: Inventory = plain.call(self.room.inventory, without_explicit_axes(self.sample))
        return found

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """Arguments in a tuple or dict of their own are what makes a batch plain."""
        for batch in map(without_explicit_axes, self.batches) if self.automatic else self.batches:
            inputs = self.reading.inputs(batch)
            yield (inputs if isinstance(inputs, (tuple, Mapping)) else (inputs,)), batch


def _source(
    model: Any, variables: Any, batches: Iterable[Any], *, labelled: bool, method: Method
) -> _Source:
    """A model and its data, of which the first batch decides how all are read."""
    if iter(batches) is batches:
        raise TypeError("compress: batches are read more than once: pass a list of them")
    first, _ = peeked(batches)
    if first is None:
        raise ValueError("compress: no batches")
    reading = WHOLE
    if labelled:
        arrays = with_arrays(model, without_explicit_axes(variables))
        trace_of = partial(room_of(model).trace, *arrays, method=method)
        plain = [without_explicit_axes(first)]
        reading, _ = read_batches("compress", caller_of(model, variables, method), trace_of, plain)
    return _Source(model, variables, batches, reading, reading.inputs(first), method)


def _factorised(
    source: _Source, plan: Plan, moments: Mapping[str, LayerMoments], key: Array
) -> Compressed:
    options: dict[str, Any] = {"key": key, "moments": moments, "correct_bias": True}
    if source.variables is None:
        return Compressed(factorize(source.model, plan, **options), None, plan)
    if kind_of(source.model).held == "params":
        params = factorize_params(source.variables, plan, **options)
        return Compressed(factorize(source.model, plan), params, plan)
    variables = dict(source.variables)
    if any(entry.nonzeros for entry in plan.layers):
        # The indices of sparse corrections are a collection of their own.
        variables = factorize_params(variables, plan, **options)
    else:
        variables["params"] = factorize_params(variables["params"], plan, **options)
    return Compressed(factorize(source.model, plan), variables, plan)


def _stored(small: Compressed, source: _Source, plan: Plan) -> Compressed:
    """A compressed model with its arrays in the numbers that a plan stores them in."""
    if all(entry.dtype is None for entry in plan.layers):
        return small
    if small.variables is None:
        return replace(small, model=quantize(small.model, plan), plan=plan)
    model = factorize(source.model, plan)
    return replace(small, model=model, variables=quantize(small.variables, plan), plan=plan)


def _renewed(
    small: Compressed,
    source: _Source,
    row_weights: RowWeights | None,
    tick: Callable[[int], None],
) -> Compressed:
    """A compressed model with its batch statistics estimated again."""
    pairs: Iterable[Any] = Counted(source, tick)
    options: dict[str, Any] = {}
    changed = replace(source, model=small.model, variables=small.variables)
    if row_weights is None:
        pairs = (inputs for inputs, _ in pairs)
    else:
        options["row_weights"] = partial(_weights, row_weights)
    again = changed.call(reestimate_batch_stats, pairs, **options)
    if small.variables is None:
        return replace(small, model=again)
    return replace(small, variables=again)


def _check_equal(plan: Plan) -> None:
    """Refuse, in all processes, that one of them is to make another network than the others."""
    digests = gathered(hashlib.sha256(plan.to_json().encode()).hexdigest())
    other = [number for number, digest in enumerate(digests) if digest != digests[0]]
    if other:
        raise ValueError(
            f"compress: process {other[0]} of {len(digests)} has other formats and ranks than "
            "process 0: give all the same model and arguments"
        )


def _check_options(refine: Refine) -> None:
    """Refuse what `tdjax.refine` does not take, or has from `compress`."""
    if isinstance(refine, Mapping):
        known = inspect.signature(refining.refine).parameters
        options = [n for n, p in known.items() if p.kind is p.KEYWORD_ONLY and n not in PASSED_ON]
        for name in refine:
            if name not in options:
                raise TypeError(
                    f"compress: refine holds {name!r}: its options are {', '.join(options)}"
                    f"{did_you_mean(str(name), options)}"
                )
        check_arguments("refine", "refine(model, factors, plan, batches)", refine)


def _obstacle(
    small: Compressed, source: _Source, pairs: Sequence[Any], *, asked: bool
) -> str | None:
    """Why a compressed model is not refined; None where it is.

    Arguments:
        asked: whether options ask for it, which then say themselves what does not go.
    """
    if not small.plan.factorised:
        return "all layers are kept dense"
    if asked:
        return None
    number = sum(number_of(pair) for pair in pairs)
    if are_apart("compress", pairs[0]):
        number = sum(gathered(number))
    if number < LEAST:
        return f"{number} examples are too few, {LEAST} would do"
    plain = replace(source, variables=without_explicit_axes(source.variables))
    network, arrays = plain.call(source.room.network_of)
    sample = without_explicit_axes(source.sample)
    outputs = jax.eval_shape(lambda: network.outputs(arrays, sample))
    numbers = any(
        jnp.issubdtype(y.dtype, jnp.floating) and y.shape for y in jax.tree.leaves(outputs)
    )
    return None if numbers else "the model puts out no numbers for each example"


def _refined(
    small: Compressed, source: _Source, pairs: Sequence[Any], options: Mapping[str, Any]
) -> Compressed:
    """A compressed model with its factors refined."""
    factors = small.model if small.variables is None else small.variables
    batches = pairs if "row_weights" in options else [inputs for inputs, _ in pairs]
    found = source.call(refining.refine, factors, small.plan, batches, **options)
    about = replace(found, factors=None)
    if small.variables is None:
        return replace(small, model=found.factors, refined=about)
    return replace(small, variables=found.factors, refined=about)


def _of_pairs(loss_fn: LossFn | str) -> LossFn | str:
    return loss_fn if isinstance(loss_fn, str) else partial(_loss, loss_fn)


def _loss(loss_fn: LossFn, outputs: Any, pair: Any) -> Any:
    return loss_fn(outputs, pair[1])


def _weights(row_weights: RowWeights, pair: Any) -> Any:
    return row_weights(pair[1])
