"""Groups of processes at a stand-in of an experiment; run by `test_group`, without JAX's threads.

Prints, as JSON, what became of each group. Processes are forked: what they need is loaded.
"""

import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import experiments.workdir.work as taken
from benchmarks.kills.configs import CONFIGS
from benchmarks.kills.starts import start_group
from experiments.compress.settings import SCHEMA, Compress
from experiments.error_study import run as study  # noqa: F401  loaded once for all
from experiments.report.page import Report, Section, publish
from experiments.runner import carry_out, finish, measure
from experiments.workdir import claim
from experiments.workdir.claim import Claim
from experiments.workdir.fields import read_fields
from experiments.workdir.places import Place
from experiments.workdir.processes import this_process
from experiments.workdir.threads import Units
from experiments.workdir.work import begin
from tdjax import enable_compilation_cache
from tests.experiments.left import left, tables_of

STORED = Path(__file__).parent / "compress" / "journal"
RAW = json.loads((STORED / "config.json").read_text())
SETTINGS = read_fields(Compress, RAW)
# A plan of a network takes longer to read than all else here.
RECORDS = [
    record
    for record in map(json.loads, (STORED / "metrics.jsonl").read_text().splitlines())
    if record["kind"] not in ("network", "environment", "timed")
]


def run(workdir, place=None, settings=SETTINGS, at_unit=None, at_report=None):
    """The stand-in: `at_unit` is called in each unit with its number, `at_report` in the report."""
    with begin("compress", settings, SCHEMA, workdir, place=place) as work:
        names = [work.journal.identity(record["kind"], record) for record in RECORDS]

        def records(number, journal):
            if at_unit is not None:
                at_unit(number)
            yield [RECORDS[number]]

        def task():
            yield Units(
                [
                    work.unit(f"unit {number}", [name], partial(records, number))
                    for number, name in enumerate(names)
                ]
            )

        def write(path):
            if at_report is not None:
                at_report()
            found = sorted(map(json.dumps, work.journal.again().of_kind(*SCHEMA)))
            report = Report("A", "B", {}, [Section("c", "C")], {}, {"rows.csv": "\n".join(found)})
            return publish(path, report)

        measure(work, names, [task], most=1)
        finish(work, names, write)


def child(call, log):
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        call()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stderr.flush()
    os._exit(0)


class Started:
    """Processes of one group."""

    def __init__(self, folder, calls):
        self.logs = [folder / f"log-{number}" for number in range(len(calls))]
        fork = multiprocessing.get_context("fork")
        self.processes = [
            fork.Process(target=child, args=pair) for pair in zip(calls, self.logs, strict=True)
        ]
        for process in self.processes:
            process.start()

    def told(self):
        """How each ended, and what it said."""
        for process in self.processes:
            process.join(150)
            process.kill()
        return {
            "ended": [process.exitcode for process in self.processes],
            "logs": [log.read_text() for log in self.logs],
        }


def group(folder, count, *, workdirs=None, **options):
    """So many processes; options by the number of the process."""
    folder.mkdir(exist_ok=True)
    run_one = options.pop("run", run)
    return Started(
        folder,
        [
            partial(
                run_one,
                (workdirs or {}).get(number, folder / "run"),
                place=Place(number, count),
                **options.get(f"of_{number}", options.get("of_all", {})),
            )
            for number in range(count)
        ],
    )


def ends(started, folder):
    """What became of a group, and what it left."""
    return {**started.told(), **left(folder)}


def wait(is_there):
    deadline = time.monotonic() + 100
    while not is_there():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.01)


def together(folder, count):
    """What a unit waits for: that so many processes have joined."""
    logs = [folder / f"log-{number}" for number in range(count)]

    def joined(number):
        wait(lambda: all(log.exists() and "measurements" in log.read_text() for log in logs))

    return joined


def all_there(folder, count):
    """Units wait until so many processes have joined, the report until all others wait for it."""
    others = [folder / f"log-{number}" for number in range(1, count)]

    def awaited():
        wait(lambda: all("which writes the report" in log.read_text() for log in others))

    return {"at_unit": together(folder, count), "at_report": awaited}


def alone(folder):
    folder.mkdir()
    return ends(Started(folder, [partial(run, folder / "run")]), folder)


def two(folder):
    return ends(group(folder, 2, of_all=all_there(folder, 2)), folder)


def four(folder):
    return ends(group(folder, 4, of_all=all_there(folder, 4)), folder)


def endless(flag):
    """Mark the beginning, and never end."""
    flag.write_text("")
    time.sleep(1000)


def killed(folder):
    flag = folder / "flag"
    others = {"at_unit": lambda _: wait(flag.exists)}
    last = {"at_unit": lambda _: endless(flag)}
    started = group(folder, 3, of_1=last, of_all=others)
    wait(flag.exists)
    os.kill(started.processes[1].pid, signal.SIGKILL)
    return ends(started, folder)


def killed_at_the_report(folder):
    flag = folder / "flag"
    all_of_them = {"at_unit": together(folder, 2)}
    first = {**all_of_them, "at_report": lambda: endless(flag)}
    started = group(folder, 2, of_0=first, of_all=all_of_them)
    wait(flag.exists)
    wait(lambda: "which writes the report" in started.logs[1].read_text())
    os.kill(started.processes[0].pid, signal.SIGKILL)
    return ends(started, folder)


