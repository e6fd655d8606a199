"""What peers know of the inputs and the gradients of each matrix, apart from tdjax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from benchmarks.matrix_statistics import Inputs, Sums, squared_gradients
from benchmarks.sentences import forward
from benchmarks.sentences.forward import MATRICES, Rows
from benchmarks.sentences.task import Task
from benchmarks.transformers.peers import Factors, fitted


def inputs_of(task: Task) -> dict[str, Inputs]:
    """Of each matrix of the dense network, by path."""
    sums, rows = Sums(), embedded(task)
    for block in blocks_of(task):
        for place, own in enumerate(rows):
            rows[place], shown = passed(task, block, own, place)
            for name, x in shown.items():
                sums.add(f"{block}/{name}", x)
    return sums.means(task.seen.mask.sum())


def fisher_of(task: Task, seed: int) -> dict[str, Float[np.ndarray, " i"]]:
    """Squared gradients of each row of a matrix, their sum over the row and mean over sentences.

    Of <y, r>, y the embedding and r random signs: there are no labels.
    """

    def loss(kernels: Any, ids: Array, mask: Array, signs: Array) -> Array:
        y = task.model.apply(task.with_kernels(kernels), ids[None], mask[None])
        return jnp.vdot(jnp.asarray(y), signs)

    ids, mask = task.seen
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (len(ids), task.model.width))
    return squared_gradients(loss, task.kernels, (ids, mask, signs.astype(np.float32)))


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
        sums = Sums()
        for place, own in enumerate(rows):
            for name, x in passed(task, block, own, place)[1].items():
                sums.add(name, x)
        moments = sums.means(task.seen.mask.sum())
        small = {}
        for name in MATRICES:
            path = f"{block}/{name}"
            small[name] = fitted(task.kernels[path], start[path].first, moments[name].moment)
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
