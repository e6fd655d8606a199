"""What refinement gains on a trained network: `python -m benchmarks.refine --weights=FILE ...`.

ResNet-20 on CIFAR-10 is compressed to several budgets from a few unlabelled training images, and
refined on these: test accuracy before and after, seconds, and beside it fine-tuning with their
labels for as many epochs. In one line:

    python -m benchmarks.refine --weights=resnet20.npz --data=cifar-10-batches-bin --budgets=0.5,0.2
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from jaxtyping import Array

import tdjax
from benchmarks.timing import describe_machine
from experiments.data.augment import random_crop_flip
from experiments.data.cifar import read_cifar10
from experiments.models import ResNet20
from experiments.network.weights import load_weights

WEIGHTS = flags.DEFINE_string("weights", None, "npz file of a trained ResNet-20.", required=True)
DATA = flags.DEFINE_string("data", None, "Folder of CIFAR-10.", required=True)
BUDGETS = flags.DEFINE_list("budgets", ["0.5", "0.3", "0.2"], "Shares of the parameters kept.")
IMAGES = flags.DEFINE_integer("images", 2000, "For calibration, without labels.")
SUBSET = flags.DEFINE_integer("subset", 0, "Seed of the choice of these images.")
STRATEGY = flags.DEFINE_enum("plan", "loss", ["loss", "alds", "uniform"], "How ranks are chosen.")
EPOCHS = flags.DEFINE_integer("epochs", 20, "Of refinement.")
LOSS = flags.DEFINE_enum("loss", "mse", ["mse", "kl"], "Of the logits.")
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of KL.")
RATE = flags.DEFINE_float("rate", None, "Learning rate; found where it is not given.")
FEATURES = flags.DEFINE_string("features", "auto", "Modules that are matched too; empty for none.")
BLOCKS = flags.DEFINE_bool("blocks", False, "Refine block by block first.")
AUGMENT = flags.DEFINE_bool("augment", True, "Random crops and mirrored images.")
LABELS = flags.DEFINE_bool("labels", False, "Fine-tune with labels beside it.")

# Of pixels from 0 to 1, by channel.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Divides the logits of the loss whose rise plans are chosen by.
SOFT = 4.0
BATCH = 100
METHODS = {"loss": ("svd", "tucker"), "alds": ("svd",), "uniform": ("tucker", "svd")}


@dataclass(frozen=True, eq=False)
class Task:
    """A trained network and its data.

    Arguments:
        images, labels: for calibration.
        test: images and labels.
    """

    model: Any
    variables: Any
    images: Array
    labels: Array
    test: tuple[Array, Array]

    def accuracy(self, model: Any, variables: Any) -> float:
        """In percent, on the test images."""
        answer, right = jax.jit(lambda x: model.apply(variables, x).argmax(axis=1)), 0
        images, labels = self.test
        for start in range(0, len(images), 1000):
            right += int((answer(images[start : start + 1000]) == labels[start:][:1000]).sum())
        return 100 * right / len(images)


def main(_: list[str]) -> None:
    """Print a table."""
    warnings.filterwarnings("ignore", message="too few rows")
    print(describe_machine())
    task = read_task()
    moments = collected(task) if STRATEGY.value == "loss" else None
    dense = task.accuracy(task.model, task.variables)
    print(f"dense {dense:.2f} %; {len(task.images)} images, subset {SUBSET.value}\n")
    print("| kept | compressed | refined | s | learning rate | with labels |")
    print("|---:|---:|---:|---:|---:|---:|", flush=True)
    for budget in map(float, BUDGETS.value):
        print(row_of(task, budget, moments), flush=True)


def read_task() -> Task:
    """The network, and the images that the flags choose."""
    images, labels, *test = read_cifar10(DATA.value)
    chosen = np.random.default_rng(SUBSET.value).choice(len(images), IMAGES.value, replace=False)
    model, sample = ResNet20(), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = load_weights(WEIGHTS.value, jax.eval_shape(model.init, jax.random.key(0), sample))
    return Task(
        model, variables, standardised(images[chosen]), jnp.asarray(labels[chosen]),
        (standardised(test[0]), jnp.asarray(test[1])),
    )  # fmt: skip


def standardised(images: np.ndarray) -> Array:
    """Pixels of mean 0 and deviation 1."""
    return (jnp.asarray(images, jnp.float32) / 255 - jnp.asarray(MEAN)) / jnp.asarray(DEVIATION)


def collected(task: Task) -> Any:
    """Moments with the gradient of a loss whose labels the network draws itself."""
    answer = jax.jit(partial(task.model.apply, task.variables))
    batches = []
    for number, images in enumerate(batches_of(task.images)):
        drawn = jax.random.categorical(jax.random.key(number), answer(images) / SOFT)
        batches.append((images, drawn))

    def loss_fn(logits: Array, batch: Any) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits / SOFT, batch[1])

    return tdjax.collect_moments(task.model, task.variables, batches, loss_fn=loss_fn)


def batches_of(images: Array) -> list[Array]:
    """So many at a time as the decompositions take."""
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]


def row_of(task: Task, budget: float, moments: Any) -> str:
    """A row of the table."""
    images = batches_of(task.images)
    plan = tdjax.allocate(
        task.model, task.variables, images[0], budget=budget, strategy=STRATEGY.value,
        methods=METHODS[STRATEGY.value], moments=moments,
    )  # fmt: skip
    params = tdjax.factorize_params(
        task.variables["params"], plan, moments=moments, correct_bias=moments is not None
    )
    small = tdjax.factorize(task.model, plan)
    variables = tdjax.reestimate_batch_stats(small, {**task.variables, "params": params}, images)
    start = time.monotonic()
    found = tdjax.refine(
        task.model, task.variables, variables, plan, images, epochs=EPOCHS.value, loss=LOSS.value,
        temperature=TEMPERATURE.value, learning_rate=RATE.value, features=FEATURES.value or None,
        blocks="auto" if BLOCKS.value else None, augment=augmented if AUGMENT.value else None,
    )  # fmt: skip
    seconds = time.monotonic() - start
    before, after = (task.accuracy(small, own) for own in (variables, found.factors))
    labelled = ""
    if LABELS.value:
        tuned = fine_tuned(task, small, variables, found.learning_rate or 1e-3)
        labelled = f"{task.accuracy(small, tuned):.2f}"
    return (
        f"| {100 * plan.size / plan.size_before:.1f} % | {before:.2f} | {after:.2f} | "
        f"{seconds:.0f} | {found.learning_rate:.2g} | {labelled} |"
    )


def augmented(key: Array, images: Array) -> Array:
    """Random crops of images with a black border, every other mirrored."""
    black = -jnp.asarray(MEAN) / jnp.asarray(DEVIATION)
    return random_crop_flip(key, images, fill=black)


def fine_tuned(task: Task, small: Any, variables: Any, rate: float) -> Any:
    """The variables after as many epochs with labels, batch statistics frozen as in refinement."""
    size, number = 32, len(task.images)
    steps = EPOCHS.value * (number // size)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    params, state = variables["params"], optimizer.init(variables["params"])

    @jax.jit
    def step(params: Any, state: Any, rows: Array, key: Array) -> tuple[Any, Any]:
        images, labels = task.images[rows], task.labels[rows]
        images = augmented(key, images) if AUGMENT.value else images

        def loss(params: Any) -> Array:
            logits = small.apply({**variables, "params": params}, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for epoch in range(EPOCHS.value):
        key = jax.random.fold_in(jax.random.key(SUBSET.value), epoch)
        for rows in chunks(jax.random.permutation(key, number), size):
            params, state = step(params, state, rows, jax.random.fold_in(key, int(rows[0])))
    return {**variables, "params": params}


def chunks(rows: Array, size: int) -> Sequence[Array]:
    """Whole batches of rows; the last ones are left out."""
    whole = len(rows) // size * size
    return jnp.split(rows[:whole], whole // size)


if __name__ == "__main__":
    app.run(main)
