import json

import pytest

from experiments.workdir.journal import read_journal
from experiments.workdir.merge import merge
from experiments.workdir.reading import own_journals
from experiments.workdir.record_fields import Kind

SCHEMA = {
    "run": Kind({"name": str}, {"loss": float}),
    "epoch": Kind({"network": int, "epoch": int}, {}),
}
ORDER = [("run", name) for name in "abcd"]


def run(name, loss=1.0, **more):
    return {"kind": "run", "name": name, "loss": loss, **more}


def epoch(network, number):
    return {"kind": "epoch", "network": network, "epoch": number}


def written(path, *records, end=""):
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + end)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


ENVIRONMENT = {"kind": "environment", "jax": "1"}


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_the_same_records_are_the_same_lines_whoever_wrote_them(tmp_path, parts):
    records = [run("c"), epoch(1, 10), run("a"), epoch(0, 2), run("b"), epoch(1, 9), run("d")]
    path = tmp_path / "metrics.jsonl"
    for part in range(parts):
        own = path if part == 0 else tmp_path / f"metrics-{9 + part}.jsonl"
        written(own, *records[part::parts], end='{"kind": "ru')
    found = read_journal(path, SCHEMA).found
    assert len(found) == len(records)
    assert list(own_journals(path)) == [10, 11][: parts - 1]
    merge(path, SCHEMA, ORDER, ended=own_journals(path))
    expected = [epoch(0, 2), epoch(1, 9), epoch(1, 10), *map(run, "abcd")]
    assert lines(path) == expected
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert read_journal(path, SCHEMA).found == found
    before = path.stat().st_mtime_ns
    merge(path, SCHEMA, ORDER)
    assert path.stat().st_mtime_ns == before


def test_with_what_it_was_measured_stays_behind_a_record(tmp_path):
    path = tmp_path / "metrics.jsonl"
    written(path, run("b", at="1"), ENVIRONMENT, run("a"))
    other = {**ENVIRONMENT, "jax": "2"}
    written(tmp_path / "metrics-0.jsonl", run("a", at="2"), other, run("c"))
    merge(path, SCHEMA, ORDER)
    assert lines(path) == [run("a"), other, run("b", at="1"), ENVIRONMENT, run("c")]
    # Nobody's journal is removed that may be appended to.
    assert (tmp_path / "metrics-0.jsonl").exists()
    journal = read_journal(path, SCHEMA)
    assert list(journal.environments) == [other, ENVIRONMENT]


def test_what_differs_is_named_and_nothing_changed(tmp_path):
    path, own = tmp_path / "metrics.jsonl", tmp_path / "metrics-3.jsonl"
    written(path, run("a"))
    written(own, run("b"), run("a", loss=2.0))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"metrics-3\.jsonl, line 2: the run a was measured"):
        merge(path, SCHEMA, ORDER, ended=[3])
    assert path.read_bytes() == before
    assert own.exists()
    with pytest.raises(ValueError, match=r"metrics-3\.jsonl, line 2: .* recorded a second time"):
        read_journal(path, SCHEMA)


def test_only_what_is_new_is_read_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    written(path, run("a"))
    journal = read_journal(path, SCHEMA)
    with open(path, "a") as file:
        file.write(json.dumps(run("b")) + "\n" + '{"kind"')
    written(tmp_path / "metrics-0.jsonl", run("c"))
    again = journal.again()
    assert list(again.found) == [("run", name) for name in "abc"]
    assert not journal.holds([("run", "a"), ("run", "d")])
    # Known to be another's, though this journal was read before.
    assert journal.append([run("c"), run("d")]) == [run("d")]
    assert journal.holds(ORDER)
    # Replaced by all together, as when a group ends.
    merge(path, SCHEMA, ORDER, ended=[0])
    assert list(journal.again().found)[:4] == [("run", name) for name in "abcd"]


def test_a_link_to_a_journal_stays_one(tmp_path):
    (tmp_path / "disk").mkdir()
    path = tmp_path / "metrics.jsonl"
    path.symlink_to(tmp_path / "disk" / "far.jsonl")
    written(path, run("b"), run("a"))
    merge(path, SCHEMA, ORDER)
    assert path.is_symlink()
    assert lines(path) == [run("a"), run("b")]
