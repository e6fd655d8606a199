"""Factorised networks on disk, of all module systems."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar, overload

import jax
from flax import nnx

import tdjax.params.saving
from tdjax.arguments.described import described
from tdjax.nnx.saving import restored, variables_of
from tdjax.params.leaves import like_tree, of_leaves
from tdjax.params.tree import mappings
from tdjax.plan.plan import Plan

# An NNX model, Linen's variables or parameters, or a function's parameters.
Tree = TypeVar("Tree")


def save_factorised(folder: str | os.PathLike[str], params: Any, plan: Any) -> None:
    """Write a factorised network and its plan as one, in place of what was saved there before.

    A kill at any moment leaves either the old network or the new one. With `jax.distributed` all
    processes call it, and the first one writes.

        >>> import jax.numpy as jnp, tempfile, tdjax
        >>> from flax import nnx
        >>> model, x = nnx.Linear(8, 8, rngs=nnx.Rngs(0)), jnp.ones((2, 8))
        >>> plan = tdjax.make_plan(model, [tdjax.Rule(path="", method="svd", rank=2)], x)
        >>> small, folder = tdjax.factorize(model, plan), tempfile.mkdtemp()
        >>> tdjax.save_factorised(folder, small, plan)
        >>> again, _ = tdjax.load_factorised(folder, like=model)
        >>> bool((again(x) == small(x)).all())
        True

    Arguments:
        folder: made if it is not there; it belongs to this network alone.
        params: nested mapping of arrays of any dtype, as `tdjax.factorize_params` gives it, or
            a whole dict of variables with such a "params", which sparse corrections need. Axis
            names around an array (`nn.Partitioned`, `nn.LogicallyPartitioned`) are saved with it,
            a mesh and rules are not. Or an NNX model, with its statistics and its keys and counters
            of random numbers, its state, or a pure dict of that. Of a function any pytree of
            arrays, which is saved as mappings with the names along the arrays' paths.
        plan: the plan that the parameters were factorised by.

    Raises ValueError for parameters that do not fit the plan, for a pytree of anything but
    mappings and arrays, and for a folder that holds anything else, which is not touched.
    """
    own = isinstance(plan, Plan) and of_leaves(plan)
    of_nnx = not own and (isinstance(params, (nnx.Module, nnx.State)) or _numbered(params))
    if of_nnx and isinstance(plan, Plan):
        params = variables_of(params, plan)
    tdjax.params.saving.save_factorised(folder, params, plan)


@overload
def load_factorised(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], Plan]: ...


@overload
def load_factorised(folder: str | os.PathLike[str], *, like: Tree) -> tuple[Tree, Plan]: ...


def load_factorised(folder: str | os.PathLike[str], *, like: Any = None) -> tuple[Any, Plan]:
    """Read what `save_factorised` wrote as (params, plan), or as (model, plan) like an NNX model.

    Every array comes back bit for bit, where that of `like` lies; mappings come back as dicts. What
    was saved has a digest of each array and of the plan, so that no flipped bit and no edit passes.
    What an earlier version saved has none: it is read with a warning.

        >>> import jax, jax.numpy as jnp, tempfile, tdjax
        >>> import flax.linen as nn
        >>> model, x = nn.Sequential([nn.Dense(8)]), jnp.ones((2, 8))
        >>> variables = model.init(jax.random.key(0), x)
        >>> rules = [tdjax.Rule(path="layers_0", method="svd", rank=2)]
        >>> plan = tdjax.make_plan(model, variables, rules, x)
        >>> folder, params = tempfile.mkdtemp(), tdjax.factorize_params(variables["params"], plan)
        >>> tdjax.save_factorised(folder, params, plan)
        >>> again, known = tdjax.load_factorised(folder)
        >>> known == plan, sorted(again["layers_0"])
        (True, ['bias', 'input', 'output'])

    Arguments:
        like: where the arrays go: on the devices and in the sharding of those of `like`, the
            factors of a layer that is dense in it along the axes of its kernel; where `like` has
            arrays that no device was chosen for, or is None, on the default device. None of its
            arrays is changed, and nothing is decomposed.
            An NNX model with the layers of the one that was factorised, arrays or the shapes that
            `nnx.eval_shape` gives; or the factorised one. The model that is returned is one with
            its settings and modes and the arrays that were saved. No model is made without one:
            where `like` is None, the arrays of an NNX model come back in mappings, under "params"
            and "state".
            Of Linen the variables or parameters of the model or of the factorised one, arrays or
            `jax.ShapeDtypeStruct` with a sharding; what is returned is what was saved.
            Of a function's parameters a pytree of the same structure, of dense arrays, of factors
            or of shapes, in which the arrays come back; mappings need none.

    Raises CheckpointError where nothing was saved, and for what is damaged or does not fit
    together; the message names the folder, and for parameters that do not fit the plan the layer
    with the expected and the found shape. ValueError for a `like` that does not fit.
    """
    tree, plan = tdjax.params.saving.read_factorised(folder)
    if isinstance(like, nnx.Module) and not of_leaves(plan):
        return restored(like, tree, plan), plan
    known = like is None or of_leaves(plan) or (isinstance(like, Mapping) and like)
    if not known:
        raise TypeError(
            f"load_factorised: like is {described(like)}: pass an NNX model, or variables as those "
            "that were saved"
        )
    found = tdjax.params.saving.on_devices(tree, plan, like)
    return (like_tree(like, found, plan) if like is not None and of_leaves(plan) else found), plan


def _numbered(params: Any) -> bool:
    """Whether a mapping is that of an NNX model: with numbers for keys, or keys of random ones."""
    return isinstance(params, Mapping) and any(
        not isinstance(name, str) or _is_key(leaf)
        for _, own in mappings(params)
        for name, leaf in own.items()
    )


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
