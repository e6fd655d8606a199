"""The benchmark of refinement, on a transformer of one narrow block and images of noise."""

import json

import numpy as np
import optax
import pytest
from absl import flags
from absl.testing import flagsaver

from benchmarks import refine
from benchmarks.refinement import networks, runs
from benchmarks.refinement.descent import Course
from benchmarks.refinement.records import Records
from benchmarks.refinement.table import table_of
from benchmarks.refinement.transformer import VisionTransformer


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Flags for a run that takes seconds."""
    random = np.random.default_rng(0)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        records = random.integers(0, 256, (8, 3073), np.uint8)
        records[:, 0] %= 10
        (tmp_path / f"{name}.bin").write_bytes(records.tobytes())
    tiny = VisionTransformer(patch=16, width=8, depth=1)
    monkeypatch.setitem(networks.MODELS, "vit", tiny)
    course = Course(optax.scale_by_adam(), epochs=1, rate=1e-3, batch=16, train=True)
    monkeypatch.setitem(networks.COURSES, "vit", course)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["refine"])
    with flagsaver.as_parsed(
        network="vit", data=str(tmp_path), trained=str(tmp_path), plan="uniform", images="16",
        records=str(tmp_path / "records.jsonl"), budgets="0.65", subsets="0", epochs="1",
        features="", rate="1x,2x", labels="true", label_rates="1e-3",
    ):  # fmt: skip
        yield tmp_path


def lines_of(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_runs_are_recorded_once(asked, capsys, monkeypatch):
    refine.main([])
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    dense, found, beside, double = lines_of(asked)
    assert [found["kind"], beside["kind"], double["kind"]] == ["refined", "labelled", "refined"]
    assert 0.6 < found["kept"] < 0.66
    assert found["digest"] == dense["digest"]
    assert double["learning_rate"] == pytest.approx(2 * found["learning_rate"])
    assert len(table) == 4

    # A kill in the middle of the last line.
    content = (asked / "records.jsonl").read_bytes()
    (asked / "records.jsonl").write_bytes(content[:-20])
    seen = []
    monkeypatch.setattr(runs, "measure_subset", lambda *given: seen.append(given[-1]))
    refine.main([])
    assert table[2] in capsys.readouterr().out
    assert [run["rate"] for (run,) in seen] == ["2x"]


def test_table_has_intervals_of_subsets_and_the_best_of_labels(asked):
    with flagsaver.as_parsed(subsets="0,1,2", rate="1x", label_rates="1e-3,2e-3"):
        wanted, records = refine.read_asked(), Records(None)
    for run in wanted.refinements("0"):
        extra = {"kept": 0.65, "before": 0.5, "seconds": 10.0 + run["subset"]}
        records.add(run, accuracy=0.7 + run["subset"] / 100, learning_rate=1e-3, **extra)
        for beside in wanted.labelled(run):
            records.add(beside, accuracy=0.6 + 10 * beside["rate"], seconds=1.0)
    # Student's t of two degrees of freedom is 4.303: 71 +- 4.303 / sqrt(3).
    (row,) = (line for line in table_of(wanted, records, "0").splitlines() if "65.0" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:6] == [
        "65.0 %",
        "1x",
        "3",
        "50.00 [50.00, 50.00]",
        "71.00 [68.52, 73.48]",
        "10 to 12",
    ]
    assert cells[6:] == ["0.001", "62.00 [62.00, 62.00]", "0.002"]


def test_multiples_need_the_rate_that_is_found(asked):
    with flagsaver.as_parsed(rate="2x"), pytest.raises(ValueError, match="name 1x first"):
        refine.read_asked()
