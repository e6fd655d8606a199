import math

import numpy as np
import pandas as pd
import pytest

from experiments.report.tables import (
    DASH,
    MINUS,
    Table,
    Tau,
    arranged,
    averages,
    crossed,
    framed,
    interval_texts,
    number,
    to_csv,
    to_markdown,
)

ROWS = pd.DataFrame(
    [
        ("b", math.nan, 1.0, 10),
        ("a", 0.5, 1.0, 10),
        ("b", math.nan, 2.0, 20),
        ("b", math.nan, 3.0, 30),
    ],
    columns=["name", "q", "x", "size"],
)


def test_intervals_are_student_s():
    found = averages(ROWS, ["name", "q"], ["x"], count="runs", means=["size"])
    assert list(found.columns) == [
        *("name", "q", "runs", "size"),
        *("x", "x_std", "x_lower", "x_upper"),
    ]
    # In the order of their first rows, and a q that is not known is a value like others.
    several, alone = found.to_dict("records")
    assert (several["name"], several["runs"], several["size"]) == ("b", 3, 20)
    assert math.isnan(several["q"])
    # Three values, t of two degrees of freedom: 4.3027, and a standard error of 1 / sqrt(3).
    assert several["x"] == 2
    assert several["x_std"] == 1
    assert several["x_upper"] - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert several["x_lower"] + several["x_upper"] == pytest.approx(4)
    assert (alone["x"], alone["runs"]) == (1, 1)
    assert math.isnan(alone["x_std"])
    assert math.isnan(alone["x_lower"])


def test_no_rows_have_averages_with_the_same_columns():
    empty = framed([], {"name": str, "q": float, "x": float, "size": int})
    found = averages(empty, ["name", "q"], ["x"], count="runs", means=["size"])
    assert len(found) == 0
    assert list(found.columns) == list(
        averages(ROWS, ["name", "q"], ["x"], count="runs", means=["size"]).columns
    )
    assert to_csv(found) == ""


def test_csv_cells():
    rows = framed(
        [
            {"word": "a,b", "flag": True, "whole": 3, "epoch": None, "x": 0.1 + 0.2},
            {"word": "", "flag": False, "whole": -1, "epoch": 7, "x": math.nan},
            {"word": "c", "flag": True, "whole": 0, "epoch": 8, "x": 1e-7},
        ],
        {"word": str, "flag": bool, "whole": int, "epoch": "Int64", "x": float},
    )
    assert to_csv(rows) == (
        "word,flag,whole,epoch,x\n"
        '"a,b",true,3,,0.30000000000000004\n'
        ",false,-1,7,\n"
        "c,true,0,8,1e-07\n"
    )
    assert to_csv(rows, decimals=3).splitlines()[1:] == [
        '"a,b",true,3,,0.300',
        ",false,-1,7,",
        "c,true,0,8,0.000",
    ]
    # Numbers read back as what they were.
    values = np.random.default_rng(0).normal(size=100) * 10.0 ** np.arange(-50, 50)
    text = to_csv(pd.DataFrame({"x": values}))
    assert [float(line) for line in text.splitlines()[1:]] == list(values)


def test_crossed_has_a_dash_where_nothing_was_measured():
    rows = pd.DataFrame(
        [("z", 0.5, "1"), ("a", 0.25, "2"), ("z", 0.25, "3")], columns=["name", "share", "text"]
    )
    heads = {0.25: "quarter", 0.5: "half", 0.75: "most"}
    found = crossed(rows, {"name": "method"}, "share", heads)
    assert list(found.columns) == ["method", "quarter", "half", "most"]
    assert found.to_numpy().tolist() == [["z", "3", "1", DASH], ["a", "2", DASH, DASH]]
    lines = pd.DataFrame({"name": ["a", "y", "z"]})
    found = crossed(rows, {"name": "method"}, "share", heads, lines)
    assert found.to_numpy().tolist() == [
        ["a", "2", DASH, DASH],
        ["y", DASH, DASH, DASH],
        ["z", "3", "1", DASH],
    ]
    assert len(crossed(rows[:0], {"name": "method"}, "share", heads)) == 0


