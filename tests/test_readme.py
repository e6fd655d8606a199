import io
import re
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@cache
def begun(body):
    """What a block defines with which pages begin: run once, so that they share its programs."""
    names: dict[str, object] = {}
    exec(body, names)
    return names


def run(name):
    """Run the Python blocks of a page as one program, against the text shown behind each."""
    blocks = re.findall(r"```(\w+)\n(.*?)```", (ROOT / name).read_text("utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    shown = 0
    for (language, body), (following, text) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if language == "python":
            printed = io.StringIO()
            with redirect_stdout(printed):
                exec(body, names) if names else names.update(begun(body))
            assert printed.getvalue().strip() == (text.strip() if following == "text" else "")
            shown += following == "text"
    assert shown == sum(language == "text" for language, _ in blocks)
    return names


def test_readme():
    names = run("README.md")
    # Both ways: factors that fit their model, and a plan of half the network.
    logits = names["small"].apply({"params": names["params"]}, names["x"])
    assert logits.shape == names["logits"].shape == (8, 10)
    plan = names["half"].plan
    assert 0.495 <= plan.size / plan.size_before <= 0.5


def test_arrays():
    names = run("docs/guides/arrays.md")
    # A quarter of the parameters, as the rank was chosen.
    assert abs(names["cp"].size / names["kernel"].size - 0.25) < 0.01


def test_layers():
    names = run("docs/guides/layers.md")
    assert names["logits"].shape == (8, 10)


def test_norms():
    names = run("docs/guides/norms.md")
    # In the order of their ranks.
    assert names["change"][0] > names["change"][1] > names["change"][2]


def test_budgets():
    names = run("docs/guides/budgets.md")
    assert 0.495 <= names["halved"].macs / names["halved"].macs_before <= 0.5
    assert names["within"].size <= 0.5 * names["within"].size_before
    assert names["within"].macs <= 0.4 * names["within"].macs_before
    assert names["least"].size < names["least"].size_before


def test_quantisation():
    names = run("docs/guides/quantisation.md")
    assert names["held"] == names["fewer"].bytes


def test_transformers():
    names = run("docs/guides/transformers.md")
    assert names["of_texts"].keys() == {"embed", "logits"}


def test_models():
    names = run("docs/guides/models.md")
    assert names["read_plan"].size < names["read_plan"].size_before


def test_batchnorm():
    names = run("docs/guides/batchnorm.md")
    assert names["renewed"].keys() == names["variables"].keys()


def test_pruning():
    names = run("docs/guides/pruning.md")
    assert names["pruned"].keys() == names["variables"]["params"].keys()


def test_functions():
    names = run("docs/guides/functions.md")
    assert names["logits"].shape == (8, 16, 64)
    assert 0.495 <= names["halved"].size / names["halved"].size_before <= 0.5


def test_refine():
    names = run("docs/guides/refine.md")
    assert names["logits"].shape == (512, 8)


@pytest.mark.usefixtures("own_cache")
def test_speed():
    names = run("docs/guides/speed.md")
    assert names["timings"].rest < names["timings"].network


def test_keep():
    names = run("docs/guides/keep.md")
    assert names["smaller"](names["x"]).shape == names["again"](names["x"]).shape == (4, 8)


def test_index():
    names = run("docs/index.md")
    assert names["logits"].shape == (400, 10)
    assert names["small"].refined is not None
    assert names["small"].plan.size > 0.48 * names["small"].plan.size_before


def test_mathematics():
    names = run("docs/mathematics.md")
    assert names["tucker"].ranks == (4, 6)


def test_faq():
    names = run("docs/faq.md")
    assert names["moments"].keys() == {"Conv_0", "Conv_1"}


PAGES = (
    "README.md",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md"))),
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs" / "guides").glob("*.md"))),
)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 160


@pytest.mark.parametrize("name", PAGES)
def test_what_is_linked_and_named_is_there(name):
    text = (ROOT / name).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("https://"):
            assert (ROOT / name).parent.joinpath(target).exists(), target
    for config in re.findall(r"configs/\w+\.py", text):
        assert (ROOT / config).exists(), config
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module
    for title in re.findall(r"\]\(#([^)]+)\)", text):
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
        assert title in anchors, title
