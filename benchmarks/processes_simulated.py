"""N processes that share a study, simulated: `python -m benchmarks.processes_simulated`.

What they do is told in `benchmarks.processes_events`, the units of the studies in
`benchmarks.processes_units`. For each number of processes the table has:

- the makespan;
- the efficiency, the time of one process that does not die over N times the makespan;
- shares of all processes' time, from the first start to the end: waiting for a network to be
  trained, waiting at the end, starting and compiling, work that was lost, dead;
- leases that were taken over;
- the bound that is closest: "work" (all of it, divided evenly), "chain" (start, the longest
  training and the longest unit behind it) or "units" (as many as one process does at least).

All is drawn from one seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from absl import app, flags

from benchmarks.processes_events import HOUR, Circumstances, Study, bounds, simulated
from benchmarks.processes_units import studies

NUMBERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
ASKED = flags.DEFINE_list("numbers", [str(number) for number in NUMBERS], "Of processes.")
DEATHS = flags.DEFINE_list("deaths", ["0", "0.1"], "Of a process, an hour: a table for each.")
SEED = flags.DEFINE_integer("seed", 0, "Of all that is drawn.")


def rows(study: Study, numbers: Sequence[int], how: Circumstances, seed: int = 0) -> list[str]:
    """The lines of a table, in Markdown."""
    alone = simulated(study, 1, replace(how, deaths=0.0), seed).makespan
    lines = [
        "| processes | makespan | efficiency | wait for training | wait at the end | "
        "start, compile | lost, dead | takeovers | bound |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for number in numbers:
        found = simulated(study, number, how, seed)
        least = bounds(study, number, how)
        closest = max(least, key=lambda name: least[name])
        shares = (
            found.untrained, found.nothing_left, found.overhead, found.lost + found.dead,
        )  # fmt: skip
        cells = " | ".join(f"{100 * found.share(one):.0f} %" for one in shares)
        lines.append(
            f"| {number} | {in_words(found.makespan)} | "
            f"{alone / (number * found.makespan):.2f} | {cells} | {found.takeovers} | {closest} |"
        )
    return lines


def in_words(seconds: float) -> str:
    """Seconds, minutes or hours, three digits."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 2 * HOUR else f"{seconds / HOUR:.4g} h"


def main(_: list[str]) -> None:
    """Print the tables, in Markdown."""
    numbers = [int(number) for number in ASKED.value]
    for text, study in studies():
        for deaths in map(float, DEATHS.value):
            how = Circumstances(deaths=deaths)
            print(f"{text}; {len(study.units)} units, {in_words(study.work)} of work; "
                  f"{deaths:g} deaths of a process an hour\n")  # fmt: skip
            print("\n".join(rows(study, numbers, how, SEED.value)), end="\n\n")


if __name__ == "__main__":
    app.run(main)
