"""Kill the experiments, and print how often at which point; see `benchmarks.kills`."""

import sys
import tempfile
import warnings

import jax
from absl import app, flags

from benchmarks.kills.trials import try_alone, try_group
from experiments.runner import EXPERIMENTS, experiment_named
from tdjax import enable_compilation_cache

POINTS = flags.DEFINE_integer("points", 100, "Kills, of all experiments together.")
ONLY = flags.DEFINE_list("experiments", list(EXPERIMENTS), "Which experiments.")
SEED = flags.DEFINE_integer("seed", 0, "Of the places of the kills.")
GROUP = flags.DEFINE_integer("group", 1, "Processes that share the work of each run.")


def main(argv: list[str]) -> None:
    """Kill all of them, and print how often at which point."""
    # No thread runs yet: JAX starts its own with the first array, in the children.
    warnings.filterwarnings("ignore", ".*fork", RuntimeWarning)
    warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
    enable_compilation_cache(jax.config.values["jax_compilation_cache_dir"] or tempfile.mkdtemp())
    for name in ONLY.value:
        # Loaded once for all starts.
        experiment_named(name)
    share = -(-POINTS.value // len(ONLY.value))
    count = GROUP.value
    try:
        if count > 1:
            kills = {name: try_group(name, share, count, SEED.value) for name in ONLY.value}
        else:
            kills = {name: try_alone(name, share, SEED.value) for name in ONLY.value}
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    points = sorted({point for found in kills.values() for point in found})
    print("\n| point | " + " | ".join(kills) + " |\n| --- |" + " ---: |" * len(kills))
    for point in points:
        print(f"| {point} | " + " | ".join(str(found[point]) for found in kills.values()) + " |")
    print("| all | " + " | ".join(str(found.total()) for found in kills.values()) + " |")


if __name__ == "__main__":
    app.run(main)
