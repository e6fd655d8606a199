import errno
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.workdir import claim, pulse
from experiments.workdir.claim import (
    FILE,
    GATE,
    Claim,
    InUseError,
    in_use,
    new_claim,
    read_claim,
)
from experiments.workdir.files import remove_leftovers
from experiments.workdir.processes import start_of, this_process
from experiments.workdir.pulse import following
from tdjax.files import write_atomically

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def gone():
    """The number of a process that has ended, though nobody asked how."""
    process = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while start_of(process.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    yield process.pid
    process.wait()


def leave(folder, **changes):
    """What a process, this one but for some changes, left in a folder."""
    left = Claim("0" * 32, "2026-01-02 03:04:05+00:00", replace(this_process(), **changes))
    (folder / FILE).write_text(left.text)


def test_the_second_is_told_who_is_there(tmp_path):
    workdir, link = tmp_path / "new" / "study", tmp_path / "link"
    link.symlink_to(workdir)
    with in_use(workdir):
        before = (workdir / FILE).read_bytes()
        told = rf"in use by process {os.getpid()} on {this_process().host} since 20\d\d-.*: wait"
        for path in (workdir, link):
            with pytest.raises(InUseError, match=told), in_use(path):
                pass
        assert [file.name for file in workdir.iterdir()] == [FILE]
        assert (workdir / FILE).read_bytes() == before
    assert list(workdir.iterdir()) == []
    with pytest.raises(KeyError), in_use(link):
        raise KeyError
    assert list(workdir.iterdir()) == []


def test_what_ended_processes_left_is_taken_over(tmp_path, gone):
    # Ended; another of the same number; before the machine was started; not a number of a process.
    changes = [{"pid": gone}, {"started": "1"}, {"boot": "before"}, {"pid": 0}]
    for change in changes[:2] + changes[2 if this_process().machine else 3 :]:
        leave(tmp_path, **change)
        with in_use(tmp_path):
            assert f'"pid": {os.getpid()}' in (tmp_path / FILE).read_text()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes", [{"boot": "b", "machine": "m"}, {"boot": "b", "host": "h"}, {"namespace": "n"}]
)
def test_what_cannot_be_told_from_here_is_left_with_the_remedy(tmp_path, gone, changes):
    leave(tmp_path, pid=gone, **changes)
    with pytest.raises(InUseError, match=rf"process {gone} on .*remove {tmp_path / FILE}$"):
        in_use(tmp_path).__enter__()
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("linked", [True, False])
def test_of_many_that_start_at_once_one_is_in(tmp_path, gone, monkeypatch, linked):
    def no_links(*_):
        raise OSError(errno.EPERM, "no hard links here")

    if not linked:
        monkeypatch.setattr(os, "link", no_links)
    inside, most, refused = [], [], []

    def run(barrier):
        barrier.wait()
        try:
            with in_use(tmp_path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.002)
                inside.pop()
        except InUseError as error:
            refused.append(str(error))

    rounds, threads = 15, 6
    for number in range(rounds):
        # Left by one that ended, by one that ended when it took over from that, by none.
        if number % 3:
            leave(tmp_path, pid=gone)
        if number % 3 == 2:
            right = tmp_path / f".{FILE}.after-{'0' * 32}"
            right.write_text((tmp_path / FILE).read_text().replace("0" * 32, "1" * 32))
        barrier = threading.Barrier(threads)
        all_of_them = [threading.Thread(target=run, args=(barrier,)) for _ in range(threads)]
        for thread in all_of_them:
            thread.start()
        for thread in all_of_them:
            thread.join()
        assert list(tmp_path.iterdir()) == []
    assert set(most) == {1}
    assert rounds <= len(most) == rounds * threads - len(refused)
    assert all("is in use by process" in text for text in refused)


@pytest.mark.parametrize("content", ["", "[]", '{"token": "../x"}', None])
def test_a_damaged_file_is_named(tmp_path, monkeypatch, content):
    monkeypatch.setattr(claim, "PATIENCE", 0)
    if content is None:
        (tmp_path / FILE).mkdir()
    else:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(InUseError, match=rf"{FILE} should say .* remove it if there is none"):
        in_use(tmp_path).__enter__()
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


