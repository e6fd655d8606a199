"""Experiments that are killed again and again: `python -m benchmarks.kills [--points=100]`.

Each of the four experiments, as small as it can be, runs once undisturbed. Then it is killed (-9)
before or after a call that changes what is on the disk, or when half of a line of its journal is
written, started again, killed again some calls later, until it comes to its end; and so on, from
an empty folder, until there were enough kills. Whenever it ends its tables must be equal to the
byte to those of the undisturbed run, its journal must hold the same lines, and nothing unfinished
may be left. Exits with 1 where that is not so. Needs fork and /proc.
"""

import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from experiments.runner import EXPERIMENTS, carry_out, experiment_named
from experiments.workdir.record_fields import AT, ENVIRONMENT
from tdjax import enable_compilation_cache

POINTS = flags.DEFINE_integer("points", 100, "Kills, of all experiments together.")
ONLY = flags.DEFINE_list("experiments", list(EXPERIMENTS), "Which experiments.")
SEED = flags.DEFINE_integer("seed", 0, "Of the places of the kills.")

CALLS = ("replace", "rename", "link", "unlink", "mkdir", "rmdir", "fsync", "write")
# What an experiment does in a work directory.
Run = Callable[[Path], Any]
# Kills on the way from an empty folder to the end, about.
KILLS = 8

DIGITS = {"name": "digits", "validation_share": 0.25, "train_size": 80}
DIGITS |= {"validation_size": 40, "test_size": 40}
CONFIG = {
    "data": DIGITS,
    "model": {"name": "mlp", "arguments": {"widths": [8, 8]}},
    "train": {"epochs": 2, "batch_size": 40},
    "finetune": {"epochs": 1},
}
CALIBRATED = {**CONFIG, "calibration": {"images": [40], "subsets": 2, "batch_size": 40}}
CONFIGS = {
    "study": {
        **CONFIG,
        "layers": ["hidden1", "hidden2"],
        "methods": ["svd"],
        "compressions": [0.2, 0.5],
        "networks": 2,
        "runs": 2,
        # As small a network learns next to nothing.
        "poor_baseline": True,
        "measure": {"feature_images": 20, "batch_size": 20},
    },
    "data_aware": {
        **CALIBRATED,
        "methods": ["svd"],
        "keeps": [0.5],
        "norms": ["frobenius", "covariance"],
        "correct_bias": [False],
        "refine": {"epochs": 1},
    },
    "compress": {
        **CALIBRATED,
        # Wide enough for ranks that meet the budget.
        "model": {"name": "mlp", "arguments": {"widths": [32, 32]}},
        "strategies": ["uniform"],
        "methods": ["svd"],
        "budgets": [0.6],
        "norms": ["frobenius", "covariance"],
        "refine": {"epochs": 1},
    },
    "compressibility": {
        **CALIBRATED,
        "calibration": {"images": [40], "batch_size": 40},
        "methods": ["magnitude layer"],
        "runs": 2,
        "shares": [0.5],
        "layer_steps": 2,
    },
}


