"""From batches to factors, step by step: `python -m benchmarks.pipeline`.

ResNet-56 on images of 32x32: `collect_moments` three times, then `allocate` with strategy "loss"
and `factorize_params` at three budgets, and `reestimate_batch_stats` of the last network twice. Of
every call: seconds, seconds of processor time, and programs compiled. Without a compilation cache:
unset JAX_COMPILATION_CACHE_DIR.
"""

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import tdjax
from benchmarks.timing import describe_machine
from experiments.models import CifarResNet

DEPTH = flags.DEFINE_integer("depth", 56, "Layers of the ResNet.")
IMAGES = flags.DEFINE_integer("images", 2000, "Of the ResNet.")
BATCH = flags.DEFINE_integer("batch", 100, "Images at once.")

BUDGETS = (0.5, 0.3, 0.7)
METHODS = ("svd", "tucker")
COMPILED = "/jax/core/compile/backend_compile_duration"
_compiled: list[float] = []


def timed(name: str, call: Callable[[], Any]) -> Any:
    """What a call returns, with a row of the table printed."""
    wall, used, before = time.perf_counter(), time.process_time(), len(_compiled)
    found = jax.block_until_ready(call())
    wall, used = time.perf_counter() - wall, time.process_time() - used
    own = _compiled[before:]
    print(f"| {name} | {wall:.2f} | {used:.2f} | {len(own)} | {sum(own):.2f} |", flush=True)
    return found


def resnet() -> None:
    """The rows of a ResNet."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((IMAGES.value, 32, 32, 3), np.float32)
    images = images + np.roll(images, 1, axis=(1, 2)) + np.roll(images, 2, axis=(1, 2))
    labels = rng.integers(0, 10, IMAGES.value)
    model, size = CifarResNet(DEPTH.value), BATCH.value
    batches = [
        (jnp.asarray(images[k : k + size]), jnp.asarray(labels[k : k + size]))
        for k in range(0, IMAGES.value, size)
    ]
    sample = batches[0][0]
    variables = jax.jit(model.init)(jax.random.key(1), sample[:1])
    inputs = [x for x, _ in batches]
    variables = timed(
        "as trained", lambda: tdjax.reestimate_batch_stats(model, variables, inputs[:2])
    )

    def loss_fn(outputs: Any, batch: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1])

    for turn in range(3):
        moments = timed(
            f"collect_moments {turn + 1}",
            lambda: tdjax.collect_moments(model, variables, batches, loss_fn=loss_fn),
        )
    for budget in BUDGETS:
        plan = timed(
            f"allocate {budget}",
            partial(
                tdjax.allocate, model, variables, sample, budget=budget, strategy="loss",
                methods=METHODS, moments=moments,
            ),
        )  # fmt: skip
        factors = timed(
            f"factorize_params {budget}",
            partial(
                tdjax.factorize_params,
                variables["params"],
                plan,
                moments=moments,
                correct_bias=True,
            ),
        )
    small = tdjax.factorize(model, plan)
    for turn in range(2):
        timed(
            f"reestimate_batch_stats {turn + 1}",
            lambda: tdjax.reestimate_batch_stats(small, {**variables, "params": factors}, inputs),
        )


def _heard(event: str, duration_secs: float, **_: str | int) -> None:
    if event == COMPILED:
        _compiled.append(duration_secs)


def main(_: list[str]) -> None:
    """Print the table, in Markdown."""
    warnings.filterwarnings("ignore", message="too few rows")
    jax.monitoring.register_event_duration_secs_listener(_heard)
    print(describe_machine())
    print("| call | s | processor s | compiled | s |")
    print("|---|---:|---:|---:|---:|")
    resnet()


if __name__ == "__main__":
    app.run(main)