def slow(folder):
    both = all_there(folder, 2)

    def slowly(number):
        both["at_unit"](number)
        time.sleep(0.5)

    return ends(group(folder, 2, of_0=both, of_1={**both, "at_unit": slowly}), folder)


def full_disk(folder):
    def fill(number):
        # A claim goes in, and one record or two.
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))

    other = {"at_unit": lambda _: wait(lambda: "too large" in (folder / "log-1").read_text())}
    return ends(group(folder, 2, of_1={"at_unit": fill}, of_0=other), folder)


def no_folder(folder):
    (folder / "run").mkdir(parents=True)
    (folder / "run" / "processes").write_text("")
    told = group(folder, 2).told()
    return {**told, "files": sorted(path.name for path in (folder / "run").iterdir())}


def broken_unit(folder):
    joined = together(folder, 3)

    def broken(number):
        joined(number)
        if number == 3:
            raise ValueError("the third is broken")

    first = ends(group(folder, 3, of_all={"at_unit": broken}), folder)
    return {"first": first, **ends(group(folder, 2), folder)}


def linked(folder):
    folder.mkdir()
    (folder / "link").symlink_to(folder / "run")
    workdirs = {1: folder / "link"}
    return ends(group(folder, 2, workdirs=workdirs, of_all=all_there(folder, 2)), folder)


def others(folder):
    """Others than the first that is at work: of its number, of other configurations, alone."""
    flag, go = folder / "flag", folder / "go"

    def waiting(number):
        flag.write_text("")
        wait(go.exists)

    started = group(folder, 1, of_all={"at_unit": waiting})
    wait(flag.exists)
    (folder / "others").mkdir()
    of_1 = {"place": Place(1, 2)}
    calls = [
        partial(run, folder / "run", place=Place(0, 1)),
        partial(run, folder / "run", settings=replace(SETTINGS, seed=SETTINGS.seed + 1), **of_1),
        partial(run, folder / "run", settings=replace(SETTINGS, note="another"), **of_1),
        partial(run, folder / "run"),
    ]
    refused = Started(folder / "others", calls).told()
    go.write_text("")
    return {"refused": refused, **ends(started, folder)}


def foreign(folder):
    """What processes of another machine left that nobody renews."""
    claim.SILENCE = 1.0
    processes = folder / "run" / "processes"
    flag = folder / "flag"
    started = group(folder, 1, of_all={"at_unit": lambda _: endless(flag)})
    wait(flag.exists)
    started.processes[0].kill()
    started.processes[0].join()
    for path in processes.glob("*.json"):
        found = read_fields(Claim, json.loads(path.read_text()))
        there = replace(this_process(), boot="another", machine="another", pid=found.process.pid)
        path.write_text(replace(found, process=there).text)
    before = sorted(path.name[:6] for path in processes.glob("*.json"))
    return {"before": before, **ends(group(folder, 2), folder)}


def resumed(folder):
    """Ended by a kill of all, and gone on with by another number of processes, then by one."""
    flag = folder / "flag"

    def stopping(number, most):
        if number >= most:
            endless(flag)

    journals = []
    for count, most in ((3, 2), (2, 5)):
        started = group(folder, count, of_all={"at_unit": partial(stopping, most=most)})
        wait(flag.exists)
        for process in started.processes:
            process.kill()
            process.join()
        flag.unlink()
        journals.append(sorted(path.name for path in (folder / "run").glob("metrics*")))
    started = Started(folder, [partial(run, folder / "run")])
    return {"journals": journals, **ends(started, folder)}


def whole_study(folder):
    """A study of two networks by one process."""
    folder.mkdir()
    config = {"experiment": "study", **CONFIGS["study"]}
    found = ends(Started(folder, [partial(carry_out, config, folder / "run")]), folder)
    return {**found, "tables": tables_of(folder / "run")}


def killed_as_they_leave(folder):
    """Groups of two, of which one or both are killed as they let go of their place."""
    folder.mkdir()
    found = []
    for victims, when in (((1,), "before"), ((0, 1), "after"), ((1,), "after"), ((0,), "before")):
        (path := folder / f"{len(found)}").mkdir()
        kinds = {victim: f"member-{victim}.json {when} unlink" for victim in victims}
        ended = start_group(run, path, 2, dict.fromkeys(victims, 1), {}, kinds)
        if ended.is_unattended:
            start_group(run, path, 1, {}, {})
        found.append({"calls": ended.calls, "is_unattended": ended.is_unattended, **left(path)})
    return found


SCENES = (
    alone, two, four, killed, killed_at_the_report, slow, full_disk, no_folder, broken_unit,
    linked, others, foreign, resumed, killed_as_they_leave,
)  # fmt: skip


def main():
    warnings.filterwarnings("ignore", ".*fork")
    enable_compilation_cache(sys.argv[1])
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        if "whole_study" not in sys.argv[2:]:
            found["whole_study"] = whole_study(Path(folder).resolve() / "study")
        taken.environment = lambda: {
            "kind": "environment",
            "jax": "1",
            "started": f"{os.getpid()}",
        }
        for scene in SCENES:
            start = time.monotonic()
            found[scene.__name__] = scene(Path(folder).resolve() / scene.__name__)
            print(scene.__name__, f"{time.monotonic() - start:.1f} s", file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
