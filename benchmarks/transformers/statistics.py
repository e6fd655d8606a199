"""What peers know of inputs and gradients of each matrix, apart from tdjax.

Inputs are those that Flax hands to its dense layers; the moments are summed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from benchmarks.matrix_statistics import Inputs, Sums, squared_gradients
from benchmarks.transformers.models import MATRICES
from benchmarks.transformers.peers import Factors, fitted
from benchmarks.transformers.task import Classified
from benchmarks.transformers.training import cross_entropy


def inputs_of(task: Classified) -> dict[str, Inputs]:
    """Of each matrix of the dense network, by path."""
    return _means(task, task.variables)


def fisher_of(task: Classified, seed: int) -> dict[str, Float[np.ndarray, " i"]]:
    """Squared gradients of each row of a matrix, their sum over the row and mean over examples.

    Of the cross entropy of what is right, as the paper has it; the seed is not needed.
    """
    del seed

    def loss(kernels: Any, inputs: Array, label: Array) -> Array:
        logits = task.model.apply(task.with_kernels(kernels), inputs[None])
        return cross_entropy(jnp.asarray(logits), label[None])[0]

    return squared_gradients(loss, task.kernels, task.seen)


def updated(task: Classified, start: Mapping[str, Factors]) -> dict[str, Factors]:
    """Factors of SVD-LLM, the second ones fitted to what the dense matrices make of the inputs.

    Block after block: the inputs are what the dense block has of what the compressed blocks before
    it hand on.

    Arguments:
        start: of all matrices, by path.
    """
    found: dict[str, Factors] = {}
    for block in range(task.depth):
        before = {path: own.kernel for path, own in found.items()}
        moments = _means(task, task.with_kernels(before))
        for name in MATRICES:
            path = f"block{block}/{name}"
            found[path] = fitted(task.kernels[path], start[path].first, moments[path].moment)
    return found


def _means(task: Classified, variables: Any) -> dict[str, Inputs]:
    paths = tuple(task.kernels)
    sums, rows = Sums(), 0
    for batch in task.batches:
        for path, x in _inputs(task.model, paths, variables, batch).items():
            sums.add(path, x)
        rows += len(x)
    return sums.means(rows)


@partial(jax.jit, static_argnums=(0, 1))
def _inputs(
    model: nn.Module, paths: tuple[str, ...], variables: Any, batch: Array
) -> dict[str, Float[Array, "n i"]]:
    shown: dict[str, Array] = {}

    def see(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        path = "/".join(context.module.path)
        if path in paths:
            shown[path] = args[0].reshape(-1, args[0].shape[-1])
        return call(*args, **kwargs)

    with nn.intercept_methods(see):
        model.apply(variables, batch)
    return shown
