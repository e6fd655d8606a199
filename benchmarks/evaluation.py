"""Candidates evaluated side by side against one at a time: `python -m benchmarks.evaluation`.

75 kernels of one layer of ResNet-18 at 32x32. One at a time means one compiled program, called for
each kernel with the whole network inside: what a loop over candidates does. Both sides run in
turns in one process on the same images; the largest difference of their results is printed too.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import tdjax
from benchmarks.timing import describe_machine, interleaved, ratio
from experiments.models import ResNet18
from experiments.network.judge import example_scores
from tdjax.params.factorize import replace_kernel
from tdjax.params.tree import layer_params

CANDIDATES = flags.DEFINE_integer("candidates", 75, "Kernels of the layer.")
IMAGES = flags.DEFINE_integer("images", 100, "Images in the batch.")
CHUNK = flags.DEFINE_integer("chunk", 25, "Candidates at once.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed rounds of both sides.")
LAYERS = flags.DEFINE_list(
    "layers",
    ["layer1.1/conv2", "layer2.1/conv1", "layer3.1/conv1", "layer4.1/conv1", "layer4.1/conv2"],
    "Paths of the layers.",
)


def both_sides(
    path: str, candidates: int, images: int, chunk: int
) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
    """Two functions that give the cross-entropy of each candidate: side by side, one at a time."""
    keys = jax.random.split(jax.random.key(0), 4)
    model = ResNet18()
    x = jax.random.normal(keys[0], (images, 32, 32, 3))
    labels = jax.random.randint(keys[1], (images,), 0, 10)
    variables = jax.jit(model.init)(keys[2], x[:1])
    kernel = layer_params(variables["params"], path)["kernel"]
    noise = jax.random.normal(keys[3], (candidates, *kernel.shape))
    kernels = kernel + 0.1 * jnp.std(kernel) * noise

    def metric(outputs: jax.Array, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        return example_scores(outputs, batch[1])[1]

    def side_by_side() -> np.ndarray:
        return tdjax.evaluate_candidates(
            model, variables, path, kernels, [(x, labels)], metric, chunk=chunk
        )

    # Variables and images are arguments: as constants the compiler would fold the network away.
    @jax.jit
    def one(kernel: jax.Array, variables: Any, x: jax.Array) -> jax.Array:
        params = replace_kernel(variables["params"], path, kernel)
        logits = jnp.asarray(model.apply({**variables, "params": params}, x))
        return jnp.mean(metric(logits, (x, labels)))

    def one_at_a_time() -> np.ndarray:
        return np.array([float(one(kernel, variables, x)) for kernel in kernels])

    return side_by_side, one_at_a_time


def main(_: list[str]) -> None:
    """Print a row for each layer."""
    print(describe_machine())
    print(f"{CANDIDATES.value} candidates, {IMAGES.value} images, {ROUNDS.value} rounds; seconds")
    print(f"{'layer':<16} {'side by side':>20} {'one at a time':>20} {'ratio':>20}  difference")
    for path in LAYERS.value:
        fast, slow = both_sides(path, CANDIDATES.value, IMAGES.value, CHUNK.value)
        gap = float(np.max(np.abs(fast() - slow())))
        a, b = interleaved([fast, slow], ROUNDS.value)
        print(f"{path:<16} {a!s:>20} {b!s:>20} {ratio(b, a)!s:>20}  {gap:.1e}", flush=True)


if __name__ == "__main__":
    app.run(main)