def test_arranged_by_places_keeps_ties():
    rows = pd.DataFrame({"name": list("abab"), "q": [2, 1, 1, 2], "i": range(4)})
    assert list(arranged(rows, {"name": "ba"})["i"]) == [1, 3, 0, 2]
    assert list(arranged(rows, {"name": "ba", "q": (2, 1)})["i"]) == [3, 1, 0, 2]


def test_texts():
    rows = pd.DataFrame({"x": [-0.001, 2.0, math.nan], "x_lower": [-1.0, math.nan, math.nan]})
    rows["x_upper"] = [1.0, math.nan, math.nan]
    assert interval_texts(rows, "x") == [f"0.00 [{MINUS}1.00, 1.00]", "2.00", ""]
    assert interval_texts(rows, "x", 100, 1)[0] == f"{MINUS}0.1 [{MINUS}100.0, 100.0]"
    assert number(-1.25, 1) == f"{MINUS}1.2"


def test_only_plain_numbers_stand_to_the_right():
    taus = ["Relative Weights", Tau(0.5)]
    cells = pd.DataFrame({"a": ["x", "y"], "b": ["z", "w"], "tau": taus, "c": ["1", "2"]})
    assert Table("", cells).numeric == [False, True, False, True]
    assert Table("", cells, labels=2).numeric == [False, False, False, True]


def test_tau_leaves_out_what_is_not_known():
    assert str(Tau(0.819, 0.031, 0.75, 0.88, 0.81, 0.02)) == (
        "0.82 ± 0.03 [0.75, 0.88] (published 0.81 ± 0.02)"
    )
    assert str(Tau(-0.5, lower=-1.0, upper=0.0)) == f"{MINUS}0.50 [{MINUS}1.00, 0.00]"
    assert str(Tau(0.5, published_mean=0.4)) == "0.50 (published 0.40)"


def test_markdown():
    cells = pd.DataFrame({"name": ["a|b"], "x": ["1"], "y": ["2"]})
    tables = [Table("First", cells), Table("Second", cells[:0])]
    assert to_markdown(tables, "Note.") == (
        "Note.\n\n## First\n\n| name | x | y |\n| --- | ---: | ---: |\n| a\\|b | 1 | 2 |\n\n"
        "## Second\n\nNone.\n"
    )
    assert "| --- | --- | ---: |" in to_markdown([Table("Third", cells, labels=2)])


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("*a* __b__ `c`", r"\*a\* \_\_b\_\_ \`c\`"),
        ("<b>a</b> <!-- <https://a.b>", r"\<b>a\</b> \<!-- \<https://a.b>"),
        ("a < 1 & b, <1>", "a < 1 & b, <1>"),
        ("&lt; &#42;", r"\&lt; \&#42;"),
        ("[a](b) [c][d] [e]: f", r"[a\](b) [c\][d] [e\]: f"),
        ("0.5 [0.4, 0.6] (published 0.5)", "0.5 [0.4, 0.6] (published 0.5)"),
        ("a\\|b", r"a\\\|b"),
        ("~~a~~ $b$", r"\~\~a\~\~ \$b\$"),
        ("a\n\n# b\r\n\u2028c", "a # b c"),
    ],
)
def test_markup_is_escaped(text, escaped):
    cells = pd.DataFrame({text: [text]})
    written = to_markdown([Table(text, cells)], f"a {text}")
    assert written == (f"a {escaped}\n\n## {escaped}\n\n| {escaped} |\n| --- |\n| {escaped} |\n")


@pytest.mark.parametrize(
    ("note", "escaped"),
    [
        ("# a", "\\# a"),
        ("> a", "\\> a"),
        ("- a", "\\- a"),
        ("12. a", "12\\. a"),
        ("3) a", "3\\) a"),
        ("12 a", "12 a"),
        (" \n ", None),
    ],
)
def test_a_note_is_a_paragraph(note, escaped):
    above = f"{escaped}\n\n" if escaped else ""
    assert to_markdown([Table("A", pd.DataFrame({"b": []}))], note) == f"{above}## A\n\nNone.\n"
