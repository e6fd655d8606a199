"""The small networks trained, once: what a folder holds is read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from experiments.network.weights import load_weights
from tdjax.files import replacing
from tdjax.params.tree import join_path
from tdjax.trace.names import names_of

# Steps between two lines of progress.
SHOWN = 100
# Inputs and the classes that are right, of each example or of each of its places.
Labelled = tuple[Any, Any]


def cross_entropy(logits: Float[Array, "*n k"], labels: Any) -> Float[Array, " n"]:
    """Of the examples, the mean over their places."""
    found = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return found.reshape(len(found), -1).mean(axis=1)


def trained(
    model: nn.Module,
    batches: Callable[[int], Iterator[Labelled]],
    steps: int,
    rate: float,
    path: Path | None,
) -> Any:
    """Variables after AdamW with a rate that falls to zero by a cosine.

    Arguments:
        batches: of a number of steps.
        rate: at its height.
        path: file that they are read from where it is there, and written to; None for none.
    """
    (sample,) = batches(1)
    if path is not None and path.exists():
        shapes = jax.eval_shape(model.init, jax.random.key(0), sample[0])
        return load_weights(path, shapes)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps // 20), steps)
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.05)
    )
    variables = jax.jit(model.init)(jax.random.key(0), sample[0])
    state = optimiser.init(variables)
    start = time.monotonic()
    for number, (inputs, labels) in enumerate(batches(steps), 1):
        variables, state, loss = _step(model, optimiser, variables, state, inputs, labels)
        if number % SHOWN == 0 or number == steps:
            passed = time.monotonic() - start
            print(f"step {number} of {steps}: {float(loss):.3f} nats, {passed:.0f} s", flush=True)
    if path is not None:
        save(path, variables)
    return variables


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def _step(
    model: nn.Module, optimiser: Any, variables: Any, state: Any, inputs: Array, labels: Array
) -> Any:
    def loss_of(own: Any) -> Array:
        return jnp.mean(cross_entropy(model.apply(own, inputs), labels))  # type: ignore[arg-type]

    loss, gradient = jax.value_and_grad(loss_of)(variables)
    changes, state = optimiser.update(gradient, state, variables)
    return optax.apply_updates(variables, changes), state, loss


def save(path: Path, variables: Any) -> None:
    """Write variables as `load_weights` reads them; a kill leaves no file or a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    leaves = jax.tree.leaves_with_path(variables)
    arrays = {join_path(*names_of(keys)): np.asarray(leaf) for keys, leaf in leaves}
    with replacing(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
