from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from experiments.report.plots import figure, in_legend
from experiments.report.svg import SPACE, inline, titled

NAMES = ("a$x_$b", r"$\frac{$", "$$", "_stem", "__", r"a\$b", "a\nb", "{}%#")


def test_names_are_shown_as_they_are():
    with figure(2, "a <label>") as (drawn, svg):
        axes = drawn.subplots()
        for name in NAMES:
            axes.plot([], [], label=in_legend(name))
        axes.set_xticks(range(len(NAMES)), NAMES)
        legend = drawn.legend(*axes.get_legend_handles_labels())
    shown = [text.text for text in ElementTree.fromstring(svg.getvalue()).iter(f"{{{SPACE}}}text")]
    assert {name for name in NAMES if "\n" not in name} <= set(shown)
    # What XML cannot hold.
    assert in_legend("a\x0b\ud800b") == r"a\x0b\ud800b"
    assert [text.get_text().strip() for text in legend.get_texts()] == list(NAMES)


def drawn_points():
    with figure(2, "points") as (drawn, svg):
        axes = drawn.subplots()
        points, *_ = axes.errorbar([1, 2, 3], [2, 1, 2], yerr=1, marker="o", color="#0072b2")
        titled(points, ["one < 1", "two", "three"])
    return svg.getvalue()


def test_marks_say_what_they_are_and_follow_the_page():
    text = drawn_points()
    assert text == drawn_points()
    root = ElementTree.fromstring(text)
    marks = [own for own in root.iter(f"{{{SPACE}}}use") if own.get("class") == "mark"]
    assert [own.findtext(f"{{{SPACE}}}title") for own in marks] == ["one < 1", "two", "three"]
    assert "var(--blue, #0072b2)" in marks[0].get("style")
    # Every id is used, and no other than the figure's own.
    page = inline(text, "plot")
    ids = [own.get("id") for own in ElementTree.fromstring(page).iter() if own.get("id")]
    assert len(ids) == len(set(ids)) > 0
    assert all(one.startswith("plot-") for one in ids)
    assert all(f"#{one}" in page for one in ids)
    assert "date" not in text
