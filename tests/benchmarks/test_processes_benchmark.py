import json

from benchmarks.processes import Seconds, rows, times_of, unmeasured


def test_rounds_are_compared_one_by_one():
    one, two = [Seconds(10.0, 12.0), Seconds(20.0, 22.0)], [Seconds(5.0, 8.0), Seconds(16.0, 18.0)]
    lines = rows({1: one, 2: two})
    assert lines[2] == "| 1 | 15.0 | 17.0 | 1.00 | 1.00, 1.00 |"
    assert lines[3] == "| 2 | 10.5 | 13.0 | 1.62 | 1.25, 2.00 |"


def test_a_copy_holds_the_training_alone(tmp_path):
    first, copy = tmp_path / "first", tmp_path / "copy"
    (first / "report").mkdir(parents=True)
    kinds = ("environment", "epoch", "baseline", "compressed", "finetuned")
    lines = [json.dumps({"kind": kind, "at": kind}) + "\n" for kind in kinds]
    (first / "metrics.jsonl").write_text("".join(lines))
    assert times_of(first) == ["compressed", "finetuned"]
    unmeasured(first, copy)
    assert (copy / "metrics.jsonl").read_text() == "".join(lines[:3])
    assert not (copy / "report").exists()
