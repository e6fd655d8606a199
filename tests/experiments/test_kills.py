import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("jinja2")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the benchmark needs /proc")
def test_killed_at_any_write_a_run_ends_with_the_same_files():
    # Whole experiments: `python -m benchmarks.kills`.
    result = subprocess.run(
        [sys.executable, "-m", "tests.experiments.killed"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    kills = int(result.stdout.split()[-2])
    assert kills > 15
