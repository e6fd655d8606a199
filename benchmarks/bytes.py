"""Budgets in bytes beside rank alone and integers alone: `python -m benchmarks.bytes`.

A small convolutional network is trained on the digits that scikit-learn holds. For each share of
its float32 bytes, one line for what layers may be stored in: the bytes of the plan, the rise of the
loss that the moments predict, and cross entropy and accuracy of the compressed network on held-out
digits, without fine-tuning. "together" is ranks and numbers chosen together.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import nnx
from sklearn.datasets import load_digits

import tdjax

BUDGETS = flags.DEFINE_list("budgets", ["0.5", "0.25", "0.125", "0.08"], "Shares of the bytes.")
EPOCHS = flags.DEFINE_integer("epochs", 15, "Of training.")
SEED = flags.DEFINE_integer("seed", 0, "Of the network and of the order of the digits.")

NUMBERS: dict[str, tuple[str, ...] | None] = {
    "float32": ("float32",),
    "bfloat16": ("bfloat16",),
    "int8": ("int8",),
    "int4": ("int4",),
    "together": None,
}
TRAINED, BATCH = 1400, 100


class Digits(nnx.Module):
    """Two convolutions and two dense layers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Their kernels."""
        self.first = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.second = nnx.Conv(32, 64, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(256, 128, rngs=rngs)
        self.head = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """Logits of images of 64 numbers."""
        x = nnx.relu(self.first(x.reshape(-1, 8, 8, 1)))
        x = nnx.relu(self.second(nnx.max_pool(x, (2, 2), (2, 2))))
        x = nnx.max_pool(x, (2, 2), (2, 2)).reshape(len(x), -1)
        return self.head(nnx.relu(self.dense(x)))


def _losses(logits: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


@nnx.jit
def _step(model: Digits, optimizer: nnx.Optimizer, x: Any, y: Any) -> None:
    gradient = nnx.grad(lambda own: _losses(own(x), y).mean())(model)
    optimizer.update(model, gradient)


def trained(x: Any, y: Any) -> Digits:
    """The network after so many epochs."""
    model = Digits(nnx.Rngs(SEED.value))
    optimizer = nnx.Optimizer(model, optax.adam(2e-3), wrt=nnx.Param)
    for _ in range(EPOCHS.value):
        for start in range(0, len(x), BATCH):
            _step(model, optimizer, x[start : start + BATCH], y[start : start + BATCH])
    return model


def main(_: Any) -> None:
    """Train, compress, and print the table."""
    digits = load_digits()
    order = np.random.default_rng(SEED.value).permutation(len(digits.target))
    x = jnp.asarray(digits.data[order] / 16, jnp.float32)
    y = jnp.asarray(digits.target[order])
    model = trained(x[:TRAINED], y[:TRAINED])

    def score(own: Digits) -> str:
        logits = own(x[TRAINED:])
        right = (logits.argmax(axis=1) == y[TRAINED:]).mean()
        return f"{_losses(logits, y[TRAINED:]).mean():13.4f} {100 * right:8.1f} %"

    batches = [(x[k : k + 200], y[k : k + 200]) for k in range(0, TRAINED, 200)]
    moments = tdjax.collect_moments(
        model, batches, loss_fn=lambda logits, batch: _losses(logits, batch[1])
    )
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, seed {SEED.value}")
    print("budget stored in    bytes  predicted rise cross entropy accuracy")
    print(f"{1:6} {'dense':9} {'':8} {'':15} {score(model)}")
    for budget in map(float, BUDGETS.value):
        for name, dtypes in NUMBERS.items():
            try:
                curve = tdjax.budget_curve(
                    model, x[:2], [budget], moments=moments, cost="bytes",
                    methods=("svd", "tucker"), dtypes=dtypes,
                )  # fmt: skip
            except ValueError as error:
                print(f"{budget:6} {name:9} {error}")
                continue
            (plan,) = curve.plans
            small = tdjax.factorize(model, plan, moments=moments, correct_bias=True)
            print(f"{budget:6} {name:9} {plan.bytes:8,} {curve.rises[0]:15.3g} {score(small)}")


if __name__ == "__main__":
    app.run(main)
