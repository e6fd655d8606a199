"""What is asked for as runs, and the runs that are missing, measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from benchmarks.refinement.images import augmented
from benchmarks.refinement.records import START, Record, Records
from benchmarks.refinement.tasks import Small, Task, collected, compressed, fine_tuned, refined
from experiments.report.tables import percent

FOUND = "1x"


@dataclass(frozen=True)
class Asked:
    """What is measured.

    Arguments:
        network: its name.
        plan: how ranks are chosen.
        plan_temperature: divides the logits of the loss whose rise ranks are chosen by.
        images: of each subset.
        subsets: seeds of the choice of these images.
        budgets: shares of the parameters kept.
        rates: learning rates of refinement; "2x" is twice the one that "1x" finds.
        label_rates: learning rates of fine-tuning; none for no fine-tuning.
    """

    network: str
    plan: str
    plan_temperature: float
    images: int
    subsets: Sequence[int]
    budgets: Sequence[float]
    epochs: int
    loss: str
    temperature: float
    features: str
    blocks: bool
    augment: bool
    rates: Sequence[str]
    label_rates: Sequence[float]

    def __post_init__(self) -> None:
        """Refuse, with a ValueError, rates that are no numbers, or multiples of nothing."""
        for rate in self.rates:
            float(rate.removesuffix("x"))
        if self.rates[:1] != [FOUND] and any(map(_multiple, self.rates)):
            raise ValueError(f"--rate: name {FOUND} first: the others are multiples of it")

    def dense(self, digest: str) -> Record:
        """What is measured before all."""
        return {"kind": "dense", "digest": digest, "network": self.network}

    def refinements(self, digest: str) -> list[Record]:
        """All runs without labels: budget by budget for each subset."""
        shared = {
            "kind": "refined", "digest": digest, "network": self.network, "plan": self.plan,
            "plan_temperature": self.plan_temperature, "images": self.images,
            "epochs": self.epochs, "augment": self.augment, "loss": self.loss,
            "temperature": self.temperature, "features": self.features, "blocks": self.blocks,
        }  # fmt: skip
        return [
            {**shared, "subset": subset, "budget": budget, "rate": rate}
            for subset in self.subsets
            for budget in self.budgets
            for rate in self.rates
        ]

    def labelled(self, run: Record) -> list[Record]:
        """The runs with labels that stand beside one without."""
        shared = {name: run[name] for name in (*START, "epochs", "augment")}
        return [{**shared, "kind": "labelled", "rate": rate} for rate in self.label_rates]


def _multiple(rate: str) -> float | None:
    """Of the rate that is found; None for a rate by itself."""
    return float(rate[:-1]) if rate.endswith("x") else None


def measure(asked: Asked, whole: Task, records: Records) -> None:
    """Measure what is not recorded yet, and print a line of each.

    Arguments:
        whole: with all images from which subsets are chosen.
    """
    digest = whole.digest()
    dense = asked.dense(digest)
    if records.get(dense) is None:
        records.add(dense, accuracy=whole.accuracy(whole.model, whole.variables))
    for subset in asked.subsets:
        runs = [run for run in asked.refinements(digest) if run["subset"] == subset]
        missing = [run for run in runs if None in map(records.get, (run, *asked.labelled(run)))]
        if missing:
            measure_subset(asked, whole.choosing(subset, asked.images), records, missing)


def measure_subset(asked: Asked, task: Task, records: Records, runs: Sequence[Record]) -> None:
    """Measure what is missing of some runs on one subset, budget by budget."""
    moments = collected(task, asked.plan_temperature) if asked.plan == "loss" else None
    for budget, own in groupby(runs, lambda run: run["budget"]):
        small = compressed(task, asked.plan, budget, moments)
        for run in own:
            if records.get(run) is None:
                _say(_refine(task, small, records, run))
            for beside in asked.labelled(run):
                if records.get(beside) is None:
                    _say(_fine_tune(task, small, records, beside))


def _refine(task: Task, small: Small, records: Records, run: Record) -> Record:
    variables, rate, seconds = refined(
        task, small, epochs=run["epochs"], loss=run["loss"], temperature=run["temperature"],
        learning_rate=_learning_rate(records, run), features=run["features"] or None,
        blocks="auto" if run["blocks"] else None, augment=augmented if run["augment"] else None,
    )  # fmt: skip
    before, after = (task.accuracy(small.model, own) for own in (small.variables, variables))
    return records.add(
        run, kept=small.kept, before=before, accuracy=after, seconds=seconds, learning_rate=rate
    )


def _learning_rate(records: Records, run: Record) -> float | None:
    """None where it is to be found."""
    rate, multiple = run["rate"], _multiple(run["rate"])
    if rate == FOUND:
        return None
    if multiple is None:
        return float(rate)
    found = records.get({**run, "rate": FOUND})
    assert found is not None, "measured first"
    return multiple * found["learning_rate"]


def _fine_tune(task: Task, small: Small, records: Records, run: Record) -> Record:
    variables, seconds = fine_tuned(task, small, run["epochs"], run["rate"], run["augment"])
    return records.add(run, accuracy=task.accuracy(small.model, variables), seconds=seconds)


def _say(record: Record) -> None:
    before = f"{percent(record['before'], 2)} -> " if "before" in record else ""
    print(
        f"{record['kind']}: subset {record['subset']}, budget {record['budget']}, rate "
        f"{record['rate']}: {before}{percent(record['accuracy'], 2)}, {record['seconds']:.0f} s",
        flush=True,
    )
