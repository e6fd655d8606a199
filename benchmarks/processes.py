"""How much faster N processes finish a study: `python -m benchmarks.processes [--counts=1,2,4]`.

A study of small networks on the embedded digits, each process on one core with programs of one
thread, so that cores are all that there is to share. Once, by one process, a network is trained and
all is measured, which also compiles all programs; then N processes measure all of it again, for
each N in turn, several times over. The journals must be the same; exits with 1 where they are not.
The table has the seconds from the start to the last measurement, and to the end with the report,
and how many times one process takes as long: the mean of the rounds, and the least and most.

Of use on a machine that does nothing else. With the defaults it takes some minutes on two cores,
without 4 processes and with two rounds under three; `--tuning_epochs` and `--tuned` make it longer
or shorter.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags

from benchmarks.kills.left import lines_of

NUMBERS = flags.DEFINE_list("counts", ["1", "2", "4"], "Of processes; 1 is always measured.")
ROUNDS = flags.DEFINE_integer("repeats", 3, "How often each number is measured.", lower_bound=1)
EPOCHS = flags.DEFINE_integer("tuning_epochs", 60, "Of fine-tuning each network.", lower_bound=1)
TUNED = flags.DEFINE_integer("tuned", 8, "Runs of each choice, each fine-tuned.", lower_bound=1)

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ("compressed", "finetuned")
# Programs of one thread.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


class Seconds(NamedTuple):
    """From the start of the processes to the last measurement, and to the end of all of them."""

    measured: float
    whole: float


def study(epochs: int, runs: int) -> dict[str, Any]:
    """A configuration of 24 * runs measurements."""
    return {
        "experiment": "study",
        "data": {"name": "digits"},
        "model": {"name": "mlp", "arguments": {"widths": [64, 64]}},
        "train": {"epochs": 5},
        "finetune": {"epochs": epochs},
        "layers": ["hidden1", "hidden2"],
        "methods": ["svd"],
        "compressions": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
        "runs": runs,
        "poor_baseline": True,
    }


def timed(config: Path, workdir: Path, number: int, cache: Path) -> Seconds:
    """What so many processes take for what is missing in a work directory.

    Raises RuntimeError where one ends with an error.
    """
    cores = sorted(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "experiments.main", f"--config={config}"]
    command += [f"--workdir={workdir}", f"--compilation_cache={cache}"]
    log = workdir.with_suffix(".log")
    begun, clock = time.time(), time.monotonic()
    with open(log, "wb") as out:
        processes = [
            subprocess.Popen(
                ["taskset", "-c", str(cores[k % len(cores)]), *command, f"--process={k}/{number}"],
                cwd=ROOT,
                env={**os.environ, **ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
            for k in range(number)
        ]
        ended = [process.wait() for process in processes]
    whole = time.monotonic() - clock
    if any(ended):
        raise RuntimeError(f"processes ended with {ended}: {log.read_text('utf-8')[-3000:]}")
    last = max(datetime.fromisoformat(at).timestamp() for at in times_of(workdir))
    return Seconds(last - begun, whole)


def times_of(workdir: Path) -> list[str]:
    """When measurements were recorded; the last of those that were at once says so."""
    records = map(json.loads, (workdir / "metrics.jsonl").read_text("utf-8").splitlines())
    return [one["at"] for one in records if one["kind"] in MEASURED and "at" in one]


def unmeasured(workdir: Path, copy: Path) -> None:
    """A copy of a work directory that holds its trained network and no measurement."""
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "report")
    journal = copy / "metrics.jsonl"
    lines = journal.read_text("utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["kind"] not in MEASURED]
    journal.write_text("".join(kept), "utf-8")


def rows(found: Mapping[int, Sequence[Seconds]]) -> list[str]:
    """The lines of a table, in Markdown; times of one process over those of N, round by round."""
    lines = [
        "| processes | to the last measurement, s | to the end, s | times as fast | least, most |",
        "|---:|---:|---:|---:|---:|",
    ]
    for number, times in found.items():
        ratios = [one.measured / own.measured for one, own in zip(found[1], times, strict=True)]
        measured, whole = (sum(column) / len(times) for column in zip(*times, strict=True))
        mean = sum(ratios) / len(ratios)
        spread = f"{min(ratios):.2f}, {max(ratios):.2f}"
        lines.append(f"| {number} | {measured:.1f} | {whole:.1f} | {mean:.2f} | {spread} |")
    return lines


def main(_: list[str]) -> None:
    """Measure, and print the table."""
    numbers = sorted({1, *map(int, NUMBERS.value)})
    found: dict[int, list[Seconds]] = {number: [] for number in numbers}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config, first, cache = (folder / name for name in ("study.py", "first", "compiled"))
        asked = study(EPOCHS.value, TUNED.value)
        config.write_text(
            "from ml_collections import ConfigDict\n\n\n"
            f"def get_config():\n    return ConfigDict({asked!r})\n",
            "utf-8",
        )
        timed(config, first, 1, cache)
        expected = lines_of(first)
        for turn in range(ROUNDS.value):
            for number in numbers:
                unmeasured(first, own := folder / f"{turn}-{number}")
                found[number].append(timed(config, own, number, cache))
                if lines_of(own) != expected:
                    sys.exit(f"error: the journal of {number} processes is not that of one")
                told = found[number][-1]
                print(f"round {turn}, {number} processes: {told.measured:.1f} s", flush=True)
    print("\n" + "\n".join(rows(found)))


if __name__ == "__main__":
    app.run(main)
