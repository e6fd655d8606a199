"""Factors fitted until the small model answers as the large one did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, overload

import flax.linen as nn
import jax
import optax
from flax import nnx
from jaxtyping import Array

from tdjax.arguments.batches import read_batches
from tdjax.arguments.called import Method, checked_weights
from tdjax.decompose.dealing import in_this_process
from tdjax.decompose.meshes import on_any_mesh
from tdjax.dispatch.beside import on_all_devices, pair_of, small_network
from tdjax.dispatch.models import caller_of, on_models, room_of, with_arrays
from tdjax.moments.collect import RowWeights
from tdjax.moments.feeding import fed
from tdjax.plan.plan import Plan
from tdjax.processes import are_apart, together
from tdjax.progress import Progress, Steps
from tdjax.refinement.data import Pool, read_pools
from tdjax.refinement.everywhere import of_all_processes
from tdjax.refinement.refine import refine as refined
from tdjax.refinement.result import Refined
from tdjax.refinement.settings import Augment, Features, Loss, Settings
from tdjax.trace.call import WHOLE, Reading

Variables = Mapping[str, Any]


@overload
def refine(
    model: nn.Module,
    variables: Variables,
    factors: Variables,
    plan: Plan,
    batches: Iterable[Any],
    *,
    loss: Loss = ...,
    temperature: float = ...,
    features: Features = ...,
    trained: Sequence[str] = ...,
    optimizer: optax.GradientTransformation | None = ...,
    learning_rate: float | None = ...,
    epochs: int = ...,
    batch_size: int = ...,
    augment: Augment | None = ...,
    held_out: float | Iterable[Any] = ...,
    patience: int | None = ...,
    batch_stats: str = ...,
    blocks: str | Sequence[str] | None = ...,
    block_epochs: int = ...,
    mix: float = ...,
    balance: bool = ...,
    row_weights: RowWeights | None = ...,
    memory: int = ...,
    key: Array | None = ...,
    progress: Progress = ...,
    method: Method = ...,
) -> Refined: ...


@overload
def refine(
    model: nnx.Module,
    factors: nnx.Module,
    plan: Plan,
    batches: Iterable[Any],
    *,
    loss: Loss = ...,
    temperature: float = ...,
    features: Features = ...,
    trained: Sequence[str] = ...,
    optimizer: optax.GradientTransformation | None = ...,
    learning_rate: float | None = ...,
    epochs: int = ...,
    batch_size: int = ...,
    augment: Augment | None = ...,
    held_out: float | Iterable[Any] = ...,
    patience: int | None = ...,
    batch_stats: str = ...,
    blocks: str | Sequence[str] | None = ...,
    block_epochs: int = ...,
    mix: float = ...,
    balance: bool = ...,
    row_weights: RowWeights | None = ...,
    memory: int = ...,
    key: Array | None = ...,
    progress: Progress = ...,
    method: Method = ...,
) -> Refined: ...


@overload
def refine(
    model: Callable[..., Any],
    params: Any,
    factors: Any,
    plan: Plan,
    batches: Iterable[Any],
    *,
    loss: Loss = ...,
    temperature: float = ...,
    trained: Sequence[str] = ...,
    optimizer: optax.GradientTransformation | None = ...,
    learning_rate: float | None = ...,
    epochs: int = ...,
    batch_size: int = ...,
    augment: Augment | None = ...,
    held_out: float | Iterable[Any] = ...,
    patience: int | None = ...,
    balance: bool = ...,
    row_weights: RowWeights | None = ...,
    memory: int = ...,
    key: Array | None = ...,
    progress: Progress = ...,
) -> Refined: ...


@on_models
def refine(
    model: Any,
    variables: Any,
    factors: Any,
    plan: Plan,
    batches: Iterable[Any],
    *,
    loss: Loss = Settings.loss,
    temperature: float = Settings.temperature,
    features: Features = Settings.features,
    trained: Sequence[str] = Settings.trained,
    optimizer: optax.GradientTransformation | None = Settings.optimizer,
    learning_rate: float | None = Settings.learning_rate,
    epochs: int = Settings.epochs,
    batch_size: int = Settings.batch_size,
    augment: Augment | None = Settings.augment,
    held_out: float | Iterable[Any] = Settings.held_out,
    patience: int | None = Settings.patience,
    batch_stats: str = Settings.batch_stats,
    blocks: str | Sequence[str] | None = Settings.blocks,
    block_epochs: int = Settings.block_epochs,
    mix: float = Settings.mix,
    balance: bool = Settings.balance,
    row_weights: RowWeights | None = None,
    memory: int = Settings.memory,
    key: Array | None = None,
    progress: Progress = True,
    method: Method = None,
) -> Refined:
    """Factors fitted until the small model answers as the dense one does, on inputs alone.

    `refine(model, variables, factors, plan, batches)` for Linen, `refine(model, small, plan,
    batches)` for NNX, `refine(apply_fn, params, factors, plan, batches)` for a function: the dense
    model, and what `tdjax.factorize_params` or, for NNX, `tdjax.factorize` made of it. No labels
    are needed: the dense model's answers are the targets. What was given is not changed.

    Norms and ranks decide where a small network starts, this where it ends. A part of the examples
    is held out; the best iterate by their loss is returned, and the start is one of them.

        >>> import jax, tdjax
        >>> from flax import nnx
        >>> model = nnx.Sequential(*[nnx.Linear(8, 8, rngs=nnx.Rngs(k)) for k in range(2)])
        >>> x = jax.random.normal(jax.random.key(0), (256, 8))
        >>> plan = tdjax.make_plan(model, [tdjax.Rule(path=".*", method="svd", rank=3)], x)
        >>> small = tdjax.factorize(model, plan)
        >>> found = tdjax.refine(model, small, plan, [x], epochs=5, progress=False)
        >>> found.curve[found.best].held_out < found.curve[0].held_out
        True
        >>> found.factors(x).shape
        (256, 8)

    Arguments:
        model, variables, params, method: the dense model, as for `tdjax.make_plan`, in the mode in
            which it is used: batches without `train=True`, `model.eval()`.
        factors: of Linen parameters, or variables, as with the collection of sparse corrections or
            with batch statistics of their own; of a function its factors; of NNX the model.
        plan: by which they were factorised.
        batches: each the model's input as in `tdjax.make_plan`; with `row_weights` also a tuple
            (input, rest). Where their arrays are of equal shapes but for the number of examples,
            and take no more than `memory` bytes, steps take examples from all of them in a new
            order in each epoch; else from one batch after another. Where they are split over
            devices, so are the steps. Under `jax.distributed` each process has batches of its own,
            of which all make up one set, or all have the same global arrays.
        loss: of the outputs: "mse", the mean square of the change relative to that of what the
            dense model puts out; "kl", Kullback-Leibler divergence of softmax over the last axis,
            times the temperature's square; a function of both outputs (small, dense) to losses of
            the examples, (batch,); None for `features` alone.
        temperature: of "kl", by which outputs are divided.
        features: modules whose outputs are matched too, by "mse": patterns for `re.fullmatch` with
            their paths, "auto" for those that `blocks` finds, or a mapping from these to what the
            modules of each count together, beside the outputs, which count 1. Not for functions.
        trained: of "factors", "biases", "scales" (of normalisation) and "rest", all other
            parameters.
        optimizer: an optax transformation with its own learning rate; None for Adam with Nesterov's
            momentum, whose rate rises over the first 5 % of the steps, and falls to zero by half a
            cosine.
        learning_rate: of Adam, at its height; None for one that is found by 16 steps at growing
            rates on one and the same minibatch, and divided by 4, up to three times, where the
            first epoch is no better than the start.
        epochs: over all examples.
        batch_size: examples of each step, rounded up to a multiple of the devices that batches are
            split over.
        augment: (key, input) -> another input of the same shapes; runs inside the step, before
            both networks.
        held_out: the share of examples (of batches, where these stay apart) that are held out, or
            batches of their own; 0 for none: the training examples judge.
        patience: epochs without a better one after which to stop; None for none.
        batch_stats: "frozen", or "renewed" by `tdjax.reestimate_batch_stats` at the end, and kept
            where the held-out loss is no greater. Not for functions.
        blocks: refine first block by block, each towards the outputs of the dense one, with inputs
            that the small network makes, in as much memory as the gradient of one block takes;
            `epochs=0` for no more than that. "auto" for the largest modules that have at most a
            quarter of the factorised layers, or patterns for paths; an input factor that layers of
            several blocks share waits for the epochs of all. Not for functions.
        block_epochs: for each block.
        mix: the share of examples, drawn step by step, for which the blocks before the one that is
            refined return what the dense ones do; 0 for inputs of the small network alone.
        balance: begin with factors of equal norms, see `tdjax.balance_factors`.
        row_weights: see `tdjax.collect_moments`; rows of outputs and features count by them.
        memory: bytes that examples, and again what the dense model makes of them, may take to be
            kept; else the dense model runs in each step.
        key: PRNG key for what is held out, for the order of examples and for `augment`.
        progress: see `tdjax.compress`.

    Returns: `tdjax.refinement.result.Refined`: `factors`, of the structure that was given, of NNX a
    model; `curve`, the losses of each epoch; `best`, the epoch that the factors are from;
    `learning_rate`.

    Raises ValueError for factors that do not fit the plan, for no batches, NaN or Inf in a batch or
    in the weights, a pattern that matches no module, and for a loss or a batch of another form;
    TypeError for arguments of another kind. All but NaN and Inf is checked before any work. Where
    the loss becomes NaN or Inf on the way, what was best before is returned, and `stopped` says so.
    """
    settings = Settings(
        loss, temperature, features, tuple(trained), optimizer, learning_rate, epochs, batch_size,
        augment, held_out, patience, batch_stats, blocks, block_epochs, mix, balance, memory,
    )  # fmt: skip
    judging = together("refine", lambda: list(held_out) if isinstance(held_out, Iterable) else None)
    given = together("refine", lambda: list(batches))
    factors, about = _run(
        model, variables, factors, plan, given, judging, settings, row_weights, key, progress,
        method,
    )  # fmt: skip
    return replace(about, factors=factors)


@partial(on_any_mesh, split=True)
def _run(
    model: Any,
    variables: Any,
    factors: Any,
    plan: Plan,
    batches: Sequence[Any],
    judging: Sequence[Any] | None,
    settings: Settings,
    row_weights: RowWeights | None,
    key: Array | None,
    progress: Progress,
    method: Method,
) -> tuple[Any, Refined]:
    """The factors, and how it went.

    Arguments:
        judging: batches that are held out; None for a share of the others.
    """
    small = small_network(model, variables, factors, plan)
    whole = with_arrays(model, variables)

    weights = None if row_weights is None else checked_weights(row_weights)

    def read() -> tuple[Reading, list[Pool], list[Pool] | None]:
        reading = WHOLE
        if batches and row_weights is not None:
            trace_of = partial(room_of(model).trace, *whole, method=method)
            caller = caller_of(model, variables, method)
            reading, _ = read_batches("refine", caller, trace_of, batches)
        pools = read_pools(batches, reading, weights, settings.memory)
        held = None
        if judging is not None:
            held = read_pools(judging, reading, weights, settings.memory)
        if not pools or held == []:
            raise ValueError(f"refine: no batches{' are held out: pass some' if pools else ''}")
        if not any(pool.number for pool in pools):
            raise ValueError("refine: the batches are empty")
        inputs = reading.inputs(batches[0])
        jax.eval_shape(lambda: network.outputs(arrays, inputs))
        return reading, pools, held

    network, arrays = room_of(model).network_of(*whole, method=method)
    reading, pools, held = together("refine", read)
    apart = are_apart("refine", batches[0])
    if apart:
        pools = of_all_processes(pools, "batches")
        held = None if held is None else of_all_processes(held, "batches that are held out")
    renews = settings.batch_stats == "renewed"
    rows = fed(batches, reading, weights)
    pair = pair_of(model, variables, small, plan, method, rows if renews else None)
    key = jax.random.key(0) if key is None else key
    pair = on_all_devices(pair) if apart else pair
    found = refined(pair, pools, held, settings, key, Steps("refine", progress))
    factors = jax.tree.map(in_this_process, found.factors) if apart else found.factors
    return small.result(factors), replace(found, factors=None)
