"""The manual: it is built strictly, holds every public name once, and needs no network."""

import csv
import inspect
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

import tdjax
import tdjax.nnx

ROOT = Path(__file__).resolve().parents[1]
CONTRIBUTING = (ROOT / "docs" / "contributing.md").read_text("utf-8")
# Beside those of `tdjax`: what a user of NNX needs of its adapter.
OF_ADAPTERS = ("nnx.carry_optimizer", "nnx.reconstruct")
NAMES = (*tdjax.__all__, *OF_ADAPTERS)
# What loads something for a page to be read; other links are for readers to follow.
LOADS = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}

# Of a page of the API, as it is meant.
ELEMENTS = {
    *("a", "article", "b", "br", "code", "dd", "details", "div", "dl", "dt", "li", "nav", "ol"),
    *("h1", "h2", "h3", "h4", "h5", "p", "path", "pre", "small", "span", "summary", "svg"),
    *("table", "tbody", "td", "th", "thead", "tr", "ul"),
}


class Page(HTMLParser):
    """What a page shows, where its elements are from, and how they are named."""

    def __init__(self, text):
        super().__init__()
        self.shown, self.loaded, self.named, self.tags = [], [], [], set()
        self.inside = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        own = dict(attrs)
        self.inside += tag == "article"
        self.tags |= {tag} if self.inside else set()
        if tag in LOADS and own.get("rel") != "canonical" and LOADS[tag] in own:
            self.loaded.append(own[LOADS[tag]])
        if re.fullmatch(r"h\d", tag) and (own.get("id") or "").startswith("tdjax."):
            self.named.append(own["id"])

    def handle_endtag(self, tag):
        self.inside -= tag == "article"

    def handle_data(self, data):
        if self.inside:
            self.shown.append(data)

    @property
    def text(self):
        return " ".join("".join(self.shown).split())


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the manual, built by the command that contributors are told."""
    (command,) = re.findall(r"^mkdocs build .+$", CONTRIBUTING, re.MULTILINE)
    folder = tmp_path_factory.mktemp("manual") / "site"
    arguments = [sys.executable, "-m", *command.split(), "--site-dir", str(folder)]
    # Else Material tells of its successor, which is no warning of this build.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {
        str(path.relative_to(site)): Page(path.read_text("utf-8")) for path in site.rglob("*.html")
    }


def test_every_page_of_docs_is_a_page_of_the_manual(pages):
    docs = ROOT / "docs"
    own = {str(path.relative_to(docs).with_suffix(".html")) for path in docs.rglob("*.md")}
    assert pages.keys() == {*own, "changelog.html", "404.html"}
    assert f"{tdjax.__version__}, not published yet" in pages["changelog.html"].text


def test_every_public_name_is_there_once():
    texts = [path.read_text("utf-8") for path in (ROOT / "docs" / "api").glob("*.md")]
    named = re.findall(r"^::: (.+)$", "\n".join(texts), re.MULTILINE)
    assert sorted(named) == sorted(f"tdjax.{name}" for name in NAMES)


def test_every_public_name_is_shown_with_its_docstring(pages):
    api = [page for name, page in pages.items() if name.startswith("api/")]
    for name in NAMES:
        (page,) = (own for own in api if f"tdjax.{name}" in own.named)
        room, _, last = name.rpartition(".")
        public = getattr(getattr(tdjax, room) if room else tdjax, last)
        first = inspect.getdoc(public).partition("\n\n")[0]
        assert " ".join(first.replace("`", "").split()) in page.text, name
        # Defaults as values, not as the names that the code has for them.
        assert not re.search(r"= [A-Z]\w+\.\w", page.text)
        if inspect.isfunction(public):
            assert inspect.getmodule(public).__doc__.partition("\n")[0] not in page.text
        for line in re.findall(r"^ *(>>> .+)$", inspect.getdoc(public), re.MULTILINE):
            assert " ".join(line.split()) in page.text, name


def test_nothing_is_taken_for_markup(pages):
    for name, page in pages.items():
        # What is no element was a formula.
        assert page.tags <= {*ELEMENTS, "em", "strong", "img"}, name
        if name.startswith("api/"):
            # Doctests would be quotations in quotations, accidental stars emphasis.
            assert page.tags <= ELEMENTS, name


def test_a_page_is_read_without_a_network(site, pages):
    for name, page in pages.items():
        assert page.loaded, name
        for address in page.loaded:
            assert not re.match(r"(https?:)?//", address), (name, address)
    for sheet in site.rglob("*.css"):
        text = sheet.read_text("utf-8")
        assert not re.search(r"url\([\"']?(https?:)?//|@import", text), sheet


def test_it_is_light_and_dark(site):
    text = (site / "index.html").read_text("utf-8")
    assert set(re.findall(r'<input[^>]+data-md-color-scheme="(\w+)"', text)) == {"default", "slate"}


def test_files_beside_docs_are_linked_at_the_repository(pages, site):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    address = f"{project['urls']['Repository']}/blob/main/notebooks/quickstart.ipynb"
    assert f'href="{address}"' in (site / "index.html").read_text("utf-8")


def test_a_link_to_nothing_ends_the_build(tmp_path):
    for name in ("docs", "mkdocs.yml", "pyproject.toml", "CHANGELOG.md"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    for name in ("api", "guides"):
        shutil.rmtree(tmp_path / "docs" / name)
    for own in (tmp_path / "docs").glob("*.md"):
        own.unlink()
    (tmp_path / "docs" / "index.md").write_text("[gone](../notebooks/gone.ipynb)\n")
    config = re.sub(r"(?ms)^nav:.*?^(?=exclude)", "", (ROOT / "mkdocs.yml").read_text("utf-8"))
    (tmp_path / "mkdocs.yml").write_text(config)
    arguments = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", "site"]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode != 0
    assert "index.md links ../notebooks/gone.ipynb" in done.stdout + done.stderr


def test_the_figure_is_drawn_of_what_pages_tell():
    rows = list(
        csv.DictReader((ROOT / "docs" / "accuracy_kept.csv").read_text("utf-8").splitlines())
    )
    drawn = runpy.run_path(str(ROOT / "docs" / "tools" / "figure.py"))["figure"](rows)
    assert drawn == (ROOT / "docs" / "accuracy_kept.svg").read_text("utf-8")
    for row in rows:
        page = (ROOT / "docs" / row["source"]).read_text("utf-8")
        for told in (row["accuracy"], row["dense"]):
            assert re.search(rf"(?<![\d.]){re.escape(told)}(?!\d)", page), row
        if row["panel"] == "time":
            # There it is how many times as fast.
            assert f"| {100 / float(row['share']):.2f} [" in page, row


def test_the_page_of_an_experiment_is_explained_in_its_own_words():
    folder = ROOT / "experiments"
    files = [*folder.rglob("*.py"), folder / "report" / "page.html.j2"]
    sources = " ".join(" ".join(path.read_text("utf-8").split()) for path in files)
    explained = (ROOT / "docs" / "report.md").read_text("utf-8").partition("\n## ")[2]
    for words in re.findall(r"\*\*([^*]+)\*\*", explained):
        assert " ".join(words.split()) in sources, words
    # The sections of the study's page, each by its title.
    report = (ROOT / "experiments" / "error_study" / "report.py").read_text("utf-8")
    titles = re.findall(r'Section\("\w+", "([^"]+)"', report)
    for title in (*titles, "What each layer loses", "Errors in the norm of the data"):
        assert f"**{title}**" in explained, title


def test_commands_for_contributors_are_there():
    launcher = (ROOT / "launch.sh").read_text("utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
        "optional-dependencies"
    ]
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    for argument in re.findall(r"bash launch\.sh ([\w-]+)", CONTRIBUTING):
        assert re.search(rf"^    {argument}\)$", launcher, re.MULTILINE), argument
    for extra in re.findall(r"[.]\[(\w+)\]", CONTRIBUTING + index):
        assert extra in extras, extra
    for path in re.findall(r"`((?:tdjax|tests|experiments|configs|docs)/[\w/.]+)`", CONTRIBUTING):
        if "spectra" not in path:
            assert (ROOT / path).exists(), path
    (tests,) = re.findall(r"^pytest -x (.+)$", CONTRIBUTING, re.MULTILINE)
    (notebook,) = re.findall(r"^jupyter execute --inplace (.+)$", CONTRIBUTING, re.MULTILINE)
    assert (ROOT / tests).is_dir()
    assert (ROOT / notebook).is_file()


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("tdjax/plan/form.py", ("METHODS",)),
        ("tdjax/plan/ranks.py", ("full_ranks", "RANK_RULES")),
        ("tdjax/plan/chain.py", ("ConvolutionChain", "CHAINS", "_stages", "_to_kernels")),
        ("tdjax/params/kernels.py", ("DECOMPOSE",)),
        ("tdjax/allocation/choices.py", ("KNOWN", "PREFERRED", "AT_SHARES", "_counted")),
        ("tdjax/allocation/evidence.py", ("_errors", "_known")),
        ("tdjax/allocation/allocate.py", ("TOGETHER",)),
        ("experiments/compress/settings.py", ("STRATEGIES", "SCHEMA")),
        ("experiments/runner.py", ("EXPERIMENTS", "baseline", "measure", "finish", "Experiment")),
        ("experiments/workdir/work.py", ("begin",)),
        ("configs/common.py", ("LITTLE_WORK", "configuration")),
        ("tests/test_architecture.py", ("FLOORS", "EXPERIMENTS")),
        ("tests/experiments/test_journals.py", ("EXPERIMENTS",)),
        ("tests/experiments/test_settings.py", ("CONFIGS", "ACCEPTED")),
    ],
)
def test_recipes_name_what_is_there(file, names):
    text = (ROOT / file).read_text("utf-8")
    for name in names:
        assert name in CONTRIBUTING, name
        assert re.search(rf"^ *(def |class )?{name}\b", text, re.MULTILINE), name
