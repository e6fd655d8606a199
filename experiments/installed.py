"""Whether this environment has all that pyproject.toml asks for, so that nothing is installed.

    python -m experiments.installed EXTRAS [CONSTRAINTS]

Ends with status 0 if so, else with 1 and what is missing. It needs no network, which installers do
even where there is nothing to install.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packaging.requirements import Requirement


def missing(project: Mapping[str, Any], extras: str, constraints: str = "") -> Iterator[str]:
    """What is asked for and not there, one line each, down to what others ask for.

    Arguments:
        project: the table of that name in pyproject.toml.
        extras: names of extras, with commas between them.
        constraints: lines as pip takes them in a file of constraints.

    Raises ImportError without `packaging`.
    """
    from packaging.requirements import Requirement

    lines = [line.split("#")[0].strip() for line in constraints.splitlines()]
    pinned = {own.name: own.specifier for own in map(Requirement, filter(None, lines))}
    # Of which version does not matter: a clone is installed as it stands, whatever becomes of it.
    waiting = [Requirement(f"{project['name']}[{extras}]")]
    seen = set()
    while waiting:
        own = waiting.pop()
        if str(own) in seen:
            continue
        seen.add(str(own))
        wanted, found = own.specifier & pinned.get(own.name, ""), installed(own.name)
        if found is None or not wanted.contains(found, prereleases=True):
            yield f"{own.name}{wanted} (there is {found or 'none'})"
        elif own.name == project["name"]:
            # What was installed from may be older than the file.
            waiting += map(Requirement, project["dependencies"])
            for extra in own.extras:
                known = project["optional-dependencies"]
                if extra in known:
                    waiting += map(Requirement, known[extra])
                else:
                    yield f"the extra {extra!r} (there are {', '.join(known)})"
        else:
            waiting += needed(own)


def needed(own: Requirement) -> Iterator[Requirement]:
    """What an installed distribution asks for itself, with the extras that are wanted of it."""
    from packaging.requirements import Requirement

    for line in requires(own.name) or ():
        found = Requirement(line)
        extras = own.extras or {""}
        if found.marker is None or any(found.marker.evaluate({"extra": one}) for one in extras):
            yield found


def installed(name: str) -> str | None:
    """The version of a distribution; None where it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main(argv: list[str]) -> int:
    """The exit status."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    constraints = Path(argv[1]).read_text(encoding="utf-8") if argv[1:] else ""
    try:
        lacking = list(missing(project, argv[0], constraints))
    except ImportError as error:
        lacking = [f"{error.name} (there is none)"]
    for line in lacking:
        print(f"missing: {line}")
    return bool(lacking)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
