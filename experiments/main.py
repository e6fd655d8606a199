"""Run an experiment: `python -m experiments.main --config=configs/digits.py --workdir=DIR`."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from experiments.compress import report as compress_report
from experiments.compress.run import run_compress
from experiments.compress.settings import settings_from_dict as compress_settings
from experiments.compressibility import report as compressibility_report
from experiments.compressibility.run import run_compressibility
from experiments.compressibility.settings import settings_from_dict as compressibility_settings
from experiments.data_aware import report as data_aware_report
from experiments.data_aware.run import run_data_aware
from experiments.data_aware.settings import settings_from_dict
from experiments.error_study.protocol import protocol_from_dict
from experiments.error_study.report import write_report
from experiments.error_study.run import run_study
from experiments.network.torch_weights import load_torch_npz

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, such as configs/digits.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for measurements, checkpoints and report.")
CACHE = flags.DEFINE_string(
    "compilation_cache",
    os.environ.get("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "tdjax" / "xla")),
    "Folder where compiled programs are kept between runs; empty for none.",
)


def study(raw: Mapping[str, Any], workdir: Path) -> Path:
    """How well approximation errors predict what compression does."""
    return run_study(protocol_from_dict(raw), workdir)


def data_aware(raw: Mapping[str, Any], workdir: Path) -> Path:
    """What decompositions that see the data keep of a network."""
    return run_data_aware(settings_from_dict(raw), workdir, load_torch_npz)


def compress(raw: Mapping[str, Any], workdir: Path) -> Path:
    """What strategies keep of a network under one budget."""
    return run_compress(compress_settings(raw), workdir, load_torch_npz)


def compressibility(raw: Mapping[str, Any], workdir: Path) -> Path:
    """How far networks can be pruned, by which rule, and what predicts it."""
    return run_compressibility(compressibility_settings(raw), workdir, load_torch_npz)


def report(_: Mapping[str, Any], workdir: Path) -> Path:
    """The report of whatever was measured in a work directory."""
    path = workdir / "config.json"
    kind = json.loads(path.read_text("utf-8")).get("experiment") if path.exists() else "study"
    return REPORTS.get(kind, write_report)(workdir)


REPORTS: dict[str, Callable[[Path], Path]] = {
    "study": write_report,
    "data_aware": data_aware_report.write_report,
    "compress": compress_report.write_report,
    "compressibility": compressibility_report.write_report,
}
EXPERIMENTS: dict[str, Callable[[Mapping[str, Any], Path], Path]] = {
    "study": study,
    "data_aware": data_aware,
    "compress": compress,
    "compressibility": compressibility,
    "report": report,
}


def main(argv: list[str]) -> None:
    """From flags to one function call."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    # The experiments keep the cores busy themselves: threads of LAPACK would only wait for them.
    # Read when SciPy is loaded, which JAX does with the first array.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Orbax tells of every step of every save.
    logging.set_verbosity(logging.WARNING)
    if CACHE.value:
        jax.config.update("jax_compilation_cache_dir", CACHE.value)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    try:
        raw = CONFIG.value.to_dict()
        name = raw.get("experiment", "study")
        if name not in EXPERIMENTS:
            raise ValueError(
                f"config field 'experiment' is {name!r}: known are {', '.join(EXPERIMENTS)}"
            )
        page = EXPERIMENTS[name](raw, Path(str(WORKDIR.value)))
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        # What a person can mend needs no traceback.
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
