"""Second moments against a forward pass: `python -m benchmarks.moments`.

A batch of ResNet-18 at 32x32: the forward pass alone; with the sums of all layers' input moments,
which one batch adds to `tdjax.collect_moments`; and with those of the output gradients too, beside
a forward and a backward pass.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from benchmarks.timing import describe_machine, interleaved, matmul_rate, ratio
from experiments.models import ResNet18
from tdjax.linen.table import plain, trace
from tdjax.moments.losses import Given, Turn
from tdjax.moments.sums import batch_sums, summed_calls
from tdjax.trace.call import Reading, split_arrays

BATCH = flags.DEFINE_integer("batch", 100, "Images at once.")
ROUNDS = flags.DEFINE_integer("rounds", 10, "Timed rounds of all sides.")


def main(_: list[str]) -> None:
    """Print seconds and ratios."""
    warnings.filterwarnings("ignore", message="too few rows")
    print(describe_machine())
    print(f"float32 matrix product: {matmul_rate() / 1e9:.0f} GFLOP/s")
    model = ResNet18()
    x = jax.random.normal(jax.random.key(0), (BATCH.value, 32, 32, 3))
    y = jnp.arange(BATCH.value) % 10
    variables = jax.jit(model.init)(jax.random.key(1), x[:1])

    def loss_fn(outputs: Any, batch: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1])

    def loss(variables: Any) -> jax.Array:
        return loss_fn(model.apply(variables, x), (x, y)).sum()

    traced = trace(model, variables, x)
    asked = summed_calls(traced, set(traced.layers))
    leaves = jax.tree.leaves(plain(variables))
    arrays, frame = split_arrays((x, y))
    reading = Reading(first=True)
    losses = (None, Given(loss_fn))
    inputs, both = (batch_sums(traced, asked, frame, fn, reading) for fn in losses)
    turn = Turn(None, np.zeros(2, np.int32))
    forward, gradient = jax.jit(model.apply), jax.jit(jax.grad(loss))
    names = ("forward", "with input moments", "forward and backward", "with both moments")
    times = interleaved(
        [
            lambda: forward(variables, x),
            lambda: inputs(leaves, arrays, turn),
            lambda: gradient(variables),
            lambda: both(leaves, arrays, turn),
        ],
        ROUNDS.value,
    )
    print(f"batch {BATCH.value}; median [least, most] of {ROUNDS.value} rounds\n")
    print("| a batch | s | forward passes |")
    print("|---|---:|---:|")
    for name, time in zip(names, times, strict=True):
        print(f"| {name} | {time} | {ratio(time, times[0])} |")


if __name__ == "__main__":
    app.run(main)
