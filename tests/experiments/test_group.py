"""Several processes share the work on one work directory; the processes are those of `grouped`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kills.configs import CONFIGS
from tests.experiments.left import left, tables_of

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def scenes(cache):
    """What became of each group, by the name of the function that started it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.experiments.grouped", str(cache)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def is_whole(scenes):
    """Whether a group left what one process leaves: the same lines, the same files, no others."""
    whole = scenes["alone"]
    assert whole["ended"] == [0]
    assert len(whole["lines"]) == 7
    assert whole["files"] == [
        "config.json",
        "metrics.jsonl",
        "report",
        *(f"report/{name}" for name in ("index.html", "rows.csv", "tables.md")),
    ]

    def check(found):
        return [found[name] == whole[name] for name in ("lines", "files")] == [True, True]

    return check


@pytest.mark.parametrize("name", ["two", "four", "linked", "slow"])
def test_several_processes_leave_what_one_leaves(scenes, is_whole, name):
    found = scenes[name]
    assert set(found["ended"]) == {0}, found["logs"]
    assert is_whole(found)
    # All but the first wait for the report, and the work was shared.
    told = [log for log in found["logs"] if "which writes the report" in log]
    assert len(told) == len(found["logs"]) - 1


def test_a_study_by_two_processes_is_that_of_one_byte_for_byte(scenes, cache, tmp_path):
    """By one command, which starts them and waits for them."""
    config, workdir = tmp_path / "tiny.py", tmp_path / "run"
    config.write_text(
        "from ml_collections import ConfigDict\n\n\n"
        f"def get_config():\n    return ConfigDict({CONFIGS['study']!r})\n"
    )
    command = [sys.executable, "-m", "experiments.main", f"--config={config}"]
    command += [f"--workdir={workdir}", f"--compilation_cache={cache}", "--processes=2"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"report: {workdir}/report/index.html\n")
    told = {line.partition(":")[0] for line in done.stderr.splitlines()}
    assert told >= {"process 0", "process 1"}
    one, two = scenes["whole_study"], {**left(tmp_path), "tables": tables_of(workdir)}
    assert one["ended"] == [0]
    assert len(one["lines"]) == 2 * 2 + 2 + 2 * 2 * (2 * 2 * 2)
    assert two["lines"] == one["lines"]
    assert two["tables"] == one["tables"]
    # Names inside of checkpoints are drawn.
    outside = [{f for f in found["files"] if f.count("/") < 3} for found in (one, two)]
    assert outside[0] == outside[1]


def test_others_do_what_a_killed_process_began(scenes, is_whole):
    assert scenes["killed"]["ended"] == [0, -9, 0]
    assert is_whole(scenes["killed"])
    assert scenes["killed_at_the_report"]["ended"] == [-9, 0]
    assert is_whole(scenes["killed_at_the_report"])


def test_who_is_killed_leaving_is_seen_to_by_whoever_is_there_or_comes_next(scenes, is_whole):
    found = scenes["killed_as_they_leave"]
    assert all(map(is_whole, found))
    killed = [[not calls for calls in group["calls"]] for group in found]
    assert killed == [[False, True], [True, True], [False, True], [True, False]]
    assert found[1]["is_unattended"]


def test_a_full_disk_of_one_process_is_told_by_it_alone(scenes, is_whole):
    found = scenes["full_disk"]
    assert found["ended"] == [0, 1]
    assert "File too large" in found["logs"][1]
    assert is_whole(found)


def test_a_file_where_a_folder_should_be_is_named(scenes):
    found = scenes["no_folder"]
    assert found["ended"] == [1, 1]
    assert all("run/processes" in log for log in found["logs"])
    assert found["files"] == ["processes"]


def test_what_fails_is_tried_by_one_and_the_rest_is_measured(scenes, is_whole):
    first = scenes["broken_unit"]["first"]
    assert first["ended"] == [1, 1, 1]
    failed = [log for log in first["logs"] if "ValueError: the third is broken" in log]
    told = [log for log in first["logs"] if "not all is measured: unit 3: process" in log]
    assert (len(failed), len(told)) == (1, 2)
    assert len(first["lines"]) == 6
    assert first["files"] == ["config.json", "metrics.jsonl"]
    assert scenes["broken_unit"]["ended"] == [0, 0]
    assert is_whole(scenes["broken_unit"])


def test_who_is_not_of_the_group_is_refused(scenes, is_whole):
    found = scenes["others"]
    assert found["refused"]["ended"] == [1, 1, 1, 1]
    number, configuration, note, alone = found["refused"]["logs"]
    assert "run: number 0 is in use by process" in number
    assert "fields that differ: seed" in configuration
    assert "is in use with another configuration: fields for the report differ" in note
    assert "run is in use by process" in alone
    assert found["ended"] == [0]
    assert is_whole(found)


def test_what_another_machine_left_is_taken_over_when_nothing_changes(scenes, is_whole):
    found = scenes["foreign"]
    # Of its number, and of the unit that it did.
    assert [name[:5] for name in found["before"]] == ["membe", "unit-"]
    assert found["ended"] == [0, 0]
    assert is_whole(found)


def test_any_number_of_processes_goes_on_with_what_others_left(scenes, is_whole):
    found = scenes["resumed"]
    first, second = found["journals"]
    assert any(name.startswith("metrics-") for name in first)
    assert "metrics.jsonl" in second
    assert found["ended"] == [0]
    assert is_whole(found)
