import errno
import json
import math
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.workdir.claim import in_use
from experiments.workdir.config import check_workdir, claim_workdir, read_config
from experiments.workdir.journal import append_records, read_journal
from experiments.workdir.record_fields import SCORES, Kind
from tdjax.files import write_atomically

# In place of a JSON object.
ODD = [b"{", b"[]", b"7", b"null", b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000]
CONFIG = {"seed": 0, "train": {"epochs": 3, "rates": (1, 2)}, "folder": None}


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_append_adds_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_records(path, [{"a": 1}, {"a": 2}])
    append_records(path, [])
    append_records(path, [{"a": 3, "text": "two\nlines, ü"}])
    assert lines(path) == [{"a": 1}, {"a": 2}, {"a": 3, "text": "two\nlines, ü"}]
    assert path.read_bytes().endswith(b"\n")


def test_values_that_are_not_finite_come_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_records(path, [{"x": math.inf, "y": math.nan}])
    (record,) = lines(path)
    assert record["x"] == math.inf
    assert math.isnan(record["y"])


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_cut_at_any_byte_loses_only_what_was_not_finished(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("journal") / "metrics.jsonl"
    records = [{"index": k, "text": "x" * k} for k in range(4)]
    append_records(path, records)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    append_records(path, [{"new": True}])
    assert lines(path) == [*records[: whole[:cut].count(b"\n")], {"new": True}]


def test_write_atomically_replaces(tmp_path):
    path = tmp_path / "file.txt"
    write_atomically(path, "one, ü")
    write_atomically(path, "two")
    assert path.read_text("utf-8") == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_claim_and_claim_again(tmp_path):
    workdir = tmp_path / "new" / "study"
    claim_workdir(workdir, CONFIG)
    written = (workdir / "config.json").read_bytes()
    assert json.loads(written) == json.loads(json.dumps(CONFIG))
    (workdir / "metrics.jsonl").write_text("{}\n")
    claim_workdir(workdir, CONFIG)
    # A field that is not set is as one that is not there.
    claim_workdir(workdir, {**CONFIG, "added_later": None})
    # One that an older version did not know is off.
    later = {**CONFIG["train"], "warmup": 0, "nesterov": False}
    claim_workdir(workdir, {**CONFIG, "train": later})
    claim_workdir(workdir, {**CONFIG, "added_later": {"epochs": 0, "loss": "mse"}})
    with pytest.raises(ValueError, match="fields that differ: added_later; use"):
        claim_workdir(workdir, {**CONFIG, "added_later": {"epochs": 1, "loss": "mse"}})
    with pytest.raises(ValueError, match=r"fields that differ: train\.warmup; use"):
        claim_workdir(workdir, {**CONFIG, "train": {**later, "warmup": 5}})
    assert (workdir / "config.json").read_bytes() == written
    assert (workdir / "metrics.jsonl").read_text() == "{}\n"


def test_an_empty_folder_can_be_claimed(tmp_path):
    claim_workdir(tmp_path, CONFIG)
    assert (tmp_path / "config.json").exists()


def test_a_claim_killed_half_way_can_be_repeated(tmp_path):
    claim_workdir(tmp_path / "whole", CONFIG)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".config.json.12345").write_text('{"see')
    claim_workdir(tmp_path / "killed", CONFIG)
    whole, repeated = (tmp_path / name / "config.json" for name in ("whole", "killed"))
    assert repeated.read_bytes() == whole.read_bytes()


def test_another_configuration_is_refused_and_the_fields_named(tmp_path):
    claim_workdir(tmp_path, CONFIG)
    before = (tmp_path / "config.json").read_bytes()
    other = {**CONFIG, "seed": 1, "train": {"epochs": 4, "rates": (1, 2)}, "more": 1}
    with pytest.raises(ValueError, match=r"fields that differ: more, seed, train\.epochs; use ano"):
        claim_workdir(tmp_path, other)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_folder_of_other_things_is_refused_and_left(tmp_path):
    (tmp_path / "thesis.tex").write_text("all my work")
    with pytest.raises(ValueError, match=r"is not empty and holds no config\.json"):
        claim_workdir(tmp_path, CONFIG)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ODD)