def hook(
    workdir: Path, last: int | None, send: Callable[[str], object], kind: str | None = None
) -> None:
    """Count the points at which a process can be killed, and kill this one at the `last`.

    Arguments:
        send: takes each point as it is reached.
        kind: of the points that count, as "half write"; None for all.
    """
    count = itertools.count(1)

    def reached(call: str, where: str) -> bool:
        send(point := f"{where} {call}")
        return kind in (None, point) and next(count) == last

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def hooked(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if not _is_inside(workdir, args[0], kwargs.get("dir_fd")):
                return call(*args, **kwargs)
            if reached(name, "before"):
                kill()
            if name == "write" and reached(name, "half"):
                call(args[0], args[1][: len(args[1]) // 2])
                kill()
            result = call(*args, **kwargs)
            if reached(name, "after"):
                kill()
            return result

        return run

    for name in CALLS:
        setattr(os, name, hooked(name, getattr(os, name)))


def _is_inside(workdir: Path, what: Any, folder: int | None) -> bool:
    try:
        if isinstance(what, int):
            what = os.readlink(f"/proc/self/fd/{what}")
        if folder is not None:
            what = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), what)
        return Path(os.fsdecode(what)).is_relative_to(workdir)
    except OSError:
        return False


def child(
    run: Run, workdir: Path, last: int | None, kind: str | None, log: Path, points: Path
) -> None:
    """One start of an experiment, in a process of its own."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    told = os.open(points, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    write = os.write
    hook(workdir, last, lambda point: write(told, f"{point}\n".encode()), kind)
    try:
        run(workdir)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def start(run: Run, last: int | None, folder: Path, kind: str | None = None) -> list[str] | None:
    """Start an experiment and wait for it: the points it came to where it was killed, else None.

    Arguments:
        last: the point to kill it at, from 1, of those of a `kind`; None for none.
        folder: holds its work directory, "run", its output, "log", and the points it came to.

    Raises RuntimeError where it ended otherwise.
    """
    log, points = folder / "log", folder / "points"
    process = multiprocessing.get_context("fork").Process(
        target=child, args=(run, folder / "run", last, kind, log, points)
    )
    process.start()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"it ended with {process.exitcode}: {log.read_text()[-3000:]}")
    return points.read_text().splitlines() if process.exitcode else None


def results(workdir: Path) -> dict[str, Any]:
    """What must be the same however often an experiment was killed."""
    found = {file.name: file.read_bytes() for file in (workdir / "report").glob("*.[cm][sd]*")}
    files = {str(file.relative_to(workdir)) for file in workdir.rglob("*")}
    # Names inside of checkpoints are drawn.
    own = {file for file in files if not file.startswith(("checkpoints/", "compressed/"))}
    unfinished = {file for file in files if "partial" in file or "-tmp" in file or "in_use" in file}
    return {**found, "lines": sorted(lines_of(workdir)), "files": own | unfinished}


def lines_of(workdir: Path) -> list[bytes]:
    """The lines of a journal, without what they say of when and with what they were written."""
    records = map(json.loads, (workdir / "metrics.jsonl").read_bytes().split(b"\n")[:-1])
    for record in (own := [one for one in records if one["kind"] != ENVIRONMENT]):
        record.pop(AT, None)
    return [json.dumps(record).encode("utf-8") + b"\n" for record in own]


def chain(
    run: Run, folder: Path, rng: random.Random, before: Counter[str], count: Counter[str], most: int
) -> Counter[str]:
    """Kill an experiment until it comes to its end, or `most` times; how often at which point.

    Each time at a point of the kind at which it was killed least often.

    Arguments:
        before: kills of earlier ones.
        count: of the points of an undisturbed run, by kind.
    """
    kills: Counter[str] = Counter()
    while kills.total() < most:
        kind = min(count, key=lambda kind: (before + kills)[kind])
        last = rng.randint(1, max(2 * count[kind] // KILLS, 1))
        if start(run, last, folder, kind) is None:
            # So near to its end that it has no more of them.
            return kills
        kills[kind] += 1
    start(run, None, folder)
    return kills


def try_experiment(name: str, points: int, seed: int) -> Counter[str]:
    """Kill an experiment `points` times; how often at which point.

    Raises RuntimeError where a start fails or the results differ.
    """
    run: Run = partial(carry_out, {"experiment": name, **CONFIGS[name]})
    rng = random.Random(f"{name} {seed}")
    kills: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary).resolve()
        start(run, None, whole)
        expected = results(whole / "run")
        count = Counter((whole / "points").read_text().splitlines())
        while kills.total() < points:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder).resolve()
                found = chain(run, path, rng, kills, count, points - kills.total())
                differing = [
                    what
                    for what, value in results(path / "run").items()
                    if value != expected.get(what)
                ]
                if differing:
                    raise RuntimeError(
                        f"{name}, killed at {', '.join(found)}: other {', '.join(differing)}"
                    )
                kills.update(found)
                print(f"{name}: equal after {found.total()} kills", flush=True)
    return kills


def main(argv: list[str]) -> None:
    """Kill all of them, and print how often at which point."""
    # No thread runs yet: JAX starts its own with the first array, in the children.
    warnings.filterwarnings("ignore", ".*fork", RuntimeWarning)
    warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
    enable_compilation_cache(jax.config.values["jax_compilation_cache_dir"] or tempfile.mkdtemp())
    for name in ONLY.value:
        # Loaded once for all starts.
        experiment_named(name)
    share = -(-POINTS.value // len(ONLY.value))
    try:
        kills = {name: try_experiment(name, share, SEED.value) for name in ONLY.value}
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    points = sorted({point for found in kills.values() for point in found})
    print("\n| point | " + " | ".join(kills) + " |\n| --- |" + " ---: |" * len(kills))
    for point in points:
        print(f"| {point} | " + " | ".join(str(found[point]) for found in kills.values()) + " |")
    print("| all | " + " | ".join(str(found.total()) for found in kills.values()) + " |")


if __name__ == "__main__":
    app.run(main)
