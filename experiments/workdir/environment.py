"""With what something was measured: a record of the journal, and a part of every report."""

from __future__ import annotations

import platform
from importlib import metadata

import jax

from experiments.workdir.journal import ENVIRONMENT

PACKAGES = ("tdjax", "jax", "jaxlib", "flax", "numpy")


def environment() -> dict[str, str]:
    """A record of the versions of what measures, and of the device it measures on."""
    return {
        "kind": ENVIRONMENT,
        "python": platform.python_version(),
        **versions(),
        "device": jax.devices()[0].device_kind,
    }


def versions() -> dict[str, str]:
    """The packages that measurements rest on with their versions, "not installed" where missing."""
    return {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
