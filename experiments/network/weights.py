"""Weights of a network that is trained, from a file or a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.network.torch_weights import load_torch_npz
from experiments.network.weight_files import opened_weights, read_arrays
from tdjax.params.tree import join_path
from tdjax.trace.names import Names, names_of


def load_weights(path: str | os.PathLike[str], variables: Mapping[str, Any]) -> Any:
    """Variables of a Linen model with the arrays of a file in place of its own.

    Arrays are named by their place in the variables, joined by '/': "params/Dense_0/kernel",
    "batch_stats/BatchNorm_0/mean". A file without any such name is a PyTorch network's, see
    `load_torch_npz`. All are cast to the dtypes of the model.

    Arguments:
        path: an npz file; a file that ends in ".safetensors", for which that package is needed;
            or the folder of an Orbax checkpoint of the variables.
        variables: arrays or shapes, as `model.init` or `jax.eval_shape` of it gives them.

    Raises WeightsError, a ValueError in one line that names the file, where it is missing or
    damaged, lacks an array or has one too many, and for an array of another shape or with NaN.
    """
    with opened_weights(path) as members:
        ours = any("/" in name for name in members)
    if not ours:
        return load_torch_npz(path, variables)
    return load_arrays(path, variables, note=f"; names begin with {' or '.join(variables)}")


def load_arrays(
    path: str | os.PathLike[str],
    tree: Any,
    named: Callable[[Names], str] = lambda names: join_path(*names),
    kept: Collection[str] = (),
    note: str = "",
) -> Any:
    """A pytree with the arrays of a file in place of its own, see `load_weights`.

    Arguments:
        tree: of arrays; or of shapes where none is kept.
        named: the name that a file has for an array, of the names along its path.
        kept: names of arrays that stay as they are, whether the file holds them or not.
        note: on the names, for messages.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    own = {named(names_of(keys)): leaf for keys, leaf in leaves}
    expected = {name: leaf for name, leaf in own.items() if name not in kept}
    with opened_weights(path) as members:
        found: dict[str, Any] = dict(read_arrays(path, members, expected, kept, note))
    return jax.tree.unflatten(
        structure, [jnp.asarray(found[name]) if name in found else own[name] for name in own]
    )
