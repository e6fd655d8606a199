"""Kills a stand-in of an experiment all along its way; run by `test_kills`, without JAX's threads.

It makes a work directory its own, records what is missing, and reports.
"""

import itertools
import json
import sys
import tempfile
import warnings
from pathlib import Path

import experiments.workdir.work as taken
from benchmarks.kills.left import results
from benchmarks.kills.starts import points_of, start
from experiments.compress.settings import SCHEMA, Compress
from experiments.report.page import Report, Section, publish
from experiments.workdir.fields import read_fields
from experiments.workdir.work import begin
from tdjax.files import write_atomically

STORED = Path(__file__).parent / "compress" / "journal"
SETTINGS = read_fields(Compress, json.loads((STORED / "config.json").read_text()))
# A plan of a network takes longer to read than all else here.
RECORDS = [
    record
    for record in map(json.loads, (STORED / "metrics.jsonl").read_text().splitlines())
    if record["kind"] != "network"
][:4]


def run(workdir):
    with begin("compress", SETTINGS, SCHEMA, workdir) as work:
        journal = work.journal
        (workdir / "moments").mkdir(exist_ok=True)
        write_atomically(workdir / "moments" / "one.npz", b"moments")
        for record in RECORDS:
            journal.append([record])
        found = sorted(map(json.dumps, journal.again().of_kind(*SCHEMA)))
        rows = {"rows.csv": "\n".join(found)}
        publish(workdir, Report("A", "B", {}, [Section("c", "C")], {}, rows))


def main():
    warnings.filterwarnings("ignore", ".*fork")
    taken.environment = lambda: {"kind": "environment", "jax": "1"}
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = (Path(folder).resolve() / name for name in ("whole", "killed"))
        for path in (whole, killed):
            path.mkdir()
        start(run, None, whole)
        expected, kills = results(whole / "run"), 0
        # One folder, killed later each time (whoever is killed as it takes over leaves more to the
        # next); then new folders.
        for number in itertools.count(1):
            if start(run, number**2, killed) is None:
                break
            kills += 1
        assert results(killed / "run") == expected
        count = len(points_of(whole / "points"))
        for last in range(2, count + 1, 5):
            path = Path(folder).resolve() / f"{last}"
            path.mkdir()
            assert start(run, last, path) is not None
            assert start(run, None, path) is None
            assert results(path / "run") == expected, last
            kills += 1
    print(f"equal after {kills} kills")


if __name__ == "__main__":
    sys.exit(main())
