import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the benchmark needs /proc")
def test_an_experiment_that_is_killed_at_writes_ends_with_the_same_tables(cache):
    command = [sys.executable, "-m", "benchmarks.kills", "--points=3"]
    result = subprocess.run(
        [*command, "--experiments=compressibility"],
        cwd=ROOT,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "equal after" in result.stdout
    assert result.stdout.endswith("| all | 3 |\n")
