"""An `nnx.Optimizer` across the factorisation of its model."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from tdjax.params.optimizers import carry_optimizer_state


def carry_optimizer(
    optimizer: nnx.Optimizer, model: nnx.Module, new_model: nnx.Module
) -> nnx.Optimizer:
    """The optimiser of a model, for the model that took its place in mid-training.

        >>> import jax.numpy as jnp, optax, tdjax
        >>> from flax import nnx
        >>> model = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
        >>> optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
        >>> rules = [tdjax.Rule(path="", method="svd", rank=2)]
        >>> small = tdjax.factorize(model, tdjax.make_plan(model, rules, jnp.ones((2, 8))))
        >>> optimizer = tdjax.nnx.carry_optimizer(optimizer, model, small)
        >>> optimizer.opt_state[0].mu["input"]["kernel"].shape
        (8, 2)

    What it knows of parameters that both models have, and its step, are kept; the state of the
    factors is fresh. Neither `optimizer` nor `model` is changed. Details as
    `tdjax.carry_optimizer_state`.

    Arguments:
        optimizer: an `nnx.Optimizer` of `model`.
        model, new_model: before and after, for example by `tdjax.factorize`.

    Raises ValueError as `tdjax.carry_optimizer_state`.
    """
    carried = carry_optimizer_state(
        optimizer.tx,
        _arrays(optimizer.opt_state),
        _arrays(nnx.state(model, optimizer.wrt)),
        _arrays(nnx.state(new_model, optimizer.wrt)),
    )
    fresh = nnx.Optimizer(new_model, optimizer.tx, wrt=optimizer.wrt)
    variables = jax.tree.leaves(fresh.opt_state, is_leaf=_is_variable)
    for variable, array in zip(variables, jax.tree.leaves(carried), strict=True):
        variable[...] = array
    fresh.step[...] = optimizer.step[...]
    return fresh


def _arrays(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[...], tree, is_leaf=_is_variable)


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)
