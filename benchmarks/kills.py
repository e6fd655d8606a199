"""Experiments that are killed again and again: `python -m benchmarks.kills [--points=100]`.

Each of the four experiments, as small as it can be, runs once undisturbed. Then it is killed (-9)
before or after a call that changes what is on the disk, or when half of a line of its journal is
written, started again, killed again some calls later, until it comes to its end; and so on, from
an empty folder, until there were enough kills. Whenever it ends its tables must be equal to the
byte to those of the undisturbed run, its journal must hold the same lines, and nothing unfinished
may be left. Exits with 1 where that is not so. Needs fork and /proc.

With `--group=N` it is N processes that share the work of a run, of which one or two are killed: at
such a call, or after some time. What the others leave must be the same. Where all of them were
killed, or the last one as it left, another number of processes goes on.
"""

import itertools
import json
import multiprocessing
import operator
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from experiments.runner import EXPERIMENTS, carry_out, experiment_named
from experiments.workdir.places import Place
from experiments.workdir.record_fields import AT, ENVIRONMENT
from tdjax import enable_compilation_cache

POINTS = flags.DEFINE_integer("points", 100, "Kills, of all experiments together.")
ONLY = flags.DEFINE_list("experiments", list(EXPERIMENTS), "Which experiments.")
SEED = flags.DEFINE_integer("seed", 0, "Of the places of the kills.")

GROUP = flags.DEFINE_integer("group", 1, "Processes that share the work of each run.")

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
    return {**found, "lines": lines_of(workdir), "files": own | unfinished}


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


def start_group(
    run: Callable[..., Any],
    folder: Path,
    count: int,
    last: Mapping[int, int],
    after: Mapping[int, float],
) -> list[int]:
    """Start a group and wait for it: how many calls each came to, 0 where it was killed.

    Arguments:
        last: the calls at which processes of these numbers kill themselves.
        after: seconds after which others of these numbers are killed.

    Raises RuntimeError where one ended otherwise.
    """
    fork, processes = multiprocessing.get_context("fork"), []
    logs = [folder / f"log-{number}" for number in range(count)]
    points = [folder / f"points-{number}" for number in range(count)]
    for number in range(count):
        place = Place(number, count) if count > 1 else None
        own = partial(run, place=place)
        about = (own, folder / "run", last.get(number), None, logs[number], points[number])
        processes.append(fork.Process(target=child, args=about))
        processes[-1].start()
    begun = time.monotonic()
    for number, seconds in sorted(after.items(), key=operator.itemgetter(1)):
        processes[number].join(max(0.0, begun + seconds - time.monotonic()))
        processes[number].kill()
    for number, process in enumerate(processes):
        process.join()
        is_killed = number in {**last, **after} and process.exitcode == -signal.SIGKILL
        if process.exitcode and not is_killed:
            told = logs[number].read_text()[-3000:]
            raise RuntimeError(f"process {number} ended with {process.exitcode}: {told}")
    return [
        0 if process.exitcode else len(points[number].read_text().splitlines())
        for number, process in enumerate(processes)
    ]


def try_group(name: str, kills: int, count: int, seed: int) -> Counter[str]:
    """Kill processes of groups so many times; how often in which way.

    Raises as `try_experiment` does.
    """
    run: Run = partial(carry_out, {"experiment": name, **CONFIGS[name]})
    rng = random.Random(f"{name} {count} {seed}")
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary).resolve()
        start(run, None, whole)
        expected = results(whole / "run")
        undisturbed = whole / "group"
        undisturbed.mkdir()
        begun = time.monotonic()
        calls = start_group(run, undisturbed, count, {}, {})
        spent = time.monotonic() - begun
        check_results(f"{name} by {count} processes", undisturbed / "run", expected)
        while done.total() < kills:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder).resolve()
                victims = rng.sample(range(count), rng.randint(1, min(2, kills - done.total())))
                by_time = {v: rng.uniform(0, spent) for v in victims if rng.random() < 0.5}
                by_call = {v: rng.randint(1, calls[v]) for v in victims if v not in by_time}
                ended = start_group(run, path, count, by_call, by_time)
                told = Counter({"some time": 0, "a call": 0})
                told["some time"] += sum(not ended[v] for v in by_time)
                told["a call"] += sum(not ended[v] for v in by_call)
                if not any(ended):
                    told["nobody was left"] += 1
                    start_group(run, path, rng.randint(1, count), {}, {})
                what = f"{name} by {count} processes, killed: {by_call} {by_time}"
                check_results(what, path / "run", expected)
                done["at some time"] += told["some time"]
                done["at a call"] += told["a call"]
                print(f"{name}: equal after {dict(told)}", flush=True)
    return done


def check_results(what: str, workdir: Path, expected: Mapping[str, Any]) -> None:
    """Raise RuntimeError where results are others than those of an undisturbed run."""
    found = results(workdir)
    if differing := [key for key in {**found, **expected} if found.get(key) != expected.get(key)]:
        files = sorted(found["files"] ^ expected["files"])
        raise RuntimeError(f"{what}: other {', '.join(differing)}; files of one alone: {files}")


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
                told = f"{name}, killed at {', '.join(found)}"
                check_results(told, path / "run", expected)
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
    count = GROUP.value
    try:
        if count > 1:
            kills = {name: try_group(name, share, count, SEED.value) for name in ONLY.value}
        else:
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
