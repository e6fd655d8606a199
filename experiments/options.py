"""The flags of the command line, which load nothing that takes time."""

import os
from collections.abc import Iterator

from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, such as configs/digits.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for measurements, checkpoints and report.")
CACHE = flags.DEFINE_string(
    "compilation_cache",
    os.environ.get("JAX_COMPILATION_CACHE_DIR"),
    "Folder where compiled programs are kept between runs; empty for none; "
    "else see tdjax.enable_compilation_cache.",
)
TENSORBOARD = flags.DEFINE_bool(
    "tensorboard", False, "Write curves of training as event files to WORKDIR/tensorboard."
)
DRY_RUN = flags.DEFINE_bool(
    "dry-run", False, "Say what would be measured and how long it takes; write nothing."
)
DEVICES = flags.DEFINE_integer(
    "devices", None, "Devices of this process to compute on; all of them by default.", lower_bound=1
)
PROCESSES = flags.DEFINE_integer(
    "processes", 1, "Processes of this machine that share the work; started and waited for."
)
PROCESS = flags.DEFINE_string(
    "process",
    "",
    "Which of how many processes that share the work this is, from 0, such as 2/8; 0/1 is alone. "
    "Else as SLURM, Open MPI or a TPU pod says.",
)
TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where an error arose.")


def listed() -> Iterator[tuple[str, str]]:
    """The flags and what they mean, in the order above."""
    for flag in (
        CONFIG,
        WORKDIR,
        CACHE,
        TENSORBOARD,
        DRY_RUN,
        DEVICES,
        PROCESSES,
        PROCESS,
        TRACEBACK,
    ):
        value = "" if flags.FLAGS[flag.name].boolean else "=..."
        yield flag.name + value, flags.FLAGS[flag.name].help
