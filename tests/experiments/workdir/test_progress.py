import io
import sys

import pytest

from experiments.workdir import progress
from experiments.workdir.progress import Prefixed, clock, progress_bar


@pytest.fixture
def now(monkeypatch):
    """Seconds that the test lets pass."""
    passed = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: passed[0])
    return passed


def test_where_there_is_no_terminal_progress_is_a_line_now_and_then(now, capsys):
    with progress_bar("measurements", 1000, 200) as bar:
        for second in range(1, 401):
            now[0] = second
            bar.update(2)
    told = capsys.readouterr().err
    assert "\r" not in told
    first, second, *rest, last = told.splitlines()
    assert first == "measurements: 200 of 1000 (20%)"
    assert second == "measurements: 220 of 1000 (22%), 0:10 elapsed, about 6:30 left"
    assert 30 < len(rest) < 40
    assert last == "measurements: 1000 of 1000 (100%) in 6:40"
    assert max(map(len, told.splitlines())) < 120


def test_long_work_has_few_lines_and_work_that_is_done_one(now, capsys):
    with progress_bar("training epochs", 100_000) as bar:
        for second in range(1, 100_001):
            now[0] = second
            bar.update(1)
    assert len(capsys.readouterr().err.splitlines()) < 400
    with progress_bar("training epochs", 30, 30):
        pass
    assert capsys.readouterr().err == "training epochs: 30 of 30 (100%), all there before\n"
    with progress_bar("none", 0):
        pass
    assert capsys.readouterr().err == "none: 0 of 0, all there before\n"


def test_in_a_terminal_there_is_a_bar(monkeypatch):
    tqdm = pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar("measurements", 2) as bar:
        bar.update(2)
    assert isinstance(bar, tqdm.tqdm)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3723, "1:02:03")]
)
def test_times_are_read_as_a_clock(seconds, text):
    assert clock(seconds) == text


def test_lines_of_one_process_among_several_begin_with_its_name():
    below = io.StringIO()
    stream = Prefixed(below, "process 1: ")
    for text in ("a\nb", "c\n", "", "\n", "d"):
        assert stream.write(text) == len(text)
    assert below.getvalue() == "process 1: a\nprocess 1: bc\nprocess 1: \nprocess 1: d"
    assert not stream.isatty()
