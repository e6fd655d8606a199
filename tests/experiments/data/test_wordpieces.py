import pytest

from experiments.data.wordpieces import WordPieces, words

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
PIECES = WordPieces.of([*SPECIAL, "un", "##able", "##a", "able", ",", "naive", "中", "##b"])


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ("", []),
        ("unable", [4, 5]),
        ("able una", [7, 4, 6]),
        ("Unable,able", [4, 5, 8, 7]),
        ("NAÏVE", [9]),
        ("un\u200bable\0\ufffd", [4, 5]),
        # No piece begins a word with "b", so that the whole word is unknown.
        ("unx b", [1, 1]),
        ("中中", [10, 10]),
        ("un" + "a" * 98, [4, *[6] * 98]),
        ("un" + "a" * 99, [1]),
    ],
)
def test_words_are_cut_into_the_longest_pieces(text, inner):
    assert PIECES.ids(text) == [2, *inner, 3]


def test_words_and_marks():
    assert words("Don't\tpay £5 ÉLAN — x²!") == [
        "don", "'", "t", "pay", "£5", "elan", "—", "x²", "!",
    ]  # fmt: skip


def test_padding_is_marked():
    ids, mask = PIECES.tokens(["unable", ""], 5)
    assert ids.tolist() == [[2, 4, 5, 3, 0], [2, 3, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="4 word pieces, more than 3: 'unable'"):
        PIECES.tokens(["unable"], 3)
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[SEP]\nun\n", "utf-8")
    with pytest.raises(ValueError, match=r"vocabulary without \[CLS\]"):
        WordPieces.read(path)
