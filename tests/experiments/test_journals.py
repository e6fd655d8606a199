"""What stored journals of small runs are reported as, to the byte."""

import importlib
import json
import random
import shutil
from pathlib import Path

import pytest

from experiments.report import plots

pytest.importorskip("matplotlib")

EXPERIMENTS = ("error_study", "data_aware", "compress", "compressibility")


def reported(name, workdir):
    importlib.import_module(f"experiments.{name}.report").write_report(workdir)
    files = (workdir / "report").iterdir()
    return {file.name: file.read_bytes() for file in files if file.suffix in (".csv", ".md")}


@pytest.fixture(params=EXPERIMENTS)
def journal(request, tmp_path, monkeypatch):
    """The name of an experiment, the folder of its stored journal, and a copy to report on."""
    # Nobody looks at the figures here.
    monkeypatch.setattr(plots, "DPI", 20)
    folder = Path(__file__).parent / request.param / "journal"
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(folder / name, tmp_path)
    return request.param, folder, tmp_path


def test_tables_of_a_stored_journal_stay_byte_for_byte(journal):
    name, folder, workdir = journal
    expected = {
        file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".csv", ".md")
    }
    assert len(expected) >= 5
    assert reported(name, workdir) == expected


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
