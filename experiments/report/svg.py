"""Figures as SVG text: colours that follow the page's, and marks that say what they show."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

SPACE = "http://www.w3.org/2000/svg"
LINK = "{http://www.w3.org/1999/xlink}href"
FONTS = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
# Colours that a page in dark mode has others for, by the names of its variables.
VARIABLES = {
    "#24292e": "ink",
    "#62686f": "muted",
    "#e4e2dc": "line",
    "#ffffff": "card",
    "#fefefe": "rim",
    "#0072b2": "blue",
    "#d55e00": "vermilion",
    "#009e73": "green",
    "#cc79a7": "pink",
    "#e69f00": "amber",
    "#56b4e9": "sky",
    "#8a8f96": "grey",
    "#b9bdc2": "pale",
    "#000000": "black",
}
_TITLES = "titles:"


def titled(artist: Any, titles: Sequence[str]) -> None:
    """Let the marks of an artist say what they show, one text for each in order."""
    artist.set_gid(_TITLES + json.dumps([printable(text) for text in titles]))


def printable(text: str) -> str:
    """The text with escapes in place of what XML cannot hold, as halves of characters."""
    shown = (c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    return "".join(shown)


def finished(drawn: bytes, label: str) -> str:
    """A figure as a file of its own: matplotlib's SVG with titles, variables and no date.

    The same figure gives the same text.

    Arguments:
        label: what it shows, for who cannot see it.
    """
    ElementTree.register_namespace("", SPACE)
    root = ElementTree.fromstring(drawn)
    for child in root.findall(f"{{{SPACE}}}metadata"):
        root.remove(child)
    for defs in root.findall(f"{{{SPACE}}}defs"):
        for style in defs.findall(f"{{{SPACE}}}style"):
            defs.remove(style)
    for element in root.iter():
        if (found := element.get("id", "")).startswith(_TITLES):
            _say(element, json.loads(found.removeprefix(_TITLES)))
        if LINK in element.attrib:
            element.set("href", element.attrib.pop(LINK))
        if "style" in element.attrib:
            element.set("style", _themed(element.attrib["style"]))
    _drop_unused_ids(root)
    for name in ("width", "height"):
        root.set(name, root.get(name, "").removesuffix("pt"))
    root.attrib.pop("version", None)
    root.attrib |= {"role": "group", "aria-label": label}
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def inline(svg: str, name: str) -> str:
    """The same as a part of a page, as wide as its place.

    Arguments:
        name: keeps its ids apart from those of other figures.
    """
    head, rest = svg.split(">", 1)
    head = re.sub(r' (xmlns|width|height)="[^"]*"', "", head)
    return f"{head}>" + re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", rest)


def _say(group: ElementTree.Element, titles: Sequence[str]) -> None:
    del group.attrib["id"]
    marks = [one for one in group.iter() if one.tag == f"{{{SPACE}}}use"]
    # A patch is a path and no more.
    marks = marks or group.findall(f"{{{SPACE}}}path")
    if len(marks) != len(titles):
        raise ValueError(f"{len(marks)} marks have {len(titles)} titles")
    for mark, text in zip(marks, titles, strict=True):
        mark.set("class", "mark")
        ElementTree.SubElement(mark, f"{{{SPACE}}}title").text = text


def _themed(style: str) -> str:
    style = re.sub(r"'DejaVu Sans'[^;]*", FONTS, style)
    return re.sub("#[0-9a-f]{6}", lambda color: _variable(color[0]), style)


def _variable(color: str) -> str:
    # Beside its name, so that a file of its own has it too.
    return f"var(--{VARIABLES[color]}, {color})" if color in VARIABLES else color


def _drop_unused_ids(root: ElementTree.Element) -> None:
    values = [value for element in root.iter() for value in element.attrib.values()]
    used = {name for value in values for name in re.findall(r"#([\w-]+)", value)}
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
