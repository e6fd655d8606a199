"""The versions of the packages that a report rests on."""

from importlib import metadata

PACKAGES = ("tdjax", "jax", "flax", "numpy")


def versions() -> dict[str, str]:
    """Package and version, "not installed" where it is missing."""
    return {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
