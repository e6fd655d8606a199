"""What peers know of the inputs and the gradients of each matrix, apart from tdjax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from benchmarks.sentences import forward
from benchmarks.sentences.forward import MATRICES, Rows
from benchmarks.sentences.task import Task
from benchmarks.transformers.peers import Factors, fitted
from benchmarks.transformers.statistics import Inputs

# Sentences whose gradients are held at once.
SENTENCES = 16


def inputs_of(task: Task) -> dict[str, Inputs]:
    """Of each matrix of the dense network, by path."""
    found: dict[str, Inputs] = {}
    rows = embedded(task)
    for block in blocks_of(task):
        for place, own in enumerate(rows):
            rows[place], shown = passed(task, block, own, place)
            for name, x in shown.items():
                new = Inputs(np.abs(x).sum(axis=0, dtype=np.float64), x.T @ x)
                known = found.get(f"{block}/{name}")
                found[f"{block}/{name}"] = new if known is None else _sum(known, new)
    tokens = task.seen.mask.sum()
    return {path: Inputs(own.size / tokens, own.moment / tokens) for path, own in found.items()}


def fisher_of(task: Task, seed: int) -> dict[str, Float[np.ndarray, " i"]]:
    """Squared gradients of each row of a matrix, their sum over the row and mean over sentences.

    Of <y, r>, y the embedding and r random signs: there are no labels.
    """

    def loss(kernels: Any, ids: Array, mask: Array, signs: Array) -> Array:
        y = task.model.apply(task.with_kernels(kernels), ids[None], mask[None])
        return jnp.vdot(jnp.asarray(y), signs)

    @jax.jit
    def squares(kernels: Any, *examples: Array) -> Any:
        found = jax.vmap(jax.grad(loss), (None, 0, 0, 0))(kernels, *examples)
        return jax.tree.map(lambda gradient: jnp.sum(gradient**2, axis=(0, 2)), found)

    ids, mask = task.seen
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (len(ids), task.model.width))
    signs = signs.astype(np.float32)
    kernels = {path: jnp.asarray(kernel) for path, kernel in task.kernels.items()}
    total = {path: np.zeros(len(kernel)) for path, kernel in kernels.items()}
    for start in range(0, len(ids), SENTENCES):
        part = slice(start, start + SENTENCES)
        for path, own in squares(kernels, ids[part], mask[part], signs[part]).items():
            total[path] += np.asarray(own) / len(ids)
    return total


def updated(task: Task, start: Mapping[str, Factors]) -> dict[str, Factors]:
    """Factors of SVD-LLM, the second ones fitted to what the dense matrices make of the inputs.

    Block after block: the inputs are what the dense block has of what the compressed blocks before
    it hand on.

    Arguments:
        start: of all matrices, by path.
    """
    found: dict[str, Factors] = {}
    rows = embedded(task)
    for block in blocks_of(task):
        moments: dict[str, np.ndarray] = {}
        for place, own in enumerate(rows):
            for name, x in passed(task, block, own, place)[1].items():
                moments[name] = moments.get(name, 0.0) + x.T @ x
        small = {}
        for name in MATRICES:
            path = f"{block}/{name}"
            small[name] = fitted(task.kernels[path], start[path].first, moments[name])
            found[path] = small[name]
        rows = [passed(task, block, own, place, small)[0] for place, own in enumerate(rows)]
    return found


def blocks_of(task: Task) -> list[str]:
    """The names of all blocks."""
    return [f"encoder.layer.{number}" for number in range(task.model.depth)]


def embedded(task: Task) -> list[Rows]:
    """What goes into the first block, by batch."""
    params = jax.tree.map(np.asarray, task.variables["params"])
    return [
        forward.embed(params, np.asarray(own["ids"]), np.asarray(own["mask"]), task.model.epsilon)
        for own in task.batches
    ]


def passed(
    task: Task, block: str, rows: Rows, place: int, small: Mapping[str, Factors] | None = None
) -> tuple[Rows, dict[str, Rows]]:
    """What comes out of a block, and what went into each of its matrices.

    Arguments:
        place: of the batch.
        small: in place of matrices, by their names in the block.
    """
    params = dict(jax.tree.map(np.asarray, task.variables["params"][block]))
    for name, factors in (small or {}).items():
        params[name] = {**params[name], "kernel": factors.kernel.astype(np.float32)}
    shown: dict[str, Rows] = {}
    mask = np.asarray(task.batches[place]["mask"])
    model = task.model
    out = forward.block(params, rows, mask, model.heads, model.epsilon, shown.__setitem__)
    return out, shown


def _sum(a: Inputs, b: Inputs) -> Inputs:
    return Inputs(a.size + b.size, a.moment + b.moment)
