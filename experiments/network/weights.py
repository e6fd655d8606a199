"""Weights of a network that is trained, from a file or a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.network.torch_weights import load_torch_npz
from experiments.network.weight_files import name_of, opened_weights, read_arrays


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
    leaves, structure = jax.tree_util.tree_flatten_with_path(variables)
    expected = {name_of(keys): leaf for keys, leaf in leaves}
    with opened_weights(path) as members:
        if any("/" in name for name in members):
            arrays = read_arrays(path, members, expected)
            return jax.tree.unflatten(structure, [jnp.asarray(arrays[name]) for name in expected])
    return load_torch_npz(path, variables)
