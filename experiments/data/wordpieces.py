"""Text as BERT takes it: words cut into the longest pieces of a vocabulary."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

# Words that are longer are unknown.
LONGEST = 100
UNKNOWN, FIRST, LAST, PADDING = "[UNK]", "[CLS]", "[SEP]", "[PAD]"


class Tokens(NamedTuple):
    """Sentences of one width.

    Arguments:
        ids: places of word pieces in the vocabulary.
        mask: 1, and 0 for padding.
    """

    ids: Int[np.ndarray, "b t"]
    mask: Int[np.ndarray, "b t"]


@dataclass(frozen=True, eq=False)
class WordPieces:
    """A vocabulary of word pieces in small letters; those inside a word begin with "##".

        >>> pieces = WordPieces.of(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##able", "."])
        >>> pieces.ids("Unable.")
        [2, 4, 5, 6, 3]

    Arguments:
        place: of each piece.

    Raises ValueError for a vocabulary without one of the four special pieces.
    """

    place: Mapping[str, int]

    def __post_init__(self) -> None:
        """Refuse another vocabulary."""
        lacking = {UNKNOWN, FIRST, LAST, PADDING} - self.place.keys()
        if lacking:
            raise ValueError(f"vocabulary without {', '.join(sorted(lacking))}")

    @classmethod
    def of(cls, pieces: Sequence[str]) -> WordPieces:
        """The vocabulary of these pieces in their order."""
        return cls({piece: number for number, piece in enumerate(pieces)})

    @classmethod
    def read(cls, path: str | Path) -> WordPieces:
        """The vocabulary of a file with a piece on each line."""
        return cls.of(Path(path).read_text("utf-8").removesuffix("\n").split("\n"))

    def ids(self, text: str) -> list[int]:
        """The pieces of a text, between those of its beginning and its end."""
        inner = (self.place[piece] for word in words(text) for piece in self._pieces(word))
        return [self.place[FIRST], *inner, self.place[LAST]]

    def tokens(self, texts: Sequence[str], width: int) -> Tokens:
        """Texts as arrays. Raises ValueError for one of more than `width` pieces."""
        ids = np.full((len(texts), width), self.place[PADDING], np.int32)
        mask = np.zeros_like(ids)
        for row, text in enumerate(texts):
            found = self.ids(text)
            if len(found) > width:
                raise ValueError(f"{len(found)} word pieces, more than {width}: {text!r}")
            ids[row, : len(found)] = found
            mask[row, : len(found)] = 1
        return Tokens(ids, mask)

    def _pieces(self, word: str) -> list[str]:
        if len(word) > LONGEST:
            return [UNKNOWN]
        found: list[str] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if prefix + word[start:end] in self.place), None)
            if end is None:
                return [UNKNOWN]
            found.append(prefix + word[start:end])
            start = end
        return found


def words(text: str) -> list[str]:
    """Words and single marks, in small letters and without accents."""
    spaced = "".join(_spaced(letter) for letter in text)
    plain = unicodedata.normalize("NFD", spaced.lower())
    plain = "".join(letter for letter in plain if unicodedata.category(letter) != "Mn")
    return plain.split()


def _spaced(letter: str) -> str:
    """A letter; between spaces where it is a word of its own; a space or nothing for a control."""
    if letter.isspace():
        return " "
    if letter in "\0\ufffd" or unicodedata.category(letter).startswith("C"):
        return ""
    return f" {letter} " if _is_mark(letter) or _is_ideograph(letter) else letter


def _is_mark(letter: str) -> bool:
    """Punctuation, and all that is neither letter nor digit in ASCII."""
    ascii_mark = letter.isascii() and letter.isprintable() and not letter.isalnum()
    return ascii_mark or unicodedata.category(letter).startswith("P")


def _is_ideograph(letter: str) -> bool:
    """Chinese characters, which are written without spaces."""
    return unicodedata.name(letter, "").startswith("CJK ") and unicodedata.category(letter) == "Lo"
