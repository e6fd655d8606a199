"""The largest weights of many units at once, as many of each as a rule says."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from tdjax.plan.layers import Layer
from tdjax.pruning.prunable import SCOPES, Leaf, prunable

# From absolute values in rising order, a matrix for each leaf or one for all, one unit in each
# column, and further arguments: how many of each unit to keep.
Rule = Callable[..., list[Int[Array, " n"]]]


def prune(
    params: Any,
    rule: Rule,
    arguments: Callable[[Sequence[Leaf]], Any],
    *,
    scope: str,
    layers: Sequence[Layer] | None,
    paths: str | Sequence[str],
) -> Any:
    """Masks that keep the largest weights of each unit.

    Arguments:
        params: pytree of arrays.
        rule: a function that is the same object in every call: one program for each is compiled.
        arguments: what the rule gets beside the weights, from the leaves that are pruned; traced.
        scope, layers, paths: see `tdjax.magnitude_prune`.

    Returns: a pytree of the structure of `params`, boolean arrays of the shapes of its arrays;
    those that are not pruned are True throughout.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope must be one of {', '.join(SCOPES)}, got {scope!r}")
    chosen = prunable(params, layers, paths)
    leaves, structure = jax.tree.flatten(params)
    arrays = [leaves[leaf.place] for leaf in chosen]
    made = _masks(rule, chosen, scope, arrays, arguments(chosen))
    masks = {leaf.place: mask for leaf, mask in zip(chosen, made, strict=True)}
    others = (jnp.ones(leaf.shape, bool) if k not in masks else masks[k]
              for k, leaf in enumerate(leaves))  # fmt: skip
    return jax.tree.unflatten(structure, others)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _masks(
    rule: Rule, chosen: tuple[Leaf, ...], scope: str, arrays: Sequence[Array], arguments: Any
) -> list[Bool[Array, "*_"]]:
    def sizes(leaf: Leaf, array: Shaped[Array, "*_"]) -> Float[Array, "d n"]:
        units = leaf.to_units(array, scope)
        return jnp.abs(units.astype(jnp.promote_types(units.dtype, jnp.float32)))

    units = [sizes(leaf, array) for leaf, array in zip(chosen, arrays, strict=True)]
    shapes = [unit.shape for unit in units]
    if scope == "global":
        units = [jnp.concatenate([unit.reshape(-1, 1) for unit in units])]
    ascending = [jnp.sort(unit, axis=0) for unit in units]
    counts = rule(ascending, *arguments)
    kept = [largest(*each) for each in zip(units, ascending, counts, strict=True)]
    if scope == "global":
        ends = list(itertools.accumulate(rows * columns for rows, columns in shapes))[:-1]
        parts = jnp.split(kept[0], ends)
        kept = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
    return [leaf.from_units(mask, scope) for leaf, mask in zip(chosen, kept, strict=True)]


def largest(
    sizes: Float[Array, "d n"], ascending: Float[Array, "d n"], counts: Int[Array, " n"]
) -> Bool[Array, "d n"]:
    """Where the largest entries of each column are, exactly as many as `counts` says.

    Of equal ones the first are taken.

    Arguments:
        ascending: the same columns in rising order.
        counts: between 0 and d.
    """
    rows = sizes.shape[0]
    last = jnp.clip(rows - counts, 0, rows - 1)
    least = jnp.take_along_axis(ascending, last[None], axis=0)
    above, equal = sizes > least, sizes == least
    # As few or many of the equal ones as are missing.
    missing = counts - above.sum(axis=0)
    return above | (equal & (jnp.cumsum(equal, axis=0) <= missing))
