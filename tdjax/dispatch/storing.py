"""Factorised networks stored in fewer bits and in full again, of all module systems."""

from __future__ import annotations

from typing import TypeVar

from flax import nnx

import tdjax.nnx
from tdjax.params import storing
from tdjax.plan.plan import Plan

# An NNX model, Linen's variables or parameters, or a function's parameters.
Tree = TypeVar("Tree")


def quantize(params: Tree, plan: Plan) -> Tree:
    """Round the arrays of a factorised model to the numbers in which its plan stores them.

    `tdjax.factorize_params` and `tdjax.factorize` do so by themselves; this is for factors that
    were trained or refined as floats. Factors of one layer are scaled against each other first,
    which changes nothing but what rounding loses.

        >>> import flax.linen as nn, jax, tdjax
        >>> model, x = nn.Dense(64), jax.random.normal(jax.random.key(0), (8, 64))
        >>> params = model.init(jax.random.key(1), x)["params"]
        >>> rules = [tdjax.Rule(path="", method="svd", rank=8)]
        >>> plan = tdjax.make_plan(model, {"params": params}, rules, x)
        >>> floats = tdjax.factorize_params(params, plan)
        >>> small = tdjax.quantize(floats, plan.with_dtypes("int8"))
        >>> small["input"]["kernel"].values.dtype, small["input"]["kernel"].shape
        (dtype('int8'), (64, 8))

    Arguments:
        params: parameters or variables of Linen, the parameters of a function, or a factorised NNX
            model. It is not changed.
        plan: see `Plan.with_dtypes`.

    Returns: the same with `tdjax.params.quantised.Quantised` in place of some arrays, or bfloat16.

    Raises KeyError or ValueError for what does not fit the plan, ValueError for numbers other than
    float32, and for arrays whose axes have names.
    """
    if isinstance(params, nnx.Module):
        return tdjax.nnx.with_kernels(params, plan, storing.stored_tree)
    found: Tree = storing.stored_params(params, plan)
    return found


def dequantize(params: Tree, plan: Plan) -> Tree:
    """The float32 arrays that stored ones stand for: the same model, in more bytes.

    This is what trains and refines, and what other libraries quantise their way, as qwix for
    products of integers. Safe inside `jit`.

        >>> import jax.numpy as jnp, tdjax
        >>> from flax import nnx
        >>> model, x = nnx.Linear(64, 64, rngs=nnx.Rngs(0)), jnp.ones((8, 64))
        >>> plan = tdjax.make_plan(model, [tdjax.Rule(path="", method="svd", rank=8)], x)
        >>> plan = plan.with_dtypes("int4")
        >>> small = tdjax.factorize(model, plan)
        >>> large = tdjax.dequantize(small, plan)
        >>> bool((large(x) == small(x)).all())
        True

    Arguments and errors as `quantize`.
    """
    if isinstance(params, nnx.Module):
        return tdjax.nnx.with_kernels(params, plan, storing.in_full)
    found: Tree = storing.full_params(params, plan)
    return found


def check_in_full(function: str, plan: Plan) -> None:
    """Refuse, with a ValueError, a plan that stores layers in numbers that are not trained."""
    for entry in plan.layers:
        if entry.dtype is not None:
            raise ValueError(
                f"{function}: the plan stores layer {entry.layer.path!r} as {entry.dtype}: give "
                "tdjax.dequantize(params, plan) and plan.with_dtypes(None), and "
                "tdjax.quantize(params, plan) the result"
            )
