"""The same encoder compressed by tdjax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

import tdjax
from benchmarks.sentences.peers import rank_of
from benchmarks.sentences.task import Batch, Kept, Task

BLOCKS = r"encoder\.layer\..*"
Moments = Mapping[str, tdjax.LayerMoments]


class Small(NamedTuple):
    """A compressed encoder."""

    plan: tdjax.Plan
    variables: Any


def row_weights(batch: Batch) -> Any:
    """Padding does not count."""
    return batch["mask"]


def collected(task: Task, draws: int, seed: int) -> Moments:
    """Second moments of inputs, and of what half the squared change of the embeddings weighs.

    Arguments:
        draws: signs for each sentence.
    """
    return tdjax.collect_moments(
        task.model, task.variables, task.batches * draws, loss_fn="outputs",
        row_weights=row_weights, paths=BLOCKS, key=jax.random.key(seed),
    )  # fmt: skip


def equal(task: Task, share: float) -> tdjax.Plan:
    """Each matrix with the same share of its parameters."""
    rules = [
        tdjax.Rule(path=path.replace(".", r"\."), method="svd", rank=rank_of(kernel.shape, share))
        for path, kernel in task.kernels.items()
    ]
    return tdjax.make_plan(task.model, task.variables, rules, task.batches[0])


def allocated(task: Task, share: float, moments: Moments) -> tdjax.Plan:
    """Ranks chosen together, of as many parameters as those of `equal`."""
    whole = sum(leaf.size for leaf in jax.tree.leaves(task.variables["params"]))
    goal = sum(rank_of(k.shape, share) * sum(k.shape) for k in task.kernels.values())
    rest = whole - sum(kernel.size for kernel in task.kernels.values())
    return tdjax.allocate(
        task.model, task.variables, task.batches[0], budget={"params": (rest + goal) / whole},
        strategy="loss", methods=("svd",), moments=moments,
        rules=[tdjax.BudgetRule(path=rf"(?!{BLOCKS}).*", dense=True)],
    )  # fmt: skip


def factors_of(task: Task, plan: tdjax.Plan, moments: Moments, **options: Any) -> Small:
    """Layer by layer."""
    params = tdjax.factorize_params(task.variables["params"], plan, moments=moments, **options)
    return Small(plan, {**task.variables, "params": params})


def sequential(task: Task, plan: tdjax.Plan, moments: Moments) -> Small:
    """Layer after layer, each making up for what those before it lost."""
    params = tdjax.factorize_sequentially(
        task.model, task.variables, plan, task.batches, moments=moments, correct_bias=True,
        row_weights=row_weights,
    )  # fmt: skip
    return Small(plan, {**task.variables, "params": params})


def refined(task: Task, small: Small, epochs: int, seed: int, **options: Any) -> Small:
    """Fitted to the answers of the dense network, without labels."""
    found = tdjax.refine(
        task.model, task.variables, small.variables, small.plan, task.batches, epochs=epochs,
        row_weights=row_weights, key=jax.random.key(seed), **options,
    )  # fmt: skip
    return Small(small.plan, found.factors)


def kept(task: Task, small: Small) -> Kept:
    """What is left, by the products of the factors: kernels need no program of their own."""
    params = tdjax.reconstruct_params(small.variables["params"], small.plan)
    return task.kept({**small.variables, "params": params})


def share_of(task: Task, plan: tdjax.Plan) -> float:
    """Parameters of the matrices of all blocks, as a share of those before."""
    entries = [entry for entry in plan.layers if entry.layer.path in task.kernels]
    return sum(entry.size for entry in entries) / sum(entry.layer.size for entry in entries)
