"""With what something was measured: a record of the journal, and a part of every report."""

from __future__ import annotations

import os
import platform
import subprocess
from collections import Counter
from datetime import datetime, timedelta
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import jax

from experiments.workdir.journal import Journal, now
from experiments.workdir.record_fields import ENVIRONMENT

PACKAGES = ("tdjax", "jax", "jaxlib", "flax", "numpy")
CLONE = Path(__file__).parents[2]
# Fields of the record, with their names on the page.
SHOWN = {
    "processor": "processor",
    "backend": "backend",
    "device": "device",
    "commit": "commit",
    "python": "Python",
    **{name: name for name in PACKAGES},
}


def environment() -> dict[str, str]:
    """A record of what measures: versions, commit, processor and device, and since when."""
    commit = _commit()
    return {
        "kind": ENVIRONMENT,
        "python": platform.python_version(),
        **versions(),
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "processor": _processor(),
        **({"commit": commit} if commit else {}),
        "started": now(),
    }


def versions() -> dict[str, str]:
    """The packages that measurements rest on with their versions, "not installed" where missing."""
    return {package: _version(package) for package in PACKAGES}


def measured_with(measured: Journal) -> dict[str, str]:
    """When, for how long and with what a journal was measured, by the names to show.

    What is not recorded is left out; of what changed on the way, each is named.
    """
    found: dict[str, str] = {}
    times = sorted(measured.times)
    starts = Counter(one.get("process", "") for one in measured.environments if "started" in one)
    if times:
        days = dict.fromkeys(day[:10] for day in (times[0], times[-1]))
        found["measured"] = " to ".join(days)
    if (known := spent(measured)) is not None:
        # Processes of a group begin together.
        often = max(starts.values(), default=0)
        begun = f", begun {often} times" if often > 1 else ""
        shared = f", by {len(starts)} processes" if len(starts) > 1 else ""
        found["duration"] = f"{in_words(known)}{begun}{shared}"
    for field, name in SHOWN.items():
        values = dict.fromkeys(one[field] for one in measured.environments if field in one)
        if values:
            found[name] = ", then ".join(values)
    return found


def spent(measured: Journal) -> timedelta | None:
    """From each start of a process that measured to its last record; None where it is not known."""
    times = sorted(measured.times)
    starts = sorted(one["started"] for one in measured.environments if "started" in one)
    spent = None
    for start, end in pairwise([*starts, "~"]):
        if within := [time for time in times if start <= time < end]:
            try:
                own = datetime.fromisoformat(within[-1]) - datetime.fromisoformat(start)
            except (ValueError, TypeError):
                continue
            spent = own if spent is None else spent + own
    return spent


def in_words(spent: timedelta) -> str:
    """A time in hours and minutes, or minutes and seconds."""
    minutes, seconds = divmod(round(spent.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """Its model and how many cores there are."""
    info, model = Path("/proc/cpuinfo"), ""
    if info.is_file():
        lines = (line.partition(":") for line in info.read_text(errors="replace").splitlines())
        model = next((value for name, _, value in lines if name.strip() == "model name"), "")
    name = " ".join(model.split()) or platform.processor() or platform.machine() or "unknown"
    return f"{name}, {os.cpu_count()} cores"


def _commit() -> str | None:
    """The commit of the clone that measures; None where it is none, or there is no git."""
    try:
        if Path(_git("rev-parse", "--show-toplevel")) != CLONE.resolve():
            return None
        changed = _git("status", "--porcelain", "--untracked-files=no")
        return _git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(CLONE), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
