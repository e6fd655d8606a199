"""Docstrings are plain text with doctests; here they become Markdown."""

import re
from typing import Any

import griffe

# What Markdown would take for a tag, as in <x, H y>, or for emphasis, as in (*window, C, T).
TAG = re.compile(r"<(?=[A-Za-z/!])")
STAR = re.compile(r"(?<![\w*])\*(?=\w)")


class Docstrings(griffe.Extension):
    """Renders the docstrings of all objects that are loaded."""

    def on_object(self, *, obj: Any, **kwargs: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


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
