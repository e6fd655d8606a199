"""Paths that match a regular expression, without one that would be tried for ever.

Python's matcher goes back over every way in which the parts of a pattern could have matched, and
cannot be stopped. How many ways there are is counted before: of each part of a pattern it is a
matrix W, of which W[i, j] is the number of ways in which the part takes the text from i to j. Parts
one after another multiply, branches add up, a repeat is a sum of powers.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

# A tenth of a second or so; a plain pattern needs some hundred.
MOST_WAYS = 1e7
# Counts beyond it say no more, and stay finite when multiplied.
CAP = 1e60
REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")


def matches(path: str, patterns: str | Sequence[str]) -> bool:
    """Whether a '/'-joined module path matches one of some patterns as a whole.

    Raises ValueError for a pattern that could be tried on the path in more than `MOST_WAYS` ways.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(_matches(path, pattern) for pattern in patterns)


@lru_cache(maxsize=4096)
def _matches(path: str, pattern: str) -> bool:
    parts = _parsed(pattern)
    if parts is not None and ways(parts, path) > MOST_WAYS:
        raise ValueError(
            f"pattern {pattern!r}: there are more than {MOST_WAYS:.0e} ways to try it on {path!r}; "
            "repeat nothing that itself repeats, and use fewer '.*'"
        )
    return re.fullmatch(pattern, path) is not None


@lru_cache
def _parsed(pattern: str) -> Any:
    """The parts of a pattern that repeats or branches so often that it may take long, or None."""
    # Where Python keeps its parser is no promise; without it, nothing is counted.
    try:
        parse = importlib.import_module("re._parser").parse
    except (ImportError, AttributeError):
        return None
    parts = parse(pattern)
    return parts if _depth(parts) > 3 else None


def _depth(parts: Any) -> int:
    """How many choices follow each other: repeats, after each of which the text may be gone over
    for each of its characters, and branches.
    """
    return sum(_depth_of(str(name), argument) for name, argument in parts)


def _depth_of(name: str, argument: Any) -> int:
    if name in REPEATS:
        inner = _depth(argument[2])
        # A repeat of what repeats, or of branches, may have ways without end.
        many = inner or any(str(own) in ("BRANCH", "SUBPATTERN") for own, _ in argument[2])
        return 4 if many else 1
    return (name == "BRANCH") + sum(_depth(below) for below in _below(name, argument))


def _below(name: str, argument: Any) -> list[Any]:
    """The sequences of parts that a part holds, one of which matches."""
    if name == "BRANCH":
        return list(argument[1])
    if name == "SUBPATTERN":
        return [argument[3]]
    if name == "ATOMIC_GROUP":
        return [argument]
    if name in ("ASSERT", "ASSERT_NOT"):
        return [argument[1]]
    if name == "GROUPREF_EXISTS":
        return [below for below in argument[1:] if below is not None]
    return []


class Ways(NamedTuple):
    """What a part of a pattern does on a text of n characters.

    Arguments:
        to: W[i, j], the ways from i to j.
        tried: for each i, the characters that are looked at from there, over all ways.
    """

    to: Float[np.ndarray, "n n"]
    tried: Float[np.ndarray, " n"]


def ways(parts: Any, text: str) -> float:
    """At most how many characters Python's matcher looks at to match a text."""
    return float(_sequence(parts, text).tried[0])


def _sequence(parts: Any, text: str) -> Ways:
    found = _empty(text)
    for name, argument in parts:
        own = _part(str(name), argument, text)
        found = Ways(_times(found.to, own.to), _capped(found.tried + found.to @ own.tried))
    return found


def _part(name: str, argument: Any, text: str) -> Ways:
    if name in REPEATS:
        least, most, inner = argument
        return _repeated(_sequence(inner, text), int(least), int(most))
    if name in ("ASSERT", "ASSERT_NOT"):
        # It goes over the text and comes back.
        return Ways(_empty(text).to, _sequence(argument[1], text).tried + 1)
    below = [_sequence(own, text) for own in _below(name, argument)]
    if below:
        return Ways(
            _capped(np.sum([own.to for own in below], axis=0)),
            _capped(np.sum([own.tried for own in below], axis=0) + 1),
        )
    size = len(text) + 1
    if name in ("AT", "FAILURE"):
        return _empty(text)
    if name == "GROUPREF":
        return Ways(np.triu(np.ones((size, size))), np.full(size, 1.0))
    taken = [_takes(name, argument, character) for character in text]
    return Ways(np.diag(np.array(taken, float), 1) if taken else np.zeros((1, 1)), np.ones(size))


def _repeated(once: Ways, least: int, most: int) -> Ways:
    """The ways of a part from `least` to `most` times."""
    size = len(once.tried)
    # Beyond the least number, the matcher stops once the part has taken nothing.
    step, nothing = np.triu(once.to, 1), np.diag(np.diagonal(once.to))
    first, begun = _powers(once.to, least)
    _, more = _powers(step, min(most - least + 1, size))
    to = _times(first, more)
    starts = _capped(begun + to)
    return Ways(_times(to, np.eye(size) + nothing), _capped(starts @ (once.tried + 1)))


def _powers(step: Float[np.ndarray, "n n"], count: int) -> tuple[np.ndarray, np.ndarray]:
    """step^count, and the sum of the powers below it, by halving."""
    if count == 0:
        return np.eye(len(step)), np.zeros_like(step)
    power, total = _powers(step, count // 2)
    power, total = _times(power, power), _capped(total + _times(power, total))
    if count % 2:
        power, total = _times(power, step), _capped(np.eye(len(step)) + _times(step, total))
    return power, total


def _times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _capped(a @ b)


def _capped(counts: np.ndarray) -> np.ndarray:
    return np.minimum(counts, CAP)


def _empty(text: str) -> Ways:
    return Ways(np.eye(len(text) + 1), np.zeros(len(text) + 1))


def _takes(name: str, argument: Any, character: str) -> bool:
    """Whether a part of one character may take it, in either case: flags are passed over."""
    if name == "LITERAL":
        argument = [(name, argument)]
    elif name != "IN":
        return True
    return any(_is_in(argument, own) for own in {character, character.lower(), character.upper()})


def _is_in(kinds: Any, character: str) -> bool:
    """Whether a set holds a character."""
    found = any(_is_of(str(kind), own, character) for kind, own in kinds)
    return found != any(str(kind) == "NEGATE" for kind, _ in kinds)


def _is_of(kind: str, own: Any, character: str) -> bool:
    if kind in ("LITERAL", "RANGE"):
        low, high = own if kind == "RANGE" else (own, own)
        # Upper case may be of more than one character.
        return any(low <= ord(one) <= high for one in character)
    tests: dict[str, Callable[[str], bool]] = {
        "CATEGORY_DIGIT": str.isdigit,
        "CATEGORY_SPACE": str.isspace,
        "CATEGORY_WORD": lambda one: one.isalnum() or one == "_",
    }
    category = str(own)
    plain = category.replace("_NOT_", "_")
    return plain in tests and tests[plain](character) != (plain != category)
