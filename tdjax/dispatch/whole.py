"""Whole networks to be timed: dense, and with factors drawn at random in the place of layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tdjax.nnx
from tdjax.arguments.called import Method
from tdjax.dispatch.factors import factorize
from tdjax.dispatch.models import kind_of, room_of, with_arrays
from tdjax.nnx.model import own_arrays, with_chains
from tdjax.params.arrays import Factors, stack_axes
from tdjax.params.factorize import FactorisedLayer, with_factors
from tdjax.params.leaves import leaf_tree
from tdjax.plan.plan import Plan, PlannedLayer
from tdjax.trace.call import batch_size, call_arguments, split_arrays

# Numbers in the place of those that are not given: all positive, as variances are.
LEAST, MOST = 0.01, 0.1


def network_call(model: Any, variables: Any, inputs: Any, method: Method) -> Callable[[], Any]:
    """A call of a model on one batch, compiled when it is first made."""
    network, state = room_of(model).network_of(*with_arrays(model, variables), method=method)
    arrays, frame = split_arrays(inputs)
    run = jax.jit(lambda state, arrays: network.outputs(state, frame.join(arrays)))
    return functools.partial(run, state, arrays)


def with_drawn_factors(model: Any, variables: Any, plan: Plan) -> tuple[Any, Any]:
    """A model and its variables with the layers of a plan factorised, nothing decomposed.

    Its answers mean nothing; they take as long as those of decomposed layers.
    """
    layers = {own.layer.path: FactorisedLayer(_factors(own), None) for own in plan.factorised}
    held = kind_of(model).held
    if held is None:
        params = with_factors(own_arrays(model, plan, bias=False), plan, layers)
        return with_chains(model, plan, params), None
    small = factorize(model, plan)
    if held == "params":
        tree = leaf_tree(variables)
        return small, tree.filled(with_factors(tree.mapping, plan, layers), plan)
    return small, {**variables, "params": with_factors(variables["params"], plan, layers)}


def _factors(entry: PlannedLayer) -> Factors:
    storage, found = entry.layer.storage, {}
    for stage in entry.stages:
        shape = stage.kernel_shape
        if storage.stack is not None:
            axis = stack_axes(entry)[stage.name]
            shape = (*shape[:axis], storage.copies, *shape[axis:])
        found[stage.name] = drawn(jax.ShapeDtypeStruct(shape, jnp.float32))
    return found


def filled(model: Any, variables: Any) -> tuple[Any, Any]:
    """A model and its variables with numbers where they have shapes alone."""
    if variables is not None:
        return model, jax.tree.map(drawn, variables)
    _, leaves = tdjax.nnx.network_of(model)
    if all(isinstance(leaf, jax.Array) for leaf in leaves):
        return model, None
    return tdjax.nnx.with_leaves(model, list(map(drawn, leaves))), None


def of_batch(sample: Any, batch: int | None) -> Any:
    """A batch of so many examples: those of the sample in turns, or zeros of its shapes."""
    arrays, frame = split_arrays(sample)
    before = batch_size(split_arrays(call_arguments(sample))[0])
    wanted = before if batch is None else batch

    def resized(array: Any) -> Any:
        shape = tuple(array.shape)
        if shape[:1] == (before,):
            shape = (wanted, *shape[1:])
        if isinstance(array, jax.ShapeDtypeStruct):
            return drawn(jax.ShapeDtypeStruct(shape, array.dtype))
        if shape == tuple(array.shape):
            return array
        return jnp.asarray(array)[np.arange(wanted) % before]

    return frame.join(list(map(resized, arrays)))


def drawn(leaf: Any) -> Any:
    """An array of a shape; what is none stays."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), leaf.shape)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.zeros(leaf.shape, leaf.dtype)
    numbers = np.random.default_rng(0).uniform(LEAST, MOST, leaf.shape).astype(np.float32)
    return jnp.asarray(numbers, leaf.dtype)
