"""Weights of a PyTorch network, kept as an npz file, as the variables of a Linen model."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.network.weight_files import keys_of, opened_weights, read_arrays

# Collection and name of a Linen array, and the name of its counterpart in PyTorch.
NAMES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "embedding"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
NOTE = "; names without '/' are taken for those of a PyTorch network"
# Of each BatchNorm; Linen needs no such count.
COUNTER = "num_batches_tracked"


def load_torch_npz(
    path: str | os.PathLike[str], variables: Mapping[str, Any], ignored: Collection[str] = ()
) -> Any:
    """Variables of a Linen model with the arrays of a PyTorch network in place of its own.

    The modules of both have the same names: an array of "layer1.0/conv1" is called
    "layer1.0.conv1.weight" in the file, as in a `state_dict`. Meant for Conv, Dense, Embed,
    LayerNorm and BatchNorm:

        Conv       weight (T, C, *window) -> kernel (*window, C, T), bias (T,)
        Dense      weight (out, in) -> kernel (in, out), bias (out,)
        Embed      weight (number, width) -> embedding (number, width)
        LayerNorm  weight, bias -> scale, bias, each (C,)
        BatchNorm  weight, bias -> scale, bias; running_mean, running_var -> mean, var, each (C,)

    Shapes do not show everything: a Dense after a flattened map of more than one pixel counts its
    inputs in another order in PyTorch, and a ConvTranspose has another layout there; neither is
    translated.

    Arguments:
        path: npz or safetensors file of floating-point arrays; a BatchNorm's `num_batches_tracked`
            is ignored.
        variables: collections "params" and, if there is a BatchNorm, "batch_stats", of arrays or
            shapes, as `model.init` or `jax.eval_shape` of it gives them.
        ignored: names of further arrays that the file may hold.

    Returns:
        A pytree of the structure, shapes and dtypes of `variables`.

    Raises WeightsError, a ValueError which names the file, where it is missing or damaged, lacks
    an array or has one too many, and for an array of another shape, of no floating-point dtype or
    with NaN or Inf; ValueError for variables of another kind than those above.

    Source: the documentation of `torch.nn.Conv2d`, `torch.nn.Linear`, `torch.nn.Embedding`,
    `torch.nn.LayerNorm` and `torch.nn.BatchNorm2d`.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(variables)
    names = [_torch_name(keys_of(path)) for path, _ in leaves]
    counters = {_sibling(name, COUNTER) for name in names if name.endswith("running_mean")}
    kernels = [keys_of(path)[-1] == "kernel" for path, _ in leaves]
    shapes = {
        name: _torch_shape(leaf, is_kernel)
        for name, (_, leaf), is_kernel in zip(names, leaves, kernels, strict=True)
    }
    with opened_weights(path) as members:
        arrays = read_arrays(path, members, shapes, {*counters, *ignored}, NOTE)
    loaded = [
        _translated(arrays[name], is_kernel) for name, is_kernel in zip(names, kernels, strict=True)
    ]
    return jax.tree.unflatten(structure, loaded)


def _torch_name(keys: tuple[str, ...]) -> str:
    known = (keys[0], keys[-1])
    if known not in NAMES:
        raise ValueError(
            f"variable {'/'.join(keys)}: its name in PyTorch is not known; known are those of "
            f"{', '.join('/'.join(pair) for pair in NAMES)}"
        )
    return ".".join((*keys[1:-1], NAMES[known]))


def _sibling(name: str, other: str) -> str:
    return ".".join((*name.split(".")[:-1], other))


def _torch_shape(leaf: Any, is_kernel: bool) -> jax.ShapeDtypeStruct:
    shape = tuple(leaf.shape)
    shape = (shape[-1], shape[-2], *shape[:-2]) if is_kernel else shape
    return jax.ShapeDtypeStruct(shape, leaf.dtype)


def _translated(array: np.ndarray, is_kernel: bool) -> jax.Array:
    return jnp.asarray(array.transpose(*range(2, array.ndim), 1, 0) if is_kernel else array)
