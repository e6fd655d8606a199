"""Plans of large networks as people read them."""

import re

from tdjax import Form, Layer, Plan, PlannedLayer
from tdjax.plan.listing import MANY

BLOCKS = 12


def transformer(ranks=lambda block: 8):
    """A plan of repeated blocks, each with two layers that shrink and one that does not."""
    entries = []
    for k in range(BLOCKS):
        form = Form("svd", (ranks(k),))
        entries += [
            PlannedLayer(Layer(f"block_{k}/query", "dense", (64, 64)), form),
            PlannedLayer(Layer(f"block_{k}/up", "dense", (64, 256)), form),
            PlannedLayer(Layer(f"block_{k}/norm", "dense", (8, 8)), reason="no rule matches it"),
        ]
    for name in ("embed", "head", "extra", "last", "final"):
        entries.append(PlannedLayer(Layer(name, "dense", (64, 10)), reason="it is a head"))
    return Plan(tuple(entries), other=5)


def test_repeated_blocks_share_a_row():
    plan = transformer()
    assert len(plan.layers) > MANY
    header, _, query, up, dense, _, total, _, *notes = str(plan).splitlines()
    assert header.split() == ["layer", "kernel", "format", "ranks", "parameters", "MACs"]
    path, kernel, form, ranks, parameters, share, *_ = re.split(r"\s{2,}", query)
    assert (path, kernel, form, ranks) == ("block_{0..11}/query", "12 * 64x64", "svd", "8")
    # 12 matrices of 64 x 64, each of which becomes 8 * (64 + 64).
    assert (parameters, share) == ("49,152 -> 12,288", "25.0 %")
    assert re.split(r"\s{2,}", up)[4] == f"{12 * 64 * 256:,} -> {12 * 8 * 320:,}"
    assert re.split(r"\s{2,}", dense)[:3] == ["(17 layers)", "dense", f"{12 * 64 + 5 * 640:,}"]
    assert f"{plan.size_before:,} -> {plan.size:,}" in total
    assert notes == [
        "block_0/norm, block_1/norm, block_2/norm and 9 more are kept dense: no rule matches it",
        "embed, head, extra and 2 more are kept dense: it is a head",
    ]


def test_all_layers_on_request():
    lines = transformer().to_text(fold=False).splitlines()
    assert sum(line.startswith("block_") and "svd" in line for line in lines) == 2 * BLOCKS
    assert sum("is kept dense" in line for line in lines) == BLOCKS + 5


def test_rows_say_how_layers_are_stored():
    dtypes = {f"block_{k}/query": "int8" if k else "bfloat16" for k in range(BLOCKS)}
    plan = transformer().with_dtypes({**dtypes, "head": "int8"})
    text = plan.to_text().splitlines()
    assert text[0].split()[-2:] == ["stored", "bytes"]
    cells = [re.split(r"\s{2,}", line) for line in text[2:7]]
    rows = {(row[0], row[-3]): row[-2] for row in cells}
    # Of 64 x 64 floats the factors: in half precision, as integers with a scale for each column.
    assert rows["block_0/query", "bfloat16"] == f"{4 * 64 * 64:,} -> {2 * 8 * 128:,}"
    whole, small = 11 * 4 * 64 * 64, 11 * (8 * 128 + 4 * (8 + 64))
    assert rows["block_{1..11}/query", "int8"] == f"{whole:,} -> {small:,}"
    # What is kept dense shares a row where it is stored alike.
    dense = [line for line in text if " dense " in line]
    assert [re.split(r"\s{2,}", line)[0] for line in dense] == ["(16 layers)", "head"]
    narrow = plan.to_text(width=90).splitlines()
    assert max(map(len, narrow)) <= 90
    assert narrow[0].split() == ["layer", "format", "parameters", "stored", "bytes"]


def test_small_plans_are_folded_on_request_alone():
    small = Plan(transformer().layers[:6])
    assert "block_1/up" in str(small)
    assert "block_{0,1}/up" in small.to_text(fold=True)


def test_layers_of_other_ranks_have_rows_of_their_own():
    text = str(transformer(ranks=lambda block: 4 if block in (3, 7) else 8))
    assert "block_{3,7}/query" in text
    assert "block_{0,1,2,4,5,6,8,9,10,11}/query" in text


def test_lines_fit_a_terminal():
    whole = transformer().to_text()
    assert transformer().to_text(width=200) == "\n".join(whole.splitlines())
    for width in (100, 60, 40):
        lines = transformer().to_text(width=width).splitlines()
        assert max(map(len, lines)) <= width
        assert lines[0].split()[0] == "layer"
        assert "12,288" in "".join(lines)
    narrow = transformer().to_text(width=40).splitlines()[2]
    # Of the path both ends, of the columns what is read first.
    assert re.fullmatch(r"blo\S*\.\.\.\S*query  +49,152 -> 12,288( +25.0 %)?", narrow)


def test_a_notebook_has_all_layers_to_be_opened():
    page = transformer()._repr_html_()
    folded, _, whole = page.partition("<details>")
    assert "block_{0..11}/query" in folded
    assert "block_11/query" not in folded
    assert "block_11/query" in whole
    assert "<details>" not in Plan(transformer().layers[:6])._repr_html_()
