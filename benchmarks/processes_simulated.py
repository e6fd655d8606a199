"""N processes that share a study, simulated: `python -m benchmarks.processes_simulated`.

What they do is told in `benchmarks.processes_events`, the units of the studies in
`benchmarks.processes_units`. For each number of processes the table has:

- the makespan;
- the efficiency, the time of one process over N times the makespan;
- shares of all processes' time, from the first start to the end: waiting for a network to be
  trained, waiting at the end, starting and compiling;
- the bound that is closest: "work" (all of it, divided evenly), "chain" (start, the longest
  training and the longest unit behind it) or "units" (as many as one process does at least);
- the same with processes that die: efficiency, share of the time in which they were dead or did
  what was lost, and leases that were taken over.

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
DEATHS = flags.DEFINE_float("deaths", 0.1, "Of a process, an hour, in the last columns.")
DRAWN = flags.DEFINE_integer("drawn", 0, "Seed of all that is drawn.")


def rows(
    study: Study, numbers: Sequence[int], how: Circumstances, deaths: float = 0.0, seed: int = 0
) -> list[str]:
    """The lines of a table, in Markdown.

    Arguments:
        how: without deaths.
        deaths: those of the last columns.
    """
    alone = simulated(study, 1, how, seed).makespan
    lines = [
        "| N | makespan | efficiency | wait: training | wait: end | start, compile | bound | "
        "with deaths: efficiency | lost, dead | takeovers |",
        "|---:|---:|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    for number in numbers:
        found = simulated(study, number, how, seed)
        other = simulated(study, number, replace(how, deaths=deaths), seed)
        least = bounds(study, number, how)
        efficient, hit = (alone / (number * one.makespan) for one in (found, other))
        shares = (found.untrained, found.nothing_left, found.overhead)
        cells = " | ".join(f"{100 * found.share(one):.0f} %" for one in shares)
        lines.append(
            f"| {number} | {in_words(found.makespan)} | {efficient:.2f} | {cells} | "
            f"{max(least, key=lambda name: least[name])} | {hit:.2f} | "
            f"{100 * other.share(other.lost + other.dead):.1f} % | {other.takeovers} |"
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
    for text, study, how in studies():
        print(f"{text}: {len(study.units)} units, {in_words(study.work)} of work\n")
        lines = rows(study, numbers, how, DEATHS.value, DRAWN.value)
        print("\n".join(lines), end="\n\n", flush=True)


if __name__ == "__main__":
    app.run(main)
