"""Weights of a PyTorch network, kept as an npz file, as the variables of a Linen model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Collection and name of a Linen array, and the name of its counterpart in PyTorch.
NAMES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
# Of each BatchNorm; Linen needs no such count.
COUNTER = "num_batches_tracked"


def load_torch_npz(path: str | os.PathLike[str], variables: Mapping[str, Any]) -> Any:
    """Variables of a Linen model with the arrays of a PyTorch network in place of its own.

    The modules of both have the same names: an array of "layer1.0/conv1" is called
    "layer1.0.conv1.weight" in the file, as in a `state_dict`. Meant for Conv, Dense and BatchNorm:

        Conv       weight (T, C, *window) -> kernel (*window, C, T), bias (T,)
        Dense      weight (out, in) -> kernel (in, out), bias (out,)
        BatchNorm  weight, bias -> scale, bias; running_mean, running_var -> mean, var, each (C,)

    Shapes do not show everything: a Dense after a flattened map of more than one pixel counts its
    inputs in another order in PyTorch, and a ConvTranspose has another layout there; neither is
    translated.

    Arguments:
        path: npz file of floating-point arrays; a BatchNorm's `num_batches_tracked` is ignored.
        variables: collections "params" and, if there is a BatchNorm, "batch_stats", of arrays or
            shapes, as `model.init` or `jax.eval_shape` of it gives them.

    Returns:
        A pytree of the structure, shapes and dtypes of `variables`.

    Raises ValueError, which names the file, where it is missing or damaged, lacks an array or has
    one too many, and for an array of another shape, of no floating-point dtype or with NaN or Inf;
    also for variables of another kind than those above.

    Source: the documentation of `torch.nn.Conv2d`, `torch.nn.Linear` and `torch.nn.BatchNorm2d`.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(variables)
    names = [_torch_name(_keys(path)) for path, _ in leaves]
    counters = {_sibling(name, COUNTER) for name in names if name.endswith("running_mean")}
    arrays = _read(path, set(names), counters)
    loaded = [
        _translated(path, name, arrays[name], leaf, is_kernel=_keys(at)[-1] == "kernel")
        for name, (at, leaf) in zip(names, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, loaded)


def _keys(path: tuple[Any, ...]) -> tuple[str, ...]:
    # A box around an array adds an entry of another kind to its path.
    return tuple(str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey))


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


def _read(
    path: str | os.PathLike[str], names: set[str], ignored: set[str]
) -> dict[str, np.ndarray]:
    found: set[str] = set()
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as content:
            found = set(content.files)
            arrays = {name: np.asarray(content[name]) for name in sorted(names & found)}
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    # Damaged archives fail in the reader with nearly any type of exception.
    except Exception as error:
        raise ValueError(
            f"{path}: not a whole npz file of plain arrays ({type(error).__name__}: {error})"
        ) from error
    for problem, wrong in (
        ("lacks", names - found),
        ("holds, and the model has no place for,", found - names - ignored),
    ):
        if wrong:
            raise ValueError(f"{path}: {problem} {_listed(wrong)}")
    return arrays


def _listed(names: set[str], most: int = 5) -> str:
    first = ", ".join(sorted(names)[:most])
    return first if len(names) <= most else f"{first} and {len(names) - most} more"


def _translated(
    path: str | os.PathLike[str], name: str, array: np.ndarray, leaf: Any, is_kernel: bool
) -> jax.Array:
    shape = tuple(leaf.shape)
    expected = (shape[-1], shape[-2], *shape[:-2]) if is_kernel else shape
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{path}: {name} has dtype {array.dtype}; expected floating point")
    if array.shape != expected:
        raise ValueError(f"{path}: {name} has shape {array.shape}; the model needs {expected}")
    # What is too large for the model's dtype becomes Inf, and is refused as such.
    with np.errstate(over="ignore"):
        cast = array.astype(leaf.dtype)
    bad = np.count_nonzero(~np.isfinite(cast))
    if bad:
        raise ValueError(
            f"{path}: {name} holds {bad} values that are NaN, Inf or beyond {np.dtype(leaf.dtype)}"
        )
    return jnp.asarray(cast.transpose(*range(2, cast.ndim), 1, 0) if is_kernel else cast)
