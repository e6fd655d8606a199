"""Weights of a PyTorch network, kept as an npz file, as the variables of a Linen model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tdjax.files import Member, one_line, opened_npz

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


class WeightsError(ValueError):
    """A file of weights that is missing, damaged or another network's; the message names it."""


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

    Raises WeightsError, a ValueError which names the file, where it is missing or damaged, lacks
    an array or has one too many, and for an array of another shape, of no floating-point dtype or
    with NaN or Inf; ValueError for variables of another kind than those above.

    Source: the documentation of `torch.nn.Conv2d`, `torch.nn.Linear` and `torch.nn.BatchNorm2d`.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(variables)
    names = [_torch_name(_keys(path)) for path, _ in leaves]
    counters = {_sibling(name, COUNTER) for name in names if name.endswith("running_mean")}
    kernels = [_keys(path)[-1] == "kernel" for path, _ in leaves]
    shapes = {
        name: _torch_shape(leaf, is_kernel)
        for name, (_, leaf), is_kernel in zip(names, leaves, kernels, strict=True)
    }
    arrays = _read(path, shapes, counters)
    loaded = [
        _translated(path, name, arrays[name], leaf, is_kernel)
        for name, (_, leaf), is_kernel in zip(names, leaves, kernels, strict=True)
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
    path: str | os.PathLike[str], expected: Mapping[str, tuple[int, ...]], ignored: set[str]
) -> dict[str, np.ndarray]:
    """The arrays of these names and shapes; none is read before all of them are known to fit."""
    try:
        with opened_npz(path) as members:
            _check_names(path, set(expected), set(members), ignored)
            for name, shape in expected.items():
                _check_member(path, name, members[name], shape)
            return {name: members[name].read() for name in sorted(expected)}
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    # Damaged archives fail in the reader with nearly any type of exception.
    except Exception as error:
        raise WeightsError(
            f"{path}: not a whole npz file of plain arrays ({type(error).__name__}: "
            f"{one_line(error)})"
        ) from error


def _check_names(
    path: str | os.PathLike[str], names: set[str], found: set[str], ignored: set[str]
) -> None:
    for problem, wrong in (
        ("lacks", names - found),
        ("holds, and the model has no place for,", found - names - ignored),
    ):
        if wrong:
            raise WeightsError(f"{path}: {problem} {_listed(wrong)}")


def _check_member(
    path: str | os.PathLike[str], name: str, member: Member, shape: tuple[int, ...]
) -> None:
    if not np.issubdtype(member.dtype, np.floating):
        raise WeightsError(f"{path}: {name} has dtype {member.dtype}; expected floating point")
    if member.shape != shape:
        raise WeightsError(f"{path}: {name} has shape {member.shape}; the model needs {shape}")


def _listed(names: set[str], most: int = 5) -> str:
    first = ", ".join(sorted(names)[:most])
    return first if len(names) <= most else f"{first} and {len(names) - most} more"


def _torch_shape(leaf: Any, is_kernel: bool) -> tuple[int, ...]:
    shape = tuple(leaf.shape)
    return (shape[-1], shape[-2], *shape[:-2]) if is_kernel else shape


def _translated(
    path: str | os.PathLike[str], name: str, array: np.ndarray, leaf: Any, is_kernel: bool
) -> jax.Array:
    # What is too large for the model's dtype becomes Inf, and is refused as such.
    with np.errstate(over="ignore"):
        cast = array.astype(leaf.dtype)
    bad = np.count_nonzero(~np.isfinite(cast))
    if bad:
        raise WeightsError(
            f"{path}: {name} holds {bad} values that are NaN, Inf or beyond {np.dtype(leaf.dtype)}"
        )
    return jnp.asarray(cast.transpose(*range(2, cast.ndim), 1, 0) if is_kernel else cast)
