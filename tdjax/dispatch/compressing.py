"""The steps from a trained model to a small one, each on a model with its data."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tdjax.arguments.batches import read_batches
from tdjax.arguments.called import Method, number_of
from tdjax.arguments.checks import check_arguments
from tdjax.decompose.meshes import without_explicit_axes
from tdjax.dispatch import refining
from tdjax.dispatch.data import reestimate_batch_stats
from tdjax.dispatch.factors import factorize
from tdjax.dispatch.models import caller_of, kind_of, room_of, with_arrays
from tdjax.dispatch.storing import quantize
from tdjax.hints import did_you_mean
from tdjax.moments.collect import LayerMoments, RowWeights
from tdjax.moments.losses import LossFn
from tdjax.params.factorize import factorize_params
from tdjax.plan.layers import Inventory
from tdjax.plan.plan import Plan
from tdjax.processes import are_apart, gathered
from tdjax.progress import Counted, Progress, Tick
from tdjax.refinement.result import Refined
from tdjax.trace.call import WHOLE, Reading, peeked

# Whether to refine, or by which options of `tdjax.refine`.
Refine = bool | Mapping[str, Any]
# Of fewer examples there are too few to hold some out: it is not refined unless options ask for it.
LEAST = 200
# What the options of refinement need not say again.
PASSED_ON = ("row_weights", "method")


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

    def __repr__(self) -> str:
        """What was compressed, how far, and no array."""
        name, plan = type(self.model).__name__, self.plan
        sizes = f"{plan.size_before:,} -> {plan.size:,} parameters"
        return f"Compressed({name}, {sizes}, {self.refined or 'not refined'})"


@dataclass(frozen=True, eq=False)
class Source:
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


def source_of(
    model: Any, variables: Any, batches: Iterable[Any], *, labelled: bool, method: Method
) -> Source:
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
    return Source(model, variables, batches, reading, reading.inputs(first), method)


def factorised(
    source: Source, plan: Plan, moments: Mapping[str, LayerMoments], key: Array, progress: Progress
) -> Compressed:
    """A model factorised by a plan, its biases corrected for what the mean inputs lose."""
    options: dict[str, Any] = {"key": key, "moments": moments, "correct_bias": True}
    options["progress"] = progress
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


def stored(small: Compressed, source: Source, plan: Plan) -> Compressed:
    """A compressed model with its arrays in the numbers that a plan stores them in."""
    if all(entry.dtype is None for entry in plan.layers):
        return small
    if small.variables is None:
        return replace(small, model=quantize(small.model, plan), plan=plan)
    model = factorize(source.model, plan)
    return replace(small, model=model, variables=quantize(small.variables, plan), plan=plan)


def renewed(
    small: Compressed,
    source: Source,
    row_weights: RowWeights | None,
    tick: Tick,
) -> Compressed:
    """A compressed model with its batch statistics estimated again."""
    pairs: Iterable[Any] = Counted(source, tick)
    options: dict[str, Any] = {"progress": False}
    changed = replace(source, model=small.model, variables=small.variables)
    if row_weights is None:
        pairs = (inputs for inputs, _ in pairs)
    else:
        options["row_weights"] = partial(weights_of_pairs, row_weights)
    again = changed.call(reestimate_batch_stats, pairs, **options)
    if small.variables is None:
        return replace(small, model=again)
    return replace(small, variables=again)


def check_equal(plan: Plan) -> None:
    """Refuse, in all processes, that one of them is to make another network than the others."""
    digests = gathered(hashlib.sha256(plan.to_json().encode()).hexdigest())
    other = [number for number, digest in enumerate(digests) if digest != digests[0]]
    if other:
        raise ValueError(
            f"compress: process {other[0]} of {len(digests)} has other formats and ranks than "
            "process 0: give all the same model and arguments"
        )


def check_options(refine: Refine) -> None:
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


def obstacle_to_refining(
    small: Compressed, source: Source, pairs: Sequence[Any], *, asked: bool
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


def refined(
    small: Compressed, source: Source, pairs: Sequence[Any], options: Mapping[str, Any]
) -> Compressed:
    """A compressed model with its factors refined."""
    factors = small.model if small.variables is None else small.variables
    batches = pairs if "row_weights" in options else [inputs for inputs, _ in pairs]
    found = source.call(refining.refine, factors, small.plan, batches, **options)
    about = replace(found, factors=None)
    if small.variables is None:
        return replace(small, model=found.factors, refined=about)
    return replace(small, variables=found.factors, refined=about)


def of_pairs(loss_fn: LossFn | str) -> LossFn | str:
    """A loss of pairs (arguments of the model, batch), from one of batches."""
    return loss_fn if isinstance(loss_fn, str) else partial(_loss, loss_fn)


def _loss(loss_fn: LossFn, outputs: Any, pair: Any) -> Any:
    return loss_fn(outputs, pair[1])


def weights_of_pairs(row_weights: RowWeights, pair: Any) -> Any:
    """The weights of the rows of such a pair."""
    return row_weights(pair[1])
