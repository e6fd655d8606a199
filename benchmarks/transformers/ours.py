"""The same network compressed by tdjax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx

import tdjax
from benchmarks.transformers.peers import rank_of
from benchmarks.transformers.task import Classified, Task

FLOAT_BYTES = 4
Moments = Mapping[str, tdjax.LayerMoments]


class Small(NamedTuple):
    """A compressed network."""

    plan: tdjax.Plan
    variables: Any


def collected(task: Task, draws: int, seed: int) -> Moments:
    """Second moments of inputs, and of the gradient of a loss without labels.

    Arguments:
        draws: of the loss, for each example.
    """
    return tdjax.collect_moments(
        task.model, task.variables, list(task.batches) * draws, loss_fn=task.loss,
        row_weights=task.row_weights, paths=task.blocks, key=jax.random.key(seed),
    )  # fmt: skip


def equal(task: Task, share: float) -> tdjax.Plan:
    """Each matrix with the same share of its parameters."""
    rules = [
        tdjax.Rule(path=path.replace(".", r"\."), method="svd", rank=rank_of(kernel.shape, share))
        for path, kernel in task.kernels.items()
    ]
    return tdjax.make_plan(task.model, task.variables, rules, task.batches[0])


def sharing(task: Task, plan: tdjax.Plan) -> tdjax.Plan:
    """Query, key and value with one input factor, in no more parameters."""
    groups = tdjax.shared_inputs(task.model, task.variables, task.batches[0])
    return plan.with_shared(groups)


def allocated(
    task: Task,
    share: float,
    moments: Moments,
    dtypes: Sequence[str] | None = None,
    shared: str | None = None,
    pairs: str | None = None,
) -> tdjax.Plan:
    """Ranks chosen together, of as many parameters as those of `equal`.

    Arguments:
        dtypes: to choose ranks and stored numbers together, of as many bytes as those take in
            float32; None to store all in float32.
        shared, pairs: see `tdjax.allocate`.
    """
    limit = _limit(task, share, moments, dtypes)
    return tdjax.allocate(
        task.model, task.variables, task.batches[0], **limit, shared=shared, pairs=pairs
    )


def _limit(task: Task, share: float, moments: Moments, dtypes: Sequence[str] | None) -> Any:
    whole = sum(leaf.size for leaf in jax.tree.leaves(task.variables["params"]))
    goal = sum(rank_of(k.shape, share) * sum(k.shape) for k in task.kernels.values())
    rest = whole - sum(kernel.size for kernel in task.kernels.values())
    return {
        "budget": {"params" if dtypes is None else "bytes": (rest + goal) / whole},
        "strategy": "loss", "methods": ("svd",), "moments": moments, "dtypes": dtypes,
        "rules": [tdjax.BudgetRule(path=rf"(?!{task.blocks}).*", dense=True)],
        "progress": False,
    }  # fmt: skip


def factors_of(task: Task, plan: tdjax.Plan, moments: Moments, **options: Any) -> Small:
    """Layer by layer."""
    params = tdjax.factorize_params(task.variables["params"], plan, moments=moments, **options)
    return Small(plan, {**task.variables, "params": params})


def sequential(task: Task, plan: tdjax.Plan, moments: Moments, blocks: str | None = None) -> Small:
    """Layer after layer, or block after block, each making up for what those before it lost."""
    params = tdjax.factorize_sequentially(
        task.model, task.variables, plan, task.batches, moments=moments, correct_bias=True,
        row_weights=task.row_weights, blocks=blocks,
    )  # fmt: skip
    return Small(plan, {**task.variables, "params": params})


def refined(task: Task, small: Small, epochs: int, seed: int, **options: Any) -> Small:
    """Fitted to the answers of the dense network, without labels."""
    found = tdjax.refine(
        task.model, task.variables, small.variables, small.plan, task.batches, epochs=epochs,
        row_weights=task.row_weights, key=jax.random.key(seed), **task.refining, **options,
    )  # fmt: skip
    return Small(small.plan, found.factors)


def kept(task: Task, small: Small) -> Any:
    """What is left, by the products of the factors: kernels need no program of their own."""
    params = tdjax.dequantize(small.variables["params"], small.plan)
    params = tdjax.reconstruct_params(params, small.plan)
    return task.kept({**small.variables, "params": params})


def kept_in_nnx(task: Classified, share: float, draws: int, seed: int) -> tuple[Any, tdjax.Plan]:
    """What is left with the method "loss" when the network is one of NNX, and the plan."""
    model: Any = task.twin
    moments = tdjax.collect_moments(
        model, task.batches * draws, loss_fn=task.loss, paths=task.blocks,
        key=jax.random.key(seed),
    )  # fmt: skip
    plan = tdjax.allocate(model, task.batches[0], **_limit(task, share, moments, None))
    small = tdjax.factorize(model, plan, moments=moments, correct_bias=True)
    return task.scores(nnx.jit(small)), plan


def share_of(task: Task, plan: tdjax.Plan) -> float:
    """Bytes of the matrices of all blocks, as a share of those before, which were float32."""
    entries = [entry for entry in plan.layers if entry.layer.path in task.kernels]
    before = sum(FLOAT_BYTES * entry.layer.size for entry in entries)
    return sum(entry.bytes for entry in entries) / before
