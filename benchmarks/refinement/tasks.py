"""One compression of one network: where it starts, refined without labels, fine-tuned with them."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jaxtyping import Array, Int, UInt8

import tdjax
from benchmarks.refinement.descent import Course, descended
from benchmarks.refinement.images import standardised

# Images at a time in the decompositions, and in the test.
BATCH, MANY = 100, 1000
METHODS = {"loss": ("svd", "tucker"), "alds": ("svd",), "uniform": ("tucker", "svd")}
# The optimiser of `tdjax.refine`, and the images of its steps.
ADAM, SIZE = optax.scale_by_adam(), 32

Examples = tuple[UInt8[np.ndarray, "n h w 3"], Int[np.ndarray, " n"]]


@dataclass(frozen=True, eq=False)
class Task:
    """A trained network and its data.

    Arguments:
        chosen: images and labels of calibration.
        test: images and labels.
    """

    model: nn.Module
    variables: Any
    chosen: Examples
    test: Examples

    @property
    def batches(self) -> list[Array]:
        """The images of calibration, without labels."""
        images = self.chosen[0]
        return [standardised(images[at : at + BATCH]) for at in range(0, len(images), BATCH)]

    def choosing(self, seed: int, number: int) -> Task:
        """With so many of the chosen images, drawn without replacement."""
        images, labels = self.chosen
        rows = np.random.default_rng(seed).choice(len(images), number, replace=False)
        return replace(self, chosen=(images[rows], labels[rows]))

    def accuracy(self, model: nn.Module, variables: Any) -> float:
        """A share of the test images."""
        images, labels = self.test
        found = [
            np.asarray(_answers(model, variables, images[at : at + MANY]))
            for at in range(0, len(images), MANY)
        ]
        return float(np.mean(np.concatenate(found) == labels))

    def digest(self) -> str:
        """By which the network and its test are known again."""
        found = hashlib.sha256()
        for array in (*jax.tree.leaves(self.variables), *self.test):
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()[:12]


@partial(jax.jit, static_argnums=0)
def _answers(model: nn.Module, variables: Any, images: Array) -> Array:
    return model.apply(variables, standardised(images)).argmax(axis=-1)  # type: ignore[union-attr]


@dataclass(frozen=True, eq=False)
class Small:
    """A compressed network."""

    plan: tdjax.Plan
    model: nn.Module
    variables: Any

    @property
    def kept(self) -> float:
        """Share of the parameters."""
        return self.plan.size / self.plan.size_before


def collected(task: Task, temperature: float) -> Any:
    """Moments with the gradient of a loss whose labels the network draws itself.

    Arguments:
        temperature: divides the logits.
    """
    answer = jax.jit(partial(task.model.apply, task.variables))
    batches = []
    for number, images in enumerate(task.batches):
        logits = answer(images) / temperature
        batches.append((images, jax.random.categorical(jax.random.key(number), logits)))

    def loss_fn(logits: Array, batch: Any) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits / temperature, batch[1])

    return tdjax.collect_moments(task.model, task.variables, batches, loss_fn=loss_fn)


def compressed(task: Task, strategy: str, budget: float, moments: Any) -> Small:
    """The network at a share of its parameters, its batch statistics estimated again.

    Arguments:
        moments: for the plan, the factors and the biases; None for none.
    """
    plan = tdjax.allocate(
        task.model, task.variables, task.batches[0], budget=budget, strategy=strategy,
        methods=METHODS[strategy], moments=moments,
    )  # fmt: skip
    return decomposed(task, plan, moments)


def decomposed(task: Task, plan: tdjax.Plan, moments: Any) -> Small:
    """The network with the layers of a plan decomposed; see `compressed`."""
    params = tdjax.factorize_params(
        task.variables["params"], plan, moments=moments, correct_bias=moments is not None,
        key=jax.random.key(0),
    )  # fmt: skip
    model, variables = tdjax.factorize(task.model, plan), {**task.variables, "params": params}
    if "batch_stats" in variables:
        variables = tdjax.reestimate_batch_stats(model, variables, task.batches)
    return Small(plan, model, variables)


def refined(task: Task, small: Small, **options: Any) -> tuple[Any, float | None, float]:
    """The variables of a small network after refinement, its learning rate, and the seconds.

    Arguments:
        options: of `tdjax.refine`.
    """
    start = time.monotonic()
    found = tdjax.refine(
        task.model, task.variables, small.variables, small.plan, task.batches, batch_size=SIZE,
        **options,
    )  # fmt: skip
    return found.factors, found.learning_rate, time.monotonic() - start


def fine_tuned(
    task: Task, small: Small, epochs: int, rate: float, augment: bool
) -> tuple[Any, float]:
    """The variables of a small network after training with labels, and the seconds.

    From balanced factors, with the batches, the optimiser, the changes of images and the course of
    the rate that refinement has, batch statistics frozen as there. All parameters are trained,
    on all images; the last iterate is taken.
    """
    start = time.monotonic()
    params = tdjax.balance_factors(small.variables["params"], small.plan)
    course = Course(ADAM, epochs, rate, min(SIZE, len(task.chosen[0])), False, augment)
    variables = {**small.variables, "params": params}
    found = descended(f"fine-tuning at {rate:g}", small.model, course, variables, *task.chosen)
    return found, time.monotonic() - start
