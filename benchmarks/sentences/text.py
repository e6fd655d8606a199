"""Sentences in English that every machine has: the documentation inside Python's own library."""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Tests are no prose; the others are not Python's own.
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
ENDS = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
SENTENCE = re.compile(r"[A-Z][A-Za-z0-9 ,;:'()/_.\"-]+[.!?]")
LEAST_WORDS = 6
# Of the modules, for the sentences that judge.
APART = 0.2


class Texts(NamedTuple):
    """Sentences for calibration, and others, from other modules, to judge by."""

    seen: list[str]
    held_out: list[str]


def draw_texts(
    seen: int,
    held_out: int,
    fits: Callable[[str], bool],
    seed: int,
    library: str | Path | None = None,
) -> Texts:
    """Sentences at random, of which no two are the same.

    Arguments:
        seen, held_out: how many.
        fits: whether a sentence can be taken.
        seed: of which modules are for which, and of the choice among their sentences.
        library: folder of the modules; None for that of Python's own.

    Raises ValueError where there are too few.
    """
    drawn = np.random.default_rng(seed)
    modules = split_modules(drawn, library)
    found: list[list[str]] = []
    for files, number in ((modules.held_out, held_out), (modules.seen, seen)):
        own = (text for file in files for text in sentences_of(file))
        texts = [text for text in dict.fromkeys(own) if not any(text in known for known in found)]
        texts = [texts[place] for place in drawn.permutation(len(texts)) if fits(texts[place])]
        if len(texts) < number:
            raise ValueError(f"{len(texts)} sentences; {number} are asked for")
        found.append(texts[:number])
    return Texts(found[1], found[0])


class Modules(NamedTuple):
    """Files for calibration or training, and others to judge by."""

    seen: list[Path]
    held_out: list[Path]


def split_modules(drawn: np.random.Generator, library: str | Path | None = None) -> Modules:
    """The modules of a library, None for Python's own, a fifth of them held out."""
    files = sorted(_modules(Path(library or sysconfig.get_paths()["stdlib"])))
    apart = drawn.permutation(len(files)) < APART * len(files)
    split = [
        [file for file, own in zip(files, group, strict=True) if own] for group in (~apart, apart)
    ]
    return Modules(*split)


def sentences_of(path: Path) -> list[str]:
    """Whole sentences in the documentation inside a module; none of a damaged one."""
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return [text for text in _cut(filter(None, texts)) if SENTENCE.fullmatch(text)]


def _modules(library: Path) -> Iterator[Path]:
    for path in library.rglob("*.py"):
        if not LEFT_OUT & set(path.relative_to(library).parts):
            yield path


def _cut(texts: Iterable[str]) -> Iterator[str]:
    """Pieces of paragraphs, of some words each."""
    for text in texts:
        for paragraph in re.split(r"\n\s*\n", text):
            for piece in ENDS.split(" ".join(paragraph.split())):
                if len(piece.split()) >= LEAST_WORDS:
                    yield piece
