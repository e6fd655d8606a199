"""When, for how long and with what something was measured."""

import json
import subprocess
from dataclasses import replace
from datetime import datetime

from experiments.workdir import environment
from experiments.workdir.environment import measured_with
from experiments.workdir.journal import read_journal
from experiments.workdir.record_fields import Kind

SCHEMA = {"run": Kind({"run": int}, {})}


def session(start, *times, **about):
    """The lines of one process: records at some times, and what it measured with."""
    records = [{"kind": "run", "run": hash((start, time)), "at": time} for time in times]
    return [*records, {"kind": "environment", "started": start, **about}]


def test_sessions_add_up_and_what_changed_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        *session("2026-01-30T22:00:00+00:00", "2026-01-30T22:10:30+00:00", jax="1", commit="a"),
        *session("2026-01-31T08:00:00+00:00", "2026-01-31T08:00:05+00:00", jax="2", commit="a"),
    ]
    # In whatever order the lines stand.
    for order in (lines, lines[::-1]):
        path.write_text("".join(json.dumps(line) + "\n" for line in order))
        found = measured_with(read_journal(path, SCHEMA))
        assert found["measured"] == "2026-01-30 to 2026-01-31"
        assert found["duration"] == "10 min 35 s, begun 2 times"
        assert found["commit"] == "a"
        assert set(found["jax"].split(", then ")) == {"1", "2"}
    lines += session("2026-01-31T08:00:00+00:00", "2026-01-31T08:00:06+00:00", process="1 of 2")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = measured_with(read_journal(path, SCHEMA))
    assert found["duration"] == "10 min 36 s, begun 2 times, by 2 processes"
    # Journals of earlier versions tell less.
    path.write_text(json.dumps({"kind": "environment", "jax": "1"}) + "\n")
    assert measured_with(read_journal(path, SCHEMA)) == {"jax": "1"}


def test_times_are_recorded_and_no_part_of_what_was_measured(tmp_path):
    path = tmp_path / "metrics.jsonl"
    about = environment.environment()
    journal = replace(read_journal(path, SCHEMA), environment=about)
    records = [{"kind": "run", "run": 1}, {"kind": "run", "run": 2}]
    assert journal.append(records) == records
    again = journal.again()
    assert again.of_kind("run") == records
    assert list(again.environments) == [about]
    (time,) = again.times
    assert datetime.fromisoformat(about["started"]) <= datetime.fromisoformat(time)
    assert about["processor"] not in ("", "unknown")
    # The same at another time is the same.
    journal.append(records)
    path.write_text(path.read_text() + json.dumps({**records[1], "at": "later"}) + "\n")
    assert read_journal(path, SCHEMA).of_kind("run") == records
    assert "duration" in measured_with(again)


def test_the_commit_is_of_a_clone_and_tells_of_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "CLONE", tmp_path)
    assert "commit" not in environment.environment()

    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", tmp_path, *arguments]
        subprocess.run(command, check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    commit = environment.environment()["commit"]
    assert len(commit) == 12
    (tmp_path / "file").write_text("2")
    assert environment.environment()["commit"] == f"{commit} with changes"
    # Inside of another's clone it is none.
    (tmp_path / "inside").mkdir()
    monkeypatch.setattr(environment, "CLONE", tmp_path / "inside")
    assert "commit" not in environment.environment()