def test_leftovers_of_ended_processes_are_removed(tmp_path, gone):
    below = tmp_path / "report"
    (below / "7.orbax-checkpoint-tmp-8" / "params").mkdir(parents=True)
    kept = [
        tmp_path / ".hidden.1",
        below / f".plot.svg.{os.getppid()}.partial",
        below / "a.partial",
    ]
    for path in (*kept, tmp_path / f".a.{gone}.partial", below / f".b.c.{os.getpid()}.partial"):
        path.write_text("x")
    remove_leftovers(tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(kept)
    assert [path.name for path in below.iterdir() if path.is_dir()] == []


FOREIGN = {"boot": "another", "machine": "another", "host": "elsewhere"}


def test_what_nobody_renews_is_taken_over_from_another_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(claim, "SILENCE", 0.3)
    for changes in (FOREIGN, {"namespace": "another"}):
        left = replace(new_claim(), process=replace(this_process(), **changes))
        (tmp_path / FILE).write_text(left.text)
        # Its clock may say anything.
        os.utime(tmp_path / FILE, (2e9, 2e9))
        with in_use(tmp_path):
            assert f'"host": "{this_process().host}"' in (tmp_path / FILE).read_text()
        assert list(tmp_path.iterdir()) == []
        assert "watching whether it lives" in capsys.readouterr().err


def test_what_another_machine_renews_is_in_use(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "SILENCE", 5.0)
    left = replace(new_claim(), process=replace(this_process(), **FOREIGN))
    path = tmp_path / FILE
    path.write_text(left.text)
    renewed = replace(left, pulse=following(left.pulse)).text
    assert len(renewed) == len(left.text)
    timer = threading.Timer(0.3, path.write_text, (renewed,))
    timer.start()
    with pytest.raises(InUseError, match=r"by process \d+ on elsewhere since .*another workdir$"):
        in_use(tmp_path).__enter__()
    timer.join()
    assert path.read_text() == renewed


def test_a_claim_is_renewed_as_long_as_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(pulse, "RENEWED", 0.01)
    with in_use(tmp_path) as held:
        first = read_claim(tmp_path / FILE)
        deadline = time.monotonic() + 30
        while read_claim(tmp_path / FILE).pulse <= first.pulse and time.monotonic() < deadline:
            time.sleep(0.01)
        assert int(read_claim(tmp_path / FILE).pulse) > int(first.pulse)
        held.check()
        # As one that saw no change for long would.
        other = new_claim()
        write_atomically(tmp_path / FILE, other.text)
        with pytest.raises(InUseError, match="is no longer this process's"):
            held.check()
        time.sleep(0.05)
        assert (tmp_path / FILE).read_text() == other.text
    # It is not this block's to remove.
    assert read_claim(tmp_path / FILE) == other


def test_who_is_there_for_a_moment_is_waited_for(tmp_path):
    entered, done = threading.Event(), []

    def moment():
        with in_use(tmp_path, GATE):
            entered.set()
            time.sleep(0.2)
            done.append(1)

    thread = threading.Thread(target=moment)
    thread.start()
    entered.wait()
    with in_use(tmp_path):
        assert done == [1]
    thread.join()


# Root may write wherever it likes: not without this right, which is lost with the next program.
WITHOUT_RIGHTS = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1
if os.geteuid() == 0:
    assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0) == 0
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
TRIES = """
import sys
from pathlib import Path
from experiments.workdir.claim import in_use
for name in sys.argv[1:]:
    try:
        with in_use(Path(name)):
            print("taken")
    except ValueError as error:
        print(error)
"""


def test_a_read_only_folder_is_named_and_left_alone(tmp_path):
    (folder := tmp_path / "run").mkdir(mode=0o555)
    tries = ["-c", TRIES, folder, folder / "new"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RIGHTS, *tries],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines() == [
        f"workdir {folder}: nothing can be written to it (Permission denied); make it writable, "
        "or use another workdir",
        f"workdir {folder / 'new'}: Permission denied; use another workdir",
    ], done.stderr
    assert not list(folder.iterdir())
