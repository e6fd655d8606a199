"""What `--help` prints: experiments, configurations and options, or the fields of a configuration.

The standard library alone, and texts that stand in docstrings: nothing is loaded that takes time.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

CLONE = Path(__file__).resolve().parents[1]
WIDTH, NAMES = 100, 34
HELP = ("-h", "-help", "--help", "-helpshort", "--helpshort")
# The packages of the experiments, and how the names of their configurations begin.
PACKAGES = {
    "error_study": "",
    "data_aware": "data_aware_",
    "compress": "compress_",
    "compressibility": "compressibility_",
}
USAGE = """\
Runs an experiment, or goes on with one, and writes its report to DIR/report/index.html:

    python -m experiments.main --config=CONFIG --workdir=DIR [--config.FIELD=VALUE ...] [options]

A configuration is one of these files, with :smoke behind its name a variant of a minute, or a file
of your own (docs/own_network.md). Its docstring has the command and the result to expect.
"""
SET = """\
Fields are set behind the configuration: --config.seed=1 --config.train.epochs=10
'--config.budgets=(0.5,0.25)'. All fields of one, with their values and what they mean:

    python -m experiments.main --config=configs/digits.py --help
"""


def overview(options: Iterable[tuple[str, str]]) -> str:
    """The experiments, their configurations, how fields are set, and options with their meaning."""
    files = sorted(path for path in (CLONE / "configs").glob("*.py") if _has_config(path))
    parts = [USAGE]
    for package, begin in PACKAGES.items():
        others = [own for own in PACKAGES.values() if own and own != begin]
        own = [
            (f"configs/{path.name}", _first_line(path))
            for path in files
            if path.name.startswith(begin) and not (not begin and path.name.startswith((*others,)))
        ]
        title = _first_line(CLONE / "experiments" / package / "__init__.py")
        parts.append("\n".join([*textwrap.wrap(title, WIDTH), *_table(own)]) + "\n")
    listed = [(f"--{name}", meaning) for name, meaning in options]
    return "\n".join([*parts, SET, "Options:", *_table(listed)])


def fields_text(name: str, settings: type, values: Mapping[str, Any]) -> str:
    """What a configuration is, and all its fields, each with its value and its meaning.

    Arguments:
        name: the path of its file, with a variant behind it or without.
        settings: the dataclass that it is read to.
        values: its fields, nested.
    """
    rows = [
        (f"{path}={value!r}", meanings(owner).get(path.rpartition(".")[2], ""))
        for path, owner, value in _leaves(settings, values, "")
    ]
    about = _docstring(Path(name.partition(":")[0]))
    head = f"Fields, each set by --config.FIELD=VALUE, as {name} has them:"
    return "\n".join([*([about, ""] if about else []), head, *_table(rows)])


def meanings(settings: type) -> dict[str, str]:
    """What each field of a dataclass of settings means, as its docstring and its bases' say."""
    found: dict[str, str] = {}
    for base in reversed(settings.__mro__):
        text = inspect.cleandoc(base.__doc__ or "").partition("Arguments:\n")[2]
        # An entry may be of several fields, and its further lines are indented more.
        for names, meaning in re.findall(
            r"^ {4}(\w[\w, ]*): (.*(?:\n {8}.*)*)", text, re.MULTILINE
        ):
            found |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return found


def _leaves(
    settings: type, values: Mapping[str, Any], where: str
) -> Iterator[tuple[str, type, Any]]:
    """Every field that holds no others: its path, the dataclass that it is in, and its value."""
    from experiments.workdir.fields import type_hints

    for field in dataclasses.fields(settings):
        hint, value, path = type_hints(settings)[field.name], values[field.name], where + field.name
        if dataclasses.is_dataclass(hint):
            yield from _leaves(hint, value, f"{path}.")  # type: ignore[arg-type]
        else:
            yield path, settings, value


def _table(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Names and their meaning, which begins in a line of its own behind a long name."""
    for name, meaning in rows:
        start = f"  {name}  ".ljust(NAMES)
        if len(start) > NAMES:
            yield from _wrapped(start.rstrip(), " " * 6)
            start = " " * NAMES
        yield from _wrapped(start + meaning, " " * NAMES)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _has_config(path: Path) -> bool:
    return "\ndef get_config(" in (text := path.read_text("utf-8")) or "\nget_config = " in text


def _first_line(path: Path) -> str:
    return _docstring(path).partition("\n")[0]


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
