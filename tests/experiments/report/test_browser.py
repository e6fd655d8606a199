"""The pages of all experiments as a reader has them: in a browser, by pointer, finger and keys."""

import importlib
import json
import shutil
from pathlib import Path

import browser
import pytest

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.skipif(
    browser.PATH is None, reason="neither Chromium nor Chrome is installed"
)

EXPERIMENTS = ("error_study", "data_aware", "compress", "compressibility")
PHONE, DESK = 400, 1280
# Of the figures' text in dark mode.
LIGHT_INK = "rgb(228, 230, 232)"
SHOWN = """(() => {
  const tip = document.getElementById("tip"), at = tip.getBoundingClientRect();
  const inside = at.left >= 0 && at.right <= innerWidth && at.top >= 0 && at.bottom <= innerHeight;
  return getComputedStyle(tip).visibility === "visible" && inside ? tip.textContent : null;
})()"""


def curves(epochs):
    falling = [1 / (1 + epoch) for epoch in range(epochs)]
    rising = [1 - loss for loss in falling]
    return {"train_loss": falling, "validation_loss": falling, "validation_accuracy": rising}


def with_curves(records):
    """Records as a study has them that records every epoch."""
    for record in records:
        yield record | ({"curve": curves(3)} if record["kind"] == "finetuned" else {})
    for epoch in range(4):
        own = {name: values[epoch] for name, values in curves(4).items()}
        rate = {"learning_rate": 0.1, "network": 0, "epoch": epoch + 1}
        yield {"kind": "epoch", **rate, **own}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    found = {}
    for name in EXPERIMENTS:
        folder, workdir = (
            Path(__file__).parents[1] / name / "journal",
            tmp_path_factory.mktemp(name),
        )
        shutil.copy(folder / "config.json", workdir)
        records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        records = with_curves(records) if name == "error_study" else records
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
        found[name] = importlib.import_module(f"experiments.{name}.report").write_report(workdir)
    return found


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    opened = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


# The size on the screen of the smallest text that is shown.
SMALLEST = """Math.min(...[...document.querySelectorAll("body *")].filter((one) => {
  const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  return own && one.checkVisibility();
}).map((one) => {
  const at = one.ownerSVGElement ? one.getScreenCTM() : {a: 1, b: 0};
  return parseFloat(getComputedStyle(one).fontSize) * Math.hypot(at.a, at.b);
}))"""


def middle(chromium, mark):
    """Where a mark is, once it stands still in the middle of the window."""
    return chromium.value(f"""(async () => {{
      const mark = {mark};
      mark.scrollIntoView({{ block: "center" }});
      for (let i = 0; i < 3; i++) await new Promise(requestAnimationFrame);
      const at = mark.getBoundingClientRect();
      return [at.x + at.width / 2, at.y + at.height / 2, mark.dataset.tip];
    }})()""")


def fits(chromium, width):
    wide = "Math.max(innerWidth, document.documentElement.scrollWidth, document.body.scrollWidth)"
    return chromium.value(wide) == width


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_page_fits_and_says_what_its_marks_are(chromium, pages, name):
    chromium.open(pages[name], PHONE)
    assert fits(chromium, PHONE)
    assert chromium.value(SMALLEST) >= 12
    figures = chromium.value("document.querySelectorAll('.plot svg').length")
    assert figures > 0
    for place in range(figures):
        mark = f"document.querySelectorAll('.plot svg')[{place}].querySelector('.mark')"
        x, y, said = middle(chromium, mark)
        chromium.point(1, 1)
        assert chromium.value(SHOWN) is None
        chromium.point(x, y)
        # Another mark may lie on it.
        assert chromium.value(SHOWN)
        assert len(said) > 10
    cell = "document.querySelector('.map td[data-tip]')"
    x, y, said = middle(chromium, cell)
    chromium.tap(x, y)
    assert chromium.value(SHOWN) == said
    chromium.open(pages[name], DESK, dark=True)
    assert fits(chromium, DESK)
    text = "getComputedStyle(document.querySelector('.plot text')).fill"
    assert chromium.value(text) == LIGHT_INK
    assert chromium.complaints == []


def test_fingers_and_keys_find_the_marks_of_the_study(chromium, pages):
    chromium.open(pages["error_study"], PHONE)
    marks = "document.querySelector('svg[aria-label^=Approximation]').querySelectorAll('.mark')"
    said = chromium.value(f"[...{marks}].map((mark) => mark.dataset.tip)")
    # Two layers by two methods by two compressions, and nothing else.
    assert len(set(said)) == len(said) == 8
    for word in ("conv5, cp, compression 50 %", "ranks 66", "accuracy", "Scaled Features"):
        assert word in said[0]
    x, y, _ = middle(chromium, f"{marks}[0]")
    chromium.tap(x + 6, y + 6)
    assert chromium.value(SHOWN) == said[0]
    chromium.press("Escape")
    assert chromium.value(SHOWN) is None
    middle(chromium, f"{marks}[0]")
    # The finger has left the focus there.
    chromium.value(f"document.activeElement.blur(), {marks}[0].focus()")
    assert chromium.value(SHOWN) == said[0]
    chromium.press("ArrowRight")
    middle(chromium, f"{marks}[1]")
    assert chromium.value("document.activeElement.dataset.tip") == said[1]
    # Curves are drawn where they are recorded.
    assert chromium.value("document.querySelectorAll('#training svg').length") == 4
    assert chromium.value("document.querySelectorAll('script[src], link, img').length") == 0
    assert chromium.complaints == []