def test_a_damaged_configuration_is_refused_and_left(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        claim_workdir(tmp_path, CONFIG)
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        read_config(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == content


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(OSError, match=rf"it is no regular file: .*{name}"):
        read_config(tmp_path) if name == "config.json" else read_journal(tmp_path / name, SCHEMA)


def test_a_journal_on_a_disk_that_is_not_there_is_no_empty_one(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "disk" / "metrics.jsonl")
    with pytest.raises(OSError, match=r"No such file.*metrics\.jsonl"):
        read_journal(tmp_path / "metrics.jsonl", SCHEMA)


def begin_there(workdir):
    check_workdir(workdir, CONFIG)
    with in_use(workdir):
        pass


def test_a_folder_in_which_another_process_begins_meanwhile(tmp_path, monkeypatch):
    exists = Path.exists

    def first_the_other(path):
        # Between one look at the folder and the next.
        answer = exists(path)
        if path.name == "config.json" and not answer:
            write_atomically(path, json.dumps(CONFIG))
            (path.parent / "metrics.jsonl").touch()
        return answer

    monkeypatch.setattr(Path, "exists", first_the_other)
    check_workdir(tmp_path, CONFIG)
    assert not check_workdir(tmp_path, CONFIG)


def test_what_cannot_be_a_work_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "none" / "deeper")
    for name in ("file", "file/below", "loop", "nowhere", "long" * 100, "null\0"):
        with pytest.raises(ValueError, match=f"workdir .*{name[:4]}.*; use another workdir"):
            begin_there(tmp_path / name)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", "loop", "nowhere"]


def even(name, value):
    if value % 2:
        raise ValueError(f"{name} {value} is odd")
    return value // 2


def ratio(name, value):
    return Fraction(value)


PART = {"size": int}
SCHEMA = {
    "whole": Kind({}, {"test": SCORES, "parts": [PART]}),
    "point": Kind({"x": float}, {}),
    "run": Kind(
        {"name": str, "number": even}, {"loss": float, "note": (str, None), "share": (ratio, None)}
    ),
}
WHOLE = {"kind": "whole", "test": {"accuracy": 1, "cross_entropy": 2}, "parts": [{"size": 3}]}
RUN = {"kind": "run", "name": "a", "number": 4, "loss": 1, "more": [1]}


def test_a_journal_is_read_as_its_schema_says(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_journal(path, SCHEMA).found == {}
    append_records(path, [WHOLE, RUN])
    with open(path, "a") as file:
        file.write('\n{"kind": "ru')
    journal = read_journal(path, SCHEMA)
    assert list(journal.found) == [("whole",), ("run", "a", 2)]
    run = journal.get("run", name="a", number=2)
    assert run == {**RUN, "number": 2, "loss": 1.0}
    assert type(run["loss"]) is type(journal.get("whole")["test"]["accuracy"]) is float
    assert journal.get("run", name="a", number=4) is None
    assert journal.of_kind("run", "whole") == [journal.get("whole"), run]


def test_what_was_found_is_not_appended_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_records(path, [WHOLE])
    other = {"kind": "run", "name": "b", "number": 4, "loss": 0.5}
    assert read_journal(path, SCHEMA).append([WHOLE, other]) == [other]
    assert lines(path) == [WHOLE, other]
    assert read_journal(path, SCHEMA).append([WHOLE]) == []
    assert lines(path) == [WHOLE, other]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**RUN, "number": 3}, "the run a, 3 cannot be recorded, .*: number 3 is odd. Nothing was"),
        ({**RUN, "loss": "much"}, "the run a, 4 cannot be recorded, .*'loss' is 'much'"),
        ({**RUN, "share": [1]}, "the run a, 4 cannot .* wrong type"),
        ({**RUN, "more": 1j}, "the run a, 4 cannot .* not JSON serializable"),
        ({**WHOLE, "test": {"accuracy": math.nan, "cross_entropy": 1}}, "the whole cannot"),
        ({"kind": "rum"}, "the rum cannot .*kind 'rum' is unknown; kinds are: whole, point, run"),
        ({**RUN, "name": "b", "loss": 3}, "the run b, 2 was measured twice with other results"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, record, message):
    path = tmp_path / "metrics.jsonl"
    append_records(path, [WHOLE])
    journal, other = read_journal(path, SCHEMA), {**RUN, "name": "b"}
    if record.get("kind") == "whole":
        path.unlink()
        journal = read_journal(path, SCHEMA)
    before = path.read_bytes() if path.exists() else b""
    with pytest.raises(ValueError, match=message):
        journal.append([other, record])
    assert (path.read_bytes() if path.exists() else b"") == before
    assert journal.append([other, dict(other)]) == [other]
    assert journal.append([other]) == []
    with pytest.raises(ValueError, match="the run b, 2 was measured twice"):
        journal.append([{**other, "loss": 7}])
    assert list(read_journal(path, SCHEMA).found)[-1] == ("run", "b", 2)


