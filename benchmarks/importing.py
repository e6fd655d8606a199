"""What loading the library takes: `python -m benchmarks.importing`.

Each in a Python of its own: `import tdjax` in turns with `import jax, flax`, which a program with a
model loads anyway. The last row adds the adapters, which are loaded when they are first needed.
"""

import subprocess
import sys

from absl import app, flags

from benchmarks.timing import describe_machine, interleaved

ROUNDS = flags.DEFINE_integer("rounds", 10, "Timed rounds of all sides.")

SCRIPTS = ("pass", "import jax, flax", "import tdjax", "import tdjax; tdjax.make_plan")


def load(script: str) -> None:
    """Run a script in a Python of its own."""
    subprocess.run([sys.executable, "-c", script], check=True)


def main(_: list[str]) -> None:
    """Print a row for each script."""
    print(describe_machine())
    print(f"seconds: median [least, most] of {ROUNDS.value} rounds\n")
    print("| script | s |")
    print("|---|---:|")
    calls = [lambda script=script: load(script) for script in SCRIPTS]
    for script, timing in zip(SCRIPTS, interleaved(calls, ROUNDS.value), strict=True):
        print(f"| `{script}` | {timing} |")


if __name__ == "__main__":
    app.run(main)
