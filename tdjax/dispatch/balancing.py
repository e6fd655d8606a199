"""Factors of equal norms, for a start of training that is steadier."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

import tdjax.nnx
from tdjax.arguments.checks import checked
from tdjax.dispatch.storing import check_in_full
from tdjax.nnx.graph import modules_of
from tdjax.nnx.model import factorised_module
from tdjax.params.check import check_params
from tdjax.params.corrections import unpacked
from tdjax.params.leaves import of_leaves
from tdjax.plan.plan import Plan
from tdjax.refinement.pair import balanced_leaves
from tdjax.trace.names import leaf_names


@checked()
def balance_factors(factors: Any, plan: Plan) -> Any:
    """The same network with factors of equal norms, on which training is steadier.

    Between two stages of a chain each feature may be scaled and scaled back. Here the column in
    front of it and the row behind it get the same norm, and with them all stages of a layer, of
    whatever format: Tucker and tensor train decompositions come with all of the scale in one
    stage. Adam moves all entries by the same amount, and gradient descent each stage by the product
    of the norms of all others: both go wrong where one is far larger. `tdjax.refine` begins so.

        >>> import jax, jax.numpy as jnp, tdjax
        >>> from flax import nnx
        >>> model, x = nnx.Conv(12, 12, (3, 3), rngs=nnx.Rngs(0)), jnp.ones((2, 5, 5, 12))
        >>> rules = [tdjax.Rule(path="", method="tucker", rank=(4, 5))]
        >>> plan = tdjax.make_plan(model, rules, x)
        >>> small = tdjax.balance_factors(tdjax.factorize(model, plan), plan)
        >>> norms = [float(jnp.linalg.norm(x.kernel[...])) for x in (small.input, small.core)]
        >>> abs(norms[0] / norms[1] - 1) < 1e-3
        True

    Arguments:
        factors: parameters or variables of Linen, of a function its factors, or the NNX model, as
            `tdjax.factorize_params` or `tdjax.factorize` gives them. It is not changed.
        plan: by which they were factorised.

    Raises ValueError for factors that do not fit the plan, and for NaN or Inf, naming the layer.
    """
    check_in_full("balance_factors", plan)
    if isinstance(factors, nnx.Module):
        check_modules(factors, plan)
        _, leaves = tdjax.nnx.network_of(factors)
        names = tdjax.nnx.parameter_names(factors)
        return tdjax.nnx.with_leaves(factors, balanced_leaves(leaves, names, plan))
    check_params(factors, plan)
    whole = not of_leaves(plan) and unpacked(factors, plan).variables is not None
    leaves, structure = jax.tree.flatten(factors)
    names = [own[1:] if whole else own for own in leaf_names(factors)]
    return jax.tree.unflatten(structure, balanced_leaves(leaves, names, plan))


def check_modules(model: nnx.Module, plan: Plan) -> None:
    """Refuse an NNX model that was not factorised by a plan."""
    modules = modules_of(model)
    for entry in plan.factorised:
        factorised_module(modules, entry)
