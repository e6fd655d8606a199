"""Docstrings are plain text with doctests; here they become Markdown."""

import re
from importlib import import_module
from typing import Any

import griffe

# What Markdown would take for a tag, as in <x, H y>, or for emphasis, as in (*window, C, T).
TAG = re.compile(r"<(?=[A-Za-z/!])")
# Defaults that are named, as EPOCHS or Settings.epochs, of which readers want the value.
NAMED = re.compile(r"(?!None|True|False)[A-Z]\w*(\.\w+)*")
STAR = re.compile(r"(?<![\w*])\*(?=\w)")


class Docstrings(griffe.Extension):
    """Renders the docstrings of all objects that are loaded."""

    def on_object(self, *, obj: Any, **kwargs: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
        if obj.is_function:
            for parameter in obj.parameters:
                name = str(parameter.default)
                # Where there is no default that is None, where it is None that is a text.
                if parameter.default is not None and NAMED.fullmatch(name):
                    parameter.default = value_of(name, obj.module.path)


def value_of(name: str, module: str) -> str:
    """The value of a name in a module of the library, as it is written."""
    value: Any = import_module(module)
    for part in name.split("."):
        value = getattr(value, part)
    whole = type(value) is int and value > 2**20 and value.bit_count() == 1
    return f"2**{value.bit_length() - 1}" if whole else repr(value)


def as_markdown(text: str) -> str:
    """The same text with doctests in fences, and the rest free of accidental markup."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if not inside and line.lstrip().startswith(">>> "):
            indent, inside = len(line) - len(line.lstrip()), True
            lines.append("```pycon")
        elif inside and not line.strip():
            inside = False
            lines.append("```")
        lines.append(line[indent:] if inside else _escaped(line))
    return "\n".join([*lines, "```"] if inside else lines)


def _escaped(line: str) -> str:
    parts = line.split("`")
    # Between backticks it is code.
    parts[::2] = [STAR.sub(r"\*", TAG.sub("&lt;", part)) for part in parts[::2]]
    return "`".join(parts)
