"""What a message adds to a wrong name: those that there are, and the one that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(given: object, names: Iterable[str]) -> str:
    """The name nearest to what was given, as the end of a message; "" where none is near."""
    by_case = {name.lower(): name for name in names}
    near = difflib.get_close_matches(str(given).lower(), by_case, n=1)
    return f"; did you mean {by_case[near[0]]!r}?" if near else ""


def known_are(given: object, names: Iterable[str]) -> str:
    """The names that there are, and the nearest of them."""
    names = tuple(names)
    return f"known are {', '.join(names)}{did_you_mean(given, names)}"
