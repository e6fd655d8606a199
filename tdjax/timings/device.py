"""The device that is measured, by name."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import jax

# Packages whose versions make programs what they are.
PACKAGES = ("jax", "jaxlib", "tdjax")


def this_device() -> str:
    """The default device, with the processor and its cores where it is a CPU."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{device.platform}: {device.device_kind}"
    return f"cpu: {processor()}, {os.cpu_count()} cores"


def these_versions() -> dict[str, str]:
    """Versions of what makes the programs."""
    return {name: version_of(name) for name in PACKAGES}


def version_of(package: str) -> str:
    """The version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """The model of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
