"""The units of two studies, and how long each takes: for `benchmarks.processes_simulated`.

Those of `configs/digits.py` were measured, in a run of fewer networks and runs by one thread:

    python -m benchmarks.processes_units --run=WORKDIR --processor=SHARE

prints them as `benchmarks/processes_units.json` holds them, from the times in the run's
`metrics.jsonl`. Its second network compiles nothing, so the first took what it did longer to
compile. SHARE, from 0 to 1, is what the process had of a processor, its processor time over the
time on the clock; times are multiplied by it.

Those of `configs/resnet18_cifar10.py` are computed, from the epochs that `--dry-run` counts, the
multiply-accumulates of the network and a rate.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

import tdjax
from benchmarks.processes_events import Circumstances, Study, Unit
from experiments.dry_run import Work
from experiments.error_study.protocol import Protocol
from experiments.models import ResNet18
from experiments.workdir.fields import read_fields

RUN = flags.DEFINE_string("run", None, "A work directory of the digits study.")
PROCESSOR = flags.DEFINE_float("processor", 1.0, "What the run had of a processor, 0 to 1.")
FILE = Path(__file__).with_name("processes_units.json")

# What a unit is of, the coarsest first: all of the decompositions and of their fine-tuning.
GRAINS = ("layer", "method", "compression", "run")
# As it is built: decompositions by (network, layer, method), then fine-tuning by what is tuned side
# by side: on CPU a run, else all runs of a compression.
BUILT = "built"
# Examples of CIFAR-10 that are trained on, and that are measured.
TRAINED, MEASURED = 45_000, 5_000 + 10_000
# Floating-point operations a second that one accelerator sustains on small images, and seconds
# to compile the programs of a layer and method of ResNet-18, half of them for decomposing and
# measuring: all assumed.
RATE, COMPILING = 2e13, 60.0
# A step of a training goes forward and back; a multiply-accumulate is two operations.
STEP, OPERATIONS = 3, 2


def studies() -> Iterator[tuple[str, Study, Circumstances]]:
    """Each with what its units are, and how they are taken."""
    times, as_is = json.loads(FILE.read_text("utf-8")), Circumstances()
    spread = Circumstances(spread=True)
    yield "digits, units as they are built", digits(times, BUILT), as_is
    for grain in GRAINS[1:]:
        yield f"digits, {_told(grain)}", digits(times, grain), as_is
    name = "ResNet-18 on CIFAR-10"
    yield f"{name}, units as they are built", resnet18(BUILT), as_is
    for grain in GRAINS[1:]:
        yield f"{name}, {_told(grain)}", resnet18(grain), as_is
    small = f"{name}, {_told(GRAINS[2])}, spread"
    yield small, resnet18(GRAINS[2]), spread
    built = f"{name}, units as they are built"
    yield f"{built}, a network trained by 8", resnet18(BUILT, side_by_side=8), as_is
    yield f"{built}, networks trained before", resnet18(BUILT, trained=True), as_is


def _told(grain: str) -> str:
    return f"units of (network, {', '.join(GRAINS[: GRAINS.index(grain) + 1])})"


def measured(lines: Iterable[str], processor: float = 1.0) -> dict[str, Any]:
    """Times of a run of one thread and two networks, in seconds of a processor.

    "training" of a network; for each of "layers" the "decomposed" of all its choices and the
    "tuned" of each method, both [of the first network, of the second], the latter also over the
    number of records that it made.

    Arguments:
        lines: of its `metrics.jsonl`.
        processor: what the run had of one.

    Raises ValueError for a run of another kind.
    """
    if not 0 < processor <= 1:
        raise ValueError(f"--processor is {processor}: above 0, at most 1 is needed")
    records = [json.loads(line) for line in lines]
    asked = [one for one in records if one["kind"] in ("baseline", "compressed", "finetuned")]
    starts = [one for one in records if one["kind"] == "environment"]
    if len(starts) != 1 or {one.get("network") for one in asked} != {0, 1}:
        raise ValueError("a run of two networks, all at once, is needed")
    # Several threads would take turns, and a time be that of another's record.
    if not starts[0]["processor"].endswith(", 1 cores"):
        raise ValueError(f"a run that knows of one core is needed, not {starts[0]['processor']!r}")
    layers: dict[str, Any] = {}
    training, before, made = [], datetime.fromisoformat(starts[0]["started"]), 0
    for one in asked:
        made += 1
        if "at" not in one:
            continue
        now, number = datetime.fromisoformat(one["at"]), one["network"]
        spent, before = processor * (now - before).total_seconds(), now
        if one["kind"] == "baseline":
            training.append(spent)
        else:
            own = layers.setdefault(one["layer"], {"decomposed": [0.0, 0.0], "tuned": {}})
            if one["kind"] == "compressed":
                own["decomposed"][number] += spent
            else:
                tuned = own["tuned"].setdefault(one["method"], [0.0, 0.0, 0])
                tuned[number] += spent
                tuned[2] += made * number
        made = 0
    return {"training": training, "layers": layers}


def digits(found: Mapping[str, Any], grain: str) -> Study:
    """The study of `configs/digits.py` by measured times.

    Fine-tuning takes as long for each record of a method; decompositions, of a layer as a whole,
    are shared out to its units evenly.
    """
    from configs.digits import get_config

    protocol = read_fields(Protocol, get_config().to_dict())
    units: list[Unit] = []
    for number in range(protocol.networks):
        for layer in protocol.layers:
            own = found["layers"][layer]
            each, first = own["decomposed"][1], _more(*own["decomposed"])
            for method in protocol.methods:
                before, after, records = own["tuned"][method]
                runs = protocol.runs_of(method)
                choices = len(protocol.compressions)
                seconds = after / records * runs * choices + each / len(protocol.methods)
                compiling = _more(before, after) + first / len(protocol.methods)
                whole = Unit(number, f"{layer} {method}", seconds, compiling)
                if grain == BUILT:
                    share = each / len(protocol.methods) / seconds
                    compiled = first / len(protocol.methods) / compiling if compiling else 0.0
                    # One is fine-tuned at a time.
                    units += _built(whole, len(units), share, compiled, choices * runs)
                else:
                    units += _cut(whole, grain, choices, runs)
    if grain == GRAINS[0]:
        units = _merged(units, len(protocol.methods))
    # The second network compiles nothing.
    seconds = found["training"][1]
    compiling = _more(*found["training"])
    trainings = [Unit(k, "training", seconds, compiling) for k in range(protocol.networks)]
    kept = seconds * protocol.checkpoint_every / protocol.train.epochs
    return Study("digits", tuple(trainings), tuple(units), kept)


def resnet18(
    grain: str, *, rate: float = RATE, side_by_side: int = 1, trained: bool = False
) -> Study:
    """The study of `configs/resnet18_cifar10.py` by its operations.

    Fine-tuning multiplies kernels out, and so takes as long whatever layer and ranks.
    Decompositions are left out: 100 sweeps of CP over the largest kernel, 3x3 of 512 x 512
    channels, have about a thousandth of the operations that follow.

    Arguments:
        rate: floating-point operations a second.
        side_by_side: accelerators that a network is trained on, at full efficiency.
        trained: whether the networks are there already.
    """
    from configs.resnet18_cifar10 import get_config

    protocol = read_fields(Protocol, get_config().to_dict())
    work = Work(protocol.train.epochs, protocol.finetune.epochs, 0.0, MEASURED / (STEP * TRAINED))
    epoch = TRAINED * STEP * OPERATIONS * multiply_accumulates() / rate
    choices, units = len(protocol.compressions), list[Unit]()
    for number in range(protocol.networks):
        for layer in protocol.layers:
            for method in protocol.methods:
                runs = protocol.runs_of(method)
                record = epoch * (work.of("compressed") + work.of("finetuned"))
                whole = Unit(number, f"{layer} {method}", record * runs * choices, COMPILING)
                if grain == BUILT:
                    share = work.of("compressed") / (work.of("compressed") + work.of("finetuned"))
                    units += _built(whole, len(units), share, 0.5, choices)
                else:
                    units += _cut(whole, grain, choices, runs)
    if grain == GRAINS[0]:
        units = _merged(units, len(protocol.methods))
    seconds = epoch * (work.train + work.of("baseline")) / side_by_side
    training = Unit(0, "training", seconds, COMPILING)
    if trained:
        training = Unit(0, "training", 0.0)
    trainings = [training._replace(network=k) for k in range(protocol.networks)]
    kept = seconds * protocol.checkpoint_every / protocol.train.epochs
    return Study("resnet18", tuple(trainings), tuple(units), 0.0 if trained else kept)


def multiply_accumulates() -> int:
    """Of ResNet-18 for one image of CIFAR-10, from shapes."""
    model, image = ResNet18(), jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return int(sum(layer.macs for layer in tdjax.layer_table(model, variables, image)))


def _more(first: float, again: float) -> float:
    return max(0.0, first - again)


def _cut(whole: Unit, grain: str, choices: int, runs: int) -> list[Unit]:
    """Those of a (network, layer, method); they share its programs."""
    parts = {GRAINS[2]: choices, GRAINS[3]: choices * runs}.get(grain, 1)
    return [whole._replace(seconds=whole.seconds / parts)] * parts


def _built(whole: Unit, place: int, share: float, compiled: float, parts: int) -> list[Unit]:
    """The decomposition of a (network, layer, method), and its fine-tuning in equal parts.

    Arguments:
        place: of the first of these units among all.
        share: of the seconds, what decomposing and measuring take; `compiled` of the compiling.
    """
    first = whole._replace(
        program=f"{whole.program}, decomposed",
        seconds=whole.seconds * share,
        compiling=whole.compiling * compiled,
    )
    tuned = whole._replace(
        seconds=whole.seconds * (1 - share) / parts,
        compiling=whole.compiling * (1 - compiled),
        needs=place,
    )
    return [first, *[tuned] * parts]


def _merged(units: list[Unit], number: int) -> list[Unit]:
    """Each so many neighbours as one."""
    return [
        Unit(
            some[0].network,
            some[0].program,
            sum(unit.seconds for unit in some),
            sum(unit.compiling for unit in some),
        )
        for some in (units[k : k + number] for k in range(0, len(units), number))
    ]


def main(_: list[str]) -> None:
    """Print the times of a run."""
    if RUN.value is None:
        raise app.UsageError("--run is needed")
    lines = (Path(RUN.value) / "metrics.jsonl").read_text("utf-8").splitlines()
    print(json.dumps(measured(lines, PROCESSOR.value), indent=1))


if __name__ == "__main__":
    app.run(main)
