"""The command line: from flags to one function call, and from whatever goes wrong to one line."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections.config_flags import get_config_filename

from experiments.dry_run import dry_run
from experiments.launch import launch
from experiments.options import (
    CACHE,
    CONFIG,
    DEVICES,
    DRY_RUN,
    PROCESS,
    PROCESSES,
    TENSORBOARD,
    TRACEBACK,
    WORKDIR,
)
from experiments.runner import REPORT, carry_out, experiment_named
from experiments.usage import fields_text
from experiments.workdir.devices import use_devices
from experiments.workdir.files import page_of
from experiments.workdir.places import place_of
from experiments.workdir.progress import Prefixed
from experiments.workdir.stops import end
from tdjax.compilation import enable_compilation_cache
from tdjax.files import FULL, one_line

# Errors whose message is meant for the reader.
READABLE = (ValueError, OSError, RuntimeError, FloatingPointError, ImportError)


def main(argv: list[str]) -> None:
    """From flags to one function call."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    # The experiments keep the cores busy themselves: threads of LAPACK would only wait for them.
    # Read when SciPy is loaded, which JAX does with the first array.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Orbax logs every step of every save, and tracebacks of what it raises.
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = _unless_given_up
    try:
        if not WORKDIR.value:
            raise ValueError("--workdir is empty: name a folder")
        found = _run(CONFIG.value.to_dict(), Path(WORKDIR.value))
    except Exception as error:
        if TRACEBACK.value:
            raise
        # The message says what to change: a traceback would only hide it. Other tasks may still
        # compute, and are not waited for.
        end(1, f"error: {in_one_line(error)}")
    told = f"report: {found}" if isinstance(found, Path) else found
    # A folder's name may hold bytes that are no text.
    _print(told.encode("utf-8", "backslashreplace").decode("utf-8"))


def _run(raw: dict[str, Any], workdir: Path) -> Path | str:
    """What the flags ask for: the page of the report, or what there is to say."""
    place, count = place_of(PROCESS.value, os.environ), PROCESSES.value
    if count < 1 or (count > 1 and PROCESS.value):
        raise ValueError(f"--processes={count}: give a number of at least 1, or --process")
    use_devices(DEVICES.value)
    if DRY_RUN.value:
        keep_programs(CACHE.value)
        return dry_run(raw, workdir, tensorboard=TENSORBOARD.value)
    if count > 1:
        launch(count, sys.argv[1:])
        return page_of(workdir)
    keep_programs(CACHE.value)
    # Of the report alone there is nothing to share.
    if place is not None and raw.get("experiment") != REPORT:
        sys.stderr = Prefixed(sys.stderr, f"process {place.number}: ")
        return carry_out(raw, workdir, tensorboard=TENSORBOARD.value, place=place)
    return carry_out(raw, workdir, tensorboard=TENSORBOARD.value)


def keep_programs(folder: str | None) -> None:
    """Read compiled programs from earlier runs, and keep those of this one."""
    if folder == "":
        return
    try:
        enable_compilation_cache(folder)
    except OSError as error:
        # Where none was asked for, an experiment does without.
        if folder is not None:
            raise
        print(f"compiled programs are not kept: {in_one_line(error)}", file=sys.stderr)


def _unless_given_up(raised: Any) -> None:
    """Show what a thread cannot raise.

    But for what Orbax gave up at an error that is told: hundreds of times six lines.
    """
    if str(raised.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(raised)


def parse(argv: list[str]) -> list[str]:
    """Parse the flags; whatever the config file or an override raises ends with one clear line."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError) as error:
        # A ConfigDict raises these for an override of an unknown field or of another type.
        overrides = ", ".join(arg for arg in argv if arg.startswith("--config."))
        what = f"the configuration does not take one of {overrides}: " if overrides else ""
        sys.exit(f"error: {what}{in_one_line(error)}")
    except Exception as error:
        sys.exit(f"error: {in_one_line(error)}")


def in_one_line(error: BaseException) -> str:
    """What went wrong, and what to do where that is known.

    Errors that are meant for the reader are their message; others have their class before it.
    """
    chain = list(_causes(error))
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    if not text or not isinstance(error, READABLE):
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    # What XLA says of memory fills pages.
    text = one_line(text)
    if any(
        (isinstance(one, OSError) and one.errno in FULL)
        or any(os.strerror(number) in str(one) for number in FULL)
        for one in chain
    ):
        text += "; make room on the disk and start the same command again: it goes on from there"
    elif any(isinstance(one, MemoryError) or "RESOURCE_EXHAUSTED" in str(one) for one in chain):
        text += "; out of memory: use smaller batches, or a machine with more"
    elif not isinstance(error, READABLE):
        text += "; --traceback shows where it arose"
    return text


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Whoever reads it, as `head`, has seen enough; what is left goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run() -> None:
    """Read the flags and do what they say."""
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse)


def explain(argv: list[str]) -> None:
    """Print the fields of the configuration that is named, with what else the flags set of them."""
    parse(argv)
    name, values = get_config_filename(flags.FLAGS[CONFIG.name]), CONFIG.value.to_dict()
    try:
        settings = experiment_named(values.get("experiment")).settings
        _print(fields_text(name, settings, values))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {in_one_line(error)}")
