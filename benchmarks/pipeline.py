"""From batches to factors, step by step: `python -m benchmarks.pipeline`.

ResNet-56 on images of 32x32: `collect_moments` three times, then `allocate` with strategy "loss"
and `factorize_params` at three budgets, and `reestimate_batch_stats` of the last network twice.
ViT-B/16 (`--network=vit`), with moments made up: factors in the Frobenius and in the Kronecker
norm, and plans by "energy" and "loss". Of every call: seconds, seconds of processor time, and
programs compiled. Without a compilation cache: unset JAX_COMPILATION_CACHE_DIR.
"""

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from jaxtyping import Array, Float

import tdjax
from benchmarks.timing import describe_machine
from experiments.models import CifarResNet
from tdjax.moments.collect import LayerMoments

NETWORK = flags.DEFINE_enum("network", "resnet", ["resnet", "vit"], "What is compressed.")
DEPTH = flags.DEFINE_integer("depth", 56, "Layers of the ResNet.")
IMAGES = flags.DEFINE_integer("images", 2000, "Of the ResNet.")
BATCH = flags.DEFINE_integer("batch", 100, "Images at once.")
BLOCKS = flags.DEFINE_integer("blocks", 12, "Of the ViT.")

BUDGETS = (0.5, 0.3, 0.7)
METHODS = ("svd", "tucker")
COMPILED = "/jax/core/compile/backend_compile_duration"
_compiled: list[float] = []


class EncoderBlock(nn.Module):
    """A block of a vision transformer, its attention by four matrices."""

    heads: int = 12

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Tokens to tokens."""
        width = x.shape[-1]
        y = nn.LayerNorm(name="ln1")(x)
        heads = (*y.shape[:-1], self.heads, width // self.heads)
        query, key, value = (
            nn.Dense(width, name=name)(y).reshape(heads) for name in ("query", "key", "value")
        )
        y = nn.dot_product_attention(query, key, value).reshape(x.shape)
        x = x + nn.Dense(width, name="out")(y)
        y = nn.Dense(4 * width, name="mlp1")(nn.LayerNorm(name="ln2")(x))
        return x + nn.Dense(width, name="mlp2")(nn.gelu(y))


class VisionTransformer(nn.Module):
    """ViT-B/16 without its classifier."""

    blocks: int = 12
    width: int = 768

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        """Images to features."""
        x = nn.Conv(self.width, (16, 16), (16, 16), name="patches")(x)
        x = x.reshape(len(x), -1, self.width)
        for block in range(self.blocks):
            x = EncoderBlock(name=f"block{block}")(x)
        return x.mean(axis=1)


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


def vit() -> None:
    """The rows of a vision transformer."""
    model, sample = VisionTransformer(BLOCKS.value), jnp.zeros((1, 224, 224, 3))
    variables = jax.jit(model.init)(jax.random.key(0), sample)
    layers = tdjax.layer_table(model, variables, sample)
    key = jax.random.key(1)
    moments = {}
    for number, layer in enumerate(layers):
        *front, columns = layer.kernel_shape
        one, other = jax.random.split(jax.random.fold_in(key, number))
        rows = int(np.prod(front))
        moments[layer.path] = LayerMoments(
            _moment(one, rows, 1.0), jnp.zeros((1, rows)), _moment(other, columns, 1e-4),
            jnp.asarray(1e6), jnp.asarray(5e3),
        )  # fmt: skip
    for budget in BUDGETS:
        rules = [tdjax.Rule(path=".*", method="svd", compression=1 - budget)]
        plan = tdjax.make_plan(model, variables, rules, sample)
        for norm in (None, "kronecker"):
            timed(
                f"factorize_params {norm or 'frobenius'} {budget}",
                partial(
                    tdjax.factorize_params,
                    variables["params"],
                    plan,
                    norm=norm,
                    moments=moments if norm else None,
                ),
            )
    for strategy in ("energy", "loss"):
        for budget in BUDGETS:
            timed(
                f"allocate {strategy} {budget}",
                partial(
                    tdjax.allocate, model, variables, sample, budget=budget, strategy=strategy,
                    methods=METHODS, moments=moments if strategy == "loss" else None,
                ),
            )  # fmt: skip


def _moment(key: Array, size: int, scale: float) -> Float[Array, "1 d d"]:
    """Of rows whose spectrum falls by a factor of 1000, some more of them than entries."""
    first, second = jax.random.split(key)
    mix = jax.random.normal(first, (size, size)) * jnp.geomspace(1, 1e-3, size)[:, None]
    rows = jnp.matmul(jax.random.normal(second, (size + size // 2, size)), mix)
    return scale * jnp.matmul(rows.T, rows)[None] / len(rows)


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
    {"resnet": resnet, "vit": vit}[NETWORK.value]()


if __name__ == "__main__":
    app.run(main)
