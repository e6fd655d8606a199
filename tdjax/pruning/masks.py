"""Masks on parameters: applied, held in training, counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from tdjax.arguments.checks import checked
from tdjax.params.tree import join_path
from tdjax.pruning.prunable import prunable
from tdjax.trace.names import names_of

if TYPE_CHECKING:
    import optax


@checked()
def apply_mask(params: Any, mask: Any) -> Any:
    """The parameters with zeros where the mask is False.

    >>> import jax.numpy as jnp, tdjax
    >>> mask = {"kernel": jnp.array([[True], [False]])}
    >>> tdjax.apply_mask({"kernel": jnp.ones((2, 1))}, mask)["kernel"].tolist()
    [[1.0], [0.0]]

    Arguments:
        params: pytree of arrays.
        mask: of the same structure, with boolean arrays of the same shapes.

    Raises ValueError for a mask that does not fit, naming the array.
    """
    return _masked(params, mask)


@checked()
def pruned_share(params: Any, mask: Any) -> float:
    """The share that goes of the weights of all kernels and embeddings, in [0, 1].

    Biases and the like do not count, whatever their mask says. Arguments and errors as
    `apply_mask`; ValueError also where there are no kernels.

    >>> import jax.numpy as jnp, tdjax
    >>> params = {"dense": {"kernel": jnp.arange(1.0, 11.0).reshape(5, 2), "bias": jnp.zeros(2)}}
    >>> tdjax.pruned_share(params, tdjax.magnitude_prune(params, 0.4))
    0.4
    """
    _check(params, mask)
    masks = jax.tree.leaves(mask)
    kernels = [masks[leaf.place] for leaf in prunable(params, None, ".*")]
    kept = sum(int(own.sum()) for own in kernels)
    return 1 - kept / sum(own.size for own in kernels)


class KeepZerosState(NamedTuple):
    """State of `keep_zeros`.

    Arguments:
        mask: pytree of boolean arrays; in the state, so that it is no constant of a program.
    """

    mask: Any


@checked()
def keep_zeros(mask: Any) -> optax.GradientTransformation:
    """Updates of zero where the mask is False: what is pruned stays so in training.

    It goes last, so that momentum and weight decay change nothing there either:

        optimiser = optax.chain(optax.adamw(1e-3), tdjax.keep_zeros(mask))
        state = optimiser.init(tdjax.apply_mask(params, mask))

    >>> import jax.numpy as jnp, optax, tdjax
    >>> params, mask = {"kernel": jnp.array([1.0, 0.0])}, {"kernel": jnp.array([True, False])}
    >>> optimiser = optax.chain(optax.sgd(0.5), tdjax.keep_zeros(mask))
    >>> updates, _ = optimiser.update(params, optimiser.init(params), params)
    >>> updates["kernel"].tolist()
    [-0.5, 0.0]

    Arguments:
        mask: see `apply_mask`, of the parameters that are trained; or a function that makes it of
            the parameters that training starts from.

    Raises ValueError in `init` for a mask that does not fit the parameters.
    """
    import optax

    def init(params: Any) -> KeepZerosState:
        own = mask(params) if callable(mask) else mask
        _check(params, own)
        return KeepZerosState(own)

    def update(updates: Any, state: KeepZerosState, params: Any = None) -> tuple[Any, Any]:
        return _masked(updates, state.mask), state

    return optax.GradientTransformation(init, update)


def _masked(tree: Any, mask: Any) -> Any:
    _check(tree, mask)
    leaves, structure = jax.tree.flatten(tree)
    # A product would keep NaN, and the sign of zero.
    kept = (
        jnp.where(own, leaf, jnp.zeros((), leaf.dtype))
        for leaf, own in zip(leaves, jax.tree.leaves(mask), strict=True)
    )
    return jax.tree.unflatten(structure, kept)


def _check(tree: Any, mask: Any) -> None:
    # By names and not by structure: what NNX wraps arrays in differs between model and optimiser.
    shapes, masks = (
        {join_path(*names_of(path)): leaf.shape for path, leaf in jax.tree.leaves_with_path(each)}
        for each in (tree, mask)
    )
    for name in [*shapes, *masks]:
        if shapes.get(name) != masks.get(name):
            raise ValueError(
                f"the mask does not fit the parameters: at {name!r} they have shape "
                f"{shapes.get(name)}, and it {masks.get(name)}; masks are made for these parameters"
            )
