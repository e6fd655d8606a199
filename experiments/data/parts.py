"""Sequences whose entries are made when they are asked for, so that no more than one is held."""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar, overload

T = TypeVar("T")
U = TypeVar("U")


class Parts(Sequence[T], Generic[T]):
    """A sequence whose entries are made anew each time that they are asked for.

    Args:
        count: of the entries.
        make: what makes one of them by its place, 0 to `count` - 1.
        ahead: a pass over all of them where that has a faster way than one by one.
    """

    def __init__(
        self,
        count: int,
        make: Callable[[int], T],
        ahead: Callable[[], Iterator[T]] | None = None,
    ) -> None:
        """Keep what makes the entries; none is made."""
        self._count, self._make, self._ahead = count, make, ahead

    def __len__(self) -> int:
        """The number of entries."""
        return self._count

    @overload
    def __getitem__(self, place: int) -> T: ...

    @overload
    def __getitem__(self, place: slice) -> "Parts[T]": ...

    def __getitem__(self, place: int | slice) -> "T | Parts[T]":
        """An entry, or some of them. Raises IndexError for a place out of range."""
        chosen = range(self._count)[place]
        if isinstance(chosen, int):
            return self._make(chosen)
        return Parts(len(chosen), lambda own: self._make(chosen[own]))

    def __iter__(self) -> Iterator[T]:
        """All entries in turn."""
        return self._ahead() if self._ahead else map(self._make, range(self._count))


def mapped(function: Callable[[T], U], parts: Sequence[T]) -> Parts[U]:
    """What a function makes of each entry, when it is asked for."""
    return Parts(len(parts), lambda own: function(parts[own]), lambda: map(function, parts))
