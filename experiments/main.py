"""Run an experiment: `python -m experiments.main --config=configs/digits.py --workdir=DIR`."""

import os
import sys
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from experiments.runner import carry_out

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, such as configs/digits.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for measurements, checkpoints and report.")
CACHE = flags.DEFINE_string(
    "compilation_cache",
    os.environ.get("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "tdjax" / "xla")),
    "Folder where compiled programs are kept between runs; empty for none.",
)


def main(argv: list[str]) -> None:
    """From flags to one function call."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    # The experiments keep the cores busy themselves: threads of LAPACK would only wait for them.
    # Read when SciPy is loaded, which JAX does with the first array.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Orbax logs every step of every save.
    logging.set_verbosity(logging.WARNING)
    if CACHE.value:
        jax.config.update("jax_compilation_cache_dir", CACHE.value)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    try:
        page = carry_out(CONFIG.value.to_dict(), Path(str(WORKDIR.value)))
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        # The message says what to change: a traceback would only hide it.
        sys.exit(f"error: {error}")
    print(f"report: {page}")


def parse(argv: list[str]) -> list[str]:
    """Parse the flags; a config field that the file does not have ends with one clear line."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError) as error:
        # A ConfigDict raises these for an override of an unknown field or of another type.
        overrides = ", ".join(arg for arg in argv if arg.startswith("--config."))
        sys.exit(f"error: the configuration does not take one of {overrides}: {error}")


def run() -> None:
    """Entry point."""
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse)


if __name__ == "__main__":
    run()
