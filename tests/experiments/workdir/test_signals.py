import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.workdir.stops import WITH_INPUT

ROOT = Path(__file__).resolve().parents[3]
# A thread that nobody stops, and an inner and an outer thing to undo.
PROGRAM = """
import hashlib, signal, threading, time
from experiments.workdir.stops import answer_signals, end_with_input, undone
# The tests themselves may have been started to ignore them, as by nohup.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
answer_signals()
end_with_input()
threading.Thread(target=time.sleep, args=(600,)).start()
with undone(lambda: print("outer", flush=True)), undone(lambda: print("inner", flush=True)):
    print("ready", flush=True)
    # Compiled code, which comes back to Python after minutes.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**30)
"""

# It is killed when it has started all processes, at the first look at them.
STARTS_OTHERS = """
import os, signal, types
from experiments import launch
launch.time = types.SimpleNamespace(sleep=lambda _: os.kill(os.getpid(), signal.SIGKILL))
launch.launch(2, ["--config=configs/digits.py", "--workdir=/nowhere"])
"""


def stopped(number):
    """What a process says, and its status, after a signal; or when its input ends, for None."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, WITH_INPUT: "1" if number is None else ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        if number is not None:
            process.send_signal(number)
        try:
            return (*process.communicate(timeout=30), process.returncode)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (2, "Ctrl-C"),
        (15, "SIGTERM"),
        (1, "the end of the terminal"),
        (None, "the end of what started it"),
    ],
)
def test_a_signal_ends_with_one_line_and_everything_undone(number, name):
    out, told, status = stopped(number)
    assert status == 128 + (number or signal.SIGHUP)
    assert out == "inner\nouter\n"
    assert told.startswith(f"stopped by {name}")
    assert told.endswith(
        "start the same command again to go on; nothing that was measured is lost\n"
    )
    assert told.count("\n") == 1


def test_processes_end_with_the_one_that_started_them():
    # Their standard error is read to its end, which comes with that of the last one.
    found = subprocess.run(
        [sys.executable, "-c", STARTS_OTHERS],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == -signal.SIGKILL
    assert found.stderr.count("stopped by the end of what started it") == 2
