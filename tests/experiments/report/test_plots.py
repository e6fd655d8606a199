import pytest

pytest.importorskip("matplotlib")

from experiments.report.plots import figure, in_legend

NAMES = ("a$x_$b", r"$\frac{$", "$$", "_stem", "__", r"a\$b", "a\nb", "{}%#")


def test_names_are_shown_as_they_are():
    with figure(3, 2) as (drawn, png):
        axes = drawn.subplots()
        for name in NAMES:
            axes.plot([], [], label=in_legend(name))
        axes.set_xticks(range(len(NAMES)), NAMES)
        legend = drawn.legend(*axes.get_legend_handles_labels())
    assert png.getvalue().startswith(b"\x89PNG")
    assert [text.get_text().strip() for text in legend.get_texts()] == list(NAMES)
