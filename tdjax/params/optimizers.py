"""The state of an optimiser across a change of the parameters, as by factorising mid-training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import optax

Path = tuple[Any, ...]
# Of more leaves that differ, the first say enough.
SHOWN = 3


def carry_optimizer_state(
    optimizer: optax.GradientTransformation, state: Any, old_params: Any, new_params: Any
) -> Any:
    """The optimiser's state for parameters some of which were replaced in mid-training.

    What it knows of a parameter (momentum, Adam's moments, accumulated gradients) is kept for
    every parameter that is at the same path with the same shape and dtype, and as
    `optimizer.init` makes it for all others: the factors. What belongs to no parameter (step
    counts of schedules and of bias corrections, injected hyperparameters) is kept.

    Adam has one count for all parameters, so its bias correction takes the factors' moments for
    old ones: their first steps are (1 - b1) / sqrt(1 - b2) times the learning rate, 3.2 with
    optax's defaults.

        params = tdjax.factorize_params(state.params, plan)
        carried = carry_optimizer_state(state.tx, state.opt_state, state.params, params)
        state = state.replace(apply_fn=small.apply, params=params, opt_state=carried)

    For an `nnx.Optimizer` see `tdjax.nnx.carry_optimizer`.

    >>> import jax.numpy as jnp, optax, tdjax
    >>> old = {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}
    >>> new = {"input": jnp.ones((8, 2)), "output": jnp.ones((2, 8)), "bias": jnp.ones(8)}
    >>> optimiser = optax.sgd(0.1, momentum=0.9)
    >>> _, state = optimiser.update(old, optimiser.init(old))
    >>> carried = tdjax.carry_optimizer_state(optimiser, state, old, new)
    >>> {name: float(own.max()) for name, own in carried[0].trace.items()}
    {'bias': 1.0, 'input': 0.0, 'output': 0.0}

    Arguments:
        optimizer: any optax transformation, also `optax.chain`, `optax.inject_hyperparams`,
            `optax.masked` and `optax.multi_transform`; masks and labels must be given as
            functions of the parameters, for a fixed tree of them fits the old ones alone.
        state: its state for `old_params`.
        old_params, new_params: pytrees of arrays (or of shapes, for the old ones) before and after.

    Raises ValueError where the state is not one of the optimiser for `old_params`, where the
    optimiser cannot take `new_params`, and where it mixes all parameters in one array, as
    `optax.flatten` does.
    """
    found = _by_path(state)
    _check_state(found, _by_path(jax.eval_shape(optimizer.init, old_params)))
    try:
        fresh = optimizer.init(new_params)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            "the optimiser does not take the new parameters; give masks and labels as functions "
            f"of the parameters, not as fixed trees ({type(error).__name__}: {error})"
        ) from error
    old, new = _by_path(old_params), _by_path(new_params)
    kept = {path for path, leaf in new.items() if path in old and _same(leaf, old[path])}

    def choose(path: Path, leaf: Any) -> Any:
        if path not in found:
            return leaf
        parameter = _parameter(path, new)
        if parameter is None and not _same(leaf, found[path]):
            raise ValueError(
                f"the optimiser's state{_text(path)} mixes all parameters in one array of shape "
                f"{_shape(found[path])}; it cannot be carried over, start with optimizer.init"
            )
        if parameter is None or parameter in kept:
            return found[path]
        return leaf

    return jax.tree_util.tree_map_with_path(choose, fresh)


def _parameter(path: Path, params: Mapping[Path, Any]) -> Path | None:
    """The parameter that a leaf of the state is about: the longest path that its own ends with.

    Optax's own `tree_map_params` asks `init` with a placeholder in place of the parameters, which
    labels and masks that are functions of the parameters need not take.
    """
    ends = (path[start:] for start in range(len(path)))
    return next((end for end in ends if end in params), None)


def _check_state(found: Mapping[Path, Any], expected: Mapping[Path, Any]) -> None:
    """Refuse a state of another optimiser or of other parameters."""
    wrong = [
        *(f"{_text(path)} is missing" for path in expected if path not in found),
        *(f"{_text(path)} is not expected" for path in found if path not in expected),
        *(
            f"{_text(path)} has shape {_shape(found[path])}, not {_shape(leaf)}"
            for path, leaf in expected.items()
            if path in found and _shape(found[path]) != _shape(leaf)
        ),
    ]
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ValueError(
            "the state is not one of this optimiser for the old parameters: "
            f"{'; '.join(wrong[:SHOWN])}{more}"
        )


def _by_path(tree: Any) -> dict[Path, Any]:
    return dict(jax.tree_util.tree_leaves_with_path(tree))


def _same(one: Any, other: Any) -> bool:
    return _shape(one) == _shape(other) and jax.numpy.result_type(one) == jax.numpy.result_type(
        other
    )


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(jax.numpy.shape(leaf))


def _text(path: Path) -> str:
    return jax.tree_util.keystr(path)