def test_a_full_disk_is_named_and_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    append_records(path, [WHOLE])
    write = os.write

    def half(descriptor, data):
        if half.left:
            half.left -= 1
            return write(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", half)
    for half.left in (0, 1, 3):
        with pytest.raises(OSError, match=r"No space left on device: .*metrics\.jsonl"):
            append_records(path, [RUN])
        assert list(read_journal(path, SCHEMA).found) == [("whole",)]
    monkeypatch.undo()
    append_records(path, [RUN])
    assert lines(path) == [WHOLE, RUN]


def test_the_versions_are_recorded_where_they_are_others(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first, second = ({"kind": "environment", "jax": jax} for jax in ("1", "2"))
    for number, environment in enumerate((first, first, second, first, None)):
        journal = replace(read_journal(path, SCHEMA), environment=environment)
        if number == 1:
            # Nothing new was measured.
            assert journal.append([WHOLE]) == []
        assert len(journal.append([{**RUN, "name": f"{number}"} if number else WHOLE])) == 1
        journal.again().append([{**RUN, "name": f"{number} again"}])
    found = read_journal(path, SCHEMA)
    assert [r["kind"] for r in lines(path)][:2] == ["whole", "environment"]
    assert list(found.environments) == [first, second, first]
    assert len(found.found) == len(lines(path)) - 3 == 10


@pytest.mark.parametrize("loss", [0.5, 1, math.nan, math.inf])
def test_an_equal_record_that_stands_twice_counts_once(tmp_path, loss):
    path = tmp_path / "metrics.jsonl"
    once = {**RUN, "loss": loss, "share": "1/3"}
    append_records(path, [once, WHOLE])
    first = read_journal(path, SCHEMA)
    # In another order of its fields, and a whole number where a float belongs.
    turned = dict(reversed(once.items())) | {"loss": loss if loss != 1 else 1.0}
    append_records(path, [turned])
    again = read_journal(path, SCHEMA)
    assert list(again.found) == list(first.found) == [("run", "a", 2), ("whole",)]
    assert repr(again.found) == repr(first.found)
    append_records(path, [{**once, "share": "2/3"}])
    with pytest.raises(ValueError, match="line 4: the run a, 2 is recorded a second time"):
        read_journal(path, SCHEMA)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "a record must be a JSON object"),
        ({}, "field 'kind' is missing"),
        ({"kind": "runs"}, "kind 'runs' is unknown; kinds are: whole, point, run"),
        ({"kind": "run"}, "field 'name' is missing"),
        ({**RUN, "number": 3}, "number 3 is odd"),
        ({**RUN, "loss": "much"}, "field 'loss' is 'much', not of type float"),
        ({**RUN, "note": 3}, "field 'note' is 3, not of type str"),
        ({**RUN, "loss": 2}, "the run a, 2 is recorded a second time"),
        ({**WHOLE, "test": 3}, "field 'test' is 3, not of type dict"),
        ({**WHOLE, "test": {"accuracy": 1.5, "cross_entropy": 1}}, r"accuracy 1\.5 is not in"),
        ({**WHOLE, "test": {"accuracy": math.nan, "cross_entropy": 1}}, "accuracy nan is not in"),
        ({**WHOLE, "test": {"accuracy": 1.0}}, "field 'cross_entropy' is missing"),
        ({**WHOLE, "parts": {}}, "field 'parts' is {}, not of type list"),
        ({**WHOLE, "parts": [3]}, "a record must be a JSON object"),
        ({**WHOLE, "parts": [{"size": 1.5}]}, r"field 'size' is 1\.5, not of type int"),
        ({**RUN, "share": [1]}, "a field is of a wrong type"),
        ({**RUN, "number": None}, "a field is of a wrong type"),
        ({**RUN, "loss": 10**400}, "field 'loss' is a number of more than 64 bits"),
        ({**WHOLE, "parts": [{"size": -(2**70)}]}, "field 'size' is a number of more than 64 bits"),
        ({**WHOLE, "test": {**WHOLE["test"], "count": 0}}, "count is 0, not at least 1"),
        ({"kind": "point", "x": math.nan}, "field 'x' is nan, not a finite number"),
        ({"kind": ["run"]}, r"field 'kind' is \['run'\], not of type str"),
    ],
)
def test_a_record_of_another_form_is_named_with_its_line(tmp_path, record, message):
    path = tmp_path / "metrics.jsonl"
    append_records(path, [RUN, record])
    with pytest.raises(ValueError, match=rf"metrics\.jsonl, line 2: {message}"):
        read_journal(path, SCHEMA)


@pytest.mark.parametrize("content", ODD)
def test_a_line_of_odd_bytes_is_named(tmp_path, content):
    path = tmp_path / "metrics.jsonl"
    append_records(path, [RUN])
    path.write_bytes(path.read_bytes() + content + b"\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: ") as raised:
        read_journal(path, SCHEMA)
    assert "\n" not in str(raised.value)
