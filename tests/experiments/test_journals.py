"""What stored journals of small runs are reported as, to the byte."""

import importlib
import json
import math
import random
import shutil
from pathlib import Path

import pytest

from experiments.workdir.journal import read_journal

pytest.importorskip("matplotlib")

EXPERIMENTS = ("error_study", "data_aware", "compress", "compressibility")


def reported(name, workdir):
    importlib.import_module(f"experiments.{name}.report").write_report(workdir)
    files = (workdir / "report").iterdir()
    return {file.name: file.read_bytes() for file in files if file.suffix in (".csv", ".md")}


@pytest.fixture(params=EXPERIMENTS)
def journal(request, tmp_path):
    """The name of an experiment, the folder of its stored journal, and a copy to report on."""
    folder = Path(__file__).parent / request.param / "journal"
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(folder / name, tmp_path)
    return request.param, folder, tmp_path


def test_tables_of_a_stored_journal_stay_byte_for_byte(journal):
    name, folder, workdir = journal
    expected = {
        file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".csv", ".md")
    }
    assert {"measurements.csv", "tables.md"} <= expected.keys()
    assert reported(name, workdir) == expected


@pytest.mark.usefixtures("undrawn")
def test_the_order_of_records_does_not_matter(journal):
    name, folder, workdir = journal
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    # Layers of a network are recorded in forward order.
    layers = [line for line in lines if "by_q" in json.loads(line)]
    others = [line for line in lines if line not in layers]
    random.Random(0).shuffle(others)
    (workdir / "metrics.jsonl").write_text("".join([*others, *layers]))
    found = reported(name, workdir)
    assert {file: found[file] == (folder / file).read_bytes() for file in found} == dict.fromkeys(
        found, True
    )


ODD = (None, [], {}, "x", -1, 0, math.inf, math.nan, 10**400, True, [None], 2**70, 0.5)


def places(value, path=()):
    """The path of every value inside of a JSON value."""
    inside = value.items() if isinstance(value, dict) else ()
    inside = enumerate(value) if isinstance(value, list) else inside
    for name, one in inside:
        yield (*path, name)
        yield from places(one, (*path, name))


def test_whatever_a_field_becomes_it_is_read_or_named(journal):
    name, _, workdir = journal
    module = importlib.import_module(
        "experiments.error_study.records"
        if name == "error_study"
        else f"experiments.{name}.settings"
    )
    path, rng = workdir / "metrics.jsonl", random.Random(1)
    lines = path.read_text().splitlines()
    messages = []
    for _ in range(60):
        changed = json.loads(rng.choice(lines))
        *inside, last = rng.choice(list(places(changed)))
        value = changed
        for part in inside:
            value = value[part]
        value[last] = rng.choice(ODD)
        path.write_text(json.dumps(changed) + "\n")
        try:
            read_journal(path, module.SCHEMA)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 20
    for message in messages:
        assert message.startswith(f"{path}, line 1: ")
        assert "\n" not in message


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_a_journal_that_was_cut_off_holds_the_first_of_the_rows(journal, share):
    name, folder, workdir = journal
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = int(share * len(lines))
    (workdir / "metrics.jsonl").write_text("".join(lines[:kept]) + lines[kept][:20])
    rows = set(reported(name, workdir)["measurements.csv"].splitlines()[1:])
    whole = (folder / "measurements.csv").read_bytes().splitlines()[1:]
    if name != "error_study":
        assert rows <= set(whole)
        assert len(rows) <= kept
    assert bool(rows) == (share > 0.3)
