import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# A thread that nobody stops, and an inner and an outer thing to undo.
PROGRAM = """
import hashlib, signal, threading, time
from experiments.workdir.stops import answer_signals, undone
# The tests themselves may have been started to ignore them, as by nohup.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
answer_signals()
threading.Thread(target=time.sleep, args=(600,)).start()
with undone(lambda: print("outer", flush=True)), undone(lambda: print("inner", flush=True)):
    print("ready", flush=True)
    # Compiled code, which comes back to Python after minutes.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**30)
"""


def stopped(number):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        try:
            return (*process.communicate(timeout=30), process.returncode)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@pytest.mark.parametrize(("number", "name"), [(2, "Ctrl-C"), (15, "SIGTERM"), (1, "the end of ")])
def test_a_signal_ends_with_one_line_and_everything_undone(number, name):
    out, told, status = stopped(number)
    assert status == 128 + number
    assert out == "inner\nouter\n"
    assert told.startswith(f"stopped by {name}")
    assert told.endswith(
        "start the same command again to go on; nothing that was measured is lost\n"
    )
    assert told.count("\n") == 1
