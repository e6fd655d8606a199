"""Budgets in time: predicted beside measured seconds, and accuracy: `python -m benchmarks.times`.

ResNet-18 on one image of 224x224, compressed to shares of its time, of its parameters and of its
multiply-accumulates, with factors drawn at random, as numbers do not change the time:

    python -m benchmarks.times --timings=resnet18.json

A trained ResNet-20 on images of CIFAR-10, with the accuracy that is left at that time:

    python -m benchmarks.times --network=resnet20 --batch=8 --timings=resnet20.json \
        --weights=resnet20.npz --data=cifar-10-batches-bin

The timings are taken where their file is missing, which takes minutes. Each network then runs in
turns with the dense one. Plans by time, and those with "timed" in their names, know the timings;
the others are what `tdjax.allocate` gives without any, in the ways of its rule.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import app, flags

import tdjax
from benchmarks.refinement.networks import network_of
from benchmarks.refinement.tasks import Small, Task, collected, decomposed
from benchmarks.timing import Timing, describe_machine, interleaved, ratio
from experiments.data.cifar import read_cifar10
from experiments.models import ImageNetResNet18
from tdjax.dispatch.whole import with_drawn_factors

NETWORK = flags.DEFINE_enum("network", "resnet18", ["resnet18", "resnet20"], "What is compressed.")
BATCH = flags.DEFINE_integer("batch", 1, "Images at once.", lower_bound=1)
TIMINGS = flags.DEFINE_string("timings", None, "File of timings; taken where it is missing.")
BUDGETS = flags.DEFINE_list("budgets", ["0.7", "0.5", "0.35"], "Shares kept.")
ROUNDS = flags.DEFINE_integer("rounds", 20, "Timed rounds of all networks.")
WEIGHTS = flags.DEFINE_string("weights", None, "npz file of the trained ResNet-20.")
DATA = flags.DEFINE_string("data", None, "Folder of CIFAR-10.")
IMAGES = flags.DEFINE_integer("images", 2000, "For moments, without labels.")
TEMPERATURE = flags.DEFINE_float("temperature", 4.0, "Divides the logits of the loss.")

Plans = dict[str, tdjax.Plan]
# Formats whose losses are known for all ranks at once.
METHODS = ("svd", "tucker")
# Options of plans, by name; without moments and with.
DRAWN: Mapping[str, dict[str, Any]] = {
    "energy/time": {"strategy": "energy", "cost": "time"},
    "energy/params, timed": {"strategy": "energy"},
    "uniform svd, timed": {"strategy": "uniform", "methods": ("svd",)},
    "uniform tucker, timed": {"strategy": "uniform", "methods": ("tucker",)},
    "energy/params": {"strategy": "energy"},
    "energy/macs": {"strategy": "energy", "cost": "macs"},
}
TRAINED: Mapping[str, dict[str, Any]] = {
    "loss/time": {"strategy": "loss", "cost": "time", "methods": (*METHODS, "cp")},
    "loss/params, timed": {"strategy": "loss"},
    "loss/params": {"strategy": "loss"},
    "loss/macs": {"strategy": "loss", "cost": "macs"},
    "alds": {"strategy": "alds", "methods": ("svd",)},
}


def timings_of(model: nn.Module, variables: Any, sample: Any) -> tdjax.Timings:
    """Those of the file, or taken now."""
    path = None if TIMINGS.value is None else Path(TIMINGS.value)
    if path is not None and path.exists():
        return tdjax.Timings.load(path)
    found = tdjax.time_layers(model, variables, sample)
    if path is not None:
        found.save(path)
    return found


def plans_of(
    model: nn.Module, variables: Any, sample: Any, timings: tdjax.Timings, moments: Any
) -> Plans:
    """All plans, by name and budget."""
    found = {}
    for budget in map(float, BUDGETS.value):
        for name, options in (DRAWN if moments is None else TRAINED).items():
            knows = name.endswith("timed") or options.get("cost") == "time"
            own = {"methods": METHODS, **options, "timings": timings if knows else None}
            if options["strategy"] == "loss":
                own["moments"] = moments
            try:
                plan = tdjax.allocate(model, variables, sample, budget=budget, **own)
            except ValueError as error:
                print(f"{name} {budget:.0%}: {error}", flush=True)
                continue
            found[f"{name} {budget:.0%}"] = plan
    return found


def call_of(model: nn.Module, variables: Any, x: jax.Array) -> Any:
    """A call of a network, compiled when it is first made."""
    return partial(jax.jit(model.apply), variables, x)


def row(
    name: str, plan: tdjax.Plan, timed: float, dense: Timing, own: Timing, accuracy: float | None
) -> str:
    """A row of the table; `timed`: seconds of the dense network among the timings."""
    predicted = "" if plan.seconds is None else f"{1e3 * plan.seconds:.3g}"
    # Beside the dense network in the same rounds: how fast the machine is by then does not count.
    share = ratio(own, dense).median
    off = "" if plan.seconds is None else f"{plan.seconds / timed / share:.2f}"
    cells = [
        name, f"{plan.size / plan.size_before:.1%}", f"{float(plan.macs / plan.macs_before):.1%}",
        predicted, f"{1e3 * own.median:.3g} [{1e3 * min(own.seconds):.3g}]", off,
        str(ratio(dense, own)), "" if accuracy is None else f"{accuracy:.2%}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def drawn() -> None:
    """The rows of a network without numbers of its own."""
    model = ImageNetResNet18()
    x = jax.random.normal(jax.random.key(0), (BATCH.value, 224, 224, 3))
    variables = jax.jit(model.init)(jax.random.key(1), x[:1])
    timings = timings_of(model, variables, x)
    plans = plans_of(model, variables, x, timings, None)
    small = {
        name: Small(own, *with_drawn_factors(model, variables, own)) for name, own in plans.items()
    }
    table(timings, call_of(model, variables, x), small, x, {})


def trained() -> None:
    """The rows of a trained network."""
    images, labels, *test = read_cifar10(str(DATA.value))
    model, variables = network_of("resnet20", WEIGHTS.value, None, images, labels)
    whole = Task(model, variables, (images, labels), (test[0], test[1]))
    task = whole.choosing(0, IMAGES.value)
    moments = collected(task, TEMPERATURE.value)
    x = task.batches[0][: BATCH.value]
    timings = timings_of(model, variables, x)
    plans = plans_of(model, variables, x, timings, moments)
    small = {name: decomposed(task, own, moments) for name, own in plans.items()}
    accuracies = {name: task.accuracy(own.model, own.variables) for name, own in small.items()}
    print(f"dense: {task.accuracy(model, variables):.2%} of the test images")
    table(timings, call_of(model, variables, x), small, x, accuracies)


def table(
    timings: tdjax.Timings,
    dense: Any,
    small: Mapping[str, Small],
    x: jax.Array,
    accuracies: Mapping[str, float],
) -> None:
    """Time each network in turns with the dense one, and print its row."""
    rest = timings.rest / timings.network
    print(
        f"batch {len(x)}; dense {1e3 * timings.network:.3g} ms when timed, {rest:.0%} of it in no "
        f"layer; median [least] of {ROUNDS.value} rounds of each plan beside the dense network\n"
    )
    header = [
        "plan", "params", "MACs", "predicted ms", "measured ms", "predicted / measured",
        "times as fast", "accuracy",
    ]  # fmt: skip
    print(f"| {' | '.join(header)} |")
    print(f"|{'---|' * len(header)}")
    for name, own in small.items():
        # Two at a time: where many take turns, each finds the caches empty.
        call = call_of(own.model, own.variables, jnp.asarray(x))
        before, after = interleaved([dense, call], ROUNDS.value)
        found = accuracies.get(name)
        print(row(name, own.plan, timings.network, before, after, found), flush=True)


def main(_: list[str]) -> None:
    """Print the table, in Markdown."""
    warnings.filterwarnings("ignore", message="too few rows")
    print(describe_machine(), flush=True)
    (drawn if NETWORK.value == "resnet18" else trained)()


if __name__ == "__main__":
    app.run(main)
