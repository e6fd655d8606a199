import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from absl import flags

from experiments import command
from experiments.command import in_one_line
from tdjax.files import LONGEST_MESSAGE

ROOT = Path(__file__).resolve().parents[2]


def told_at_the_end(monkeypatch, error, **given):
    """What the command prints, and the status that it ends with, where an experiment raises.

    `given` are values of flags.
    """

    class Config:
        def to_dict(self):
            return {}

    class Flag:
        def __init__(self, value):
            self.value = value

    def raising(*_, **__):
        raise error

    def end(status, line):
        raise SystemExit(status, line)

    flags = {"CONFIG": Config(), "WORKDIR": "runs/none", "CACHE": "", "DEVICES": None}
    flags |= {"PROCESS": "", "PROCESSES": 1}
    for name, value in {**flags, **given}.items():
        monkeypatch.setattr(command, name, Flag(value))
    for name in ("TRACEBACK", "TENSORBOARD", "DRY_RUN"):
        monkeypatch.setattr(command, name, Flag(False))
    monkeypatch.setattr(command, "carry_out", raising)
    monkeypatch.setattr(command, "end", end)
    with pytest.raises(SystemExit) as raised:
        command.main(["main"])
    return raised.value.args


def full(message):
    try:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        try:
            raise ValueError(message) from error
        except ValueError as outer:
            return outer


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("field 'x'\n  is wrong"), "field 'x' is wrong"),
        (OSError(errno.EACCES, "Permission denied", "a/b"), "a/b: Permission denied"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a/b"),
            "a/b: No space left on device; make room on the disk and start the same command "
            "again: it goes on from there",
        ),
        (
            full("the save failed"),
            "the save failed; make room on the disk and start the same command again: it goes on "
            "from there",
        ),
        (
            ValueError("OUT_OF_RANGE: Failed writing: File too large"),
            "OUT_OF_RANGE: Failed writing: File too large; make room on the disk and start the "
            "same command again: it goes on from there",
        ),
        (
            MemoryError(),
            "MemoryError; out of memory: use smaller batches, or a machine with more",
        ),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 5 bytes"),
            "RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes; out of memory: use smaller "
            "batches, or a machine with more",
        ),
        (KeyError("kernel"), "KeyError: 'kernel'; --traceback shows where it arose"),
    ],
)
def test_whatever_goes_wrong_is_told_in_one_line(monkeypatch, error, line):
    assert told_at_the_end(monkeypatch, error) == (1, f"error: {line}")


def test_a_long_message_is_cut():
    assert in_one_line(ValueError("x " * 10_000)) == f"{('x ' * 500)[:LONGEST_MESSAGE]} ..."


def test_an_empty_work_directory_is_refused(monkeypatch):
    status = told_at_the_end(monkeypatch, AssertionError(), WORKDIR="")
    assert status == (1, "error: --workdir is empty: name a folder")


@pytest.mark.parametrize(("count", "place"), [(2, "0/2"), (0, "")])
def test_several_processes_are_started_or_this_is_one_of_them(monkeypatch, count, place):
    status, line = told_at_the_end(monkeypatch, AssertionError(), PROCESSES=count, PROCESS=place)
    told = f"error: --processes={count}: give a number of at least 1, or --process"
    assert (status, line) == (1, told)


def test_flags_that_cannot_be_read_end_with_one_line(monkeypatch):
    def raising(_):
        raise SyntaxError("invalid syntax (digits.py, line 3)")

    monkeypatch.setattr(command.app, "parse_flags_with_usage", raising)
    with pytest.raises(SystemExit, match=r"^error: SyntaxError: invalid .*line 3\)"):
        command.parse(["main", "--config=digits.py"])


@pytest.mark.usefixtures("own_cache")
def test_programs_that_cannot_be_kept_stop_who_asked_for_it_alone(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="name another folder"):
        command.keep_programs(str(tmp_path / "file" / "below"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    jax.config.update("jax_compilation_cache_dir", None)
    command.keep_programs(None)
    assert capsys.readouterr().err.startswith(f"compiled programs are not kept: {tmp_path}/file/")


def test_help_names_all_configurations_and_loads_nothing_that_takes_time():
    script = "import sys; from experiments.main import run; run(); assert 'jax' not in sys.modules"
    asked = [sys.executable, "-c", script, "--help"]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    named = set(re.findall(r"^  configs/(\w+)[.]py(?: |$)", done.stdout, re.MULTILINE))
    # These are what configurations have in common.
    others = {"__init__", "alds", "common"}
    assert named == {path.stem for path in (ROOT / "configs").glob("*.py")} - others
    for name in ("workdir", "dry-run", "processes", "config.seed"):
        assert f"--{name}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


# By which ml_collections loads the file of a configuration.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_help_on_a_configuration_shows_its_fields(capsys, monkeypatch):
    # Fields that are set are looked for there.
    arguments = ["main", f"--config={ROOT}/configs/digits.py:smoke", "--config.seed=7"]
    monkeypatch.setattr(sys, "argv", arguments)
    try:
        command.explain(arguments)
    finally:
        flags.FLAGS.unparse_flags()
    text = capsys.readouterr().out
    assert text.startswith("The study on scikit-learn's embedded 8x8 digits")
    assert "  seed=7  " in text
    assert "\n  train.epochs=2 " in text
    assert "epochs at whose end the learning rate is multiplied by" in text
    assert max(map(len, text.splitlines())) <= 100
