import importlib.util
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from published_encoder import write

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# What is trained for less, or measured at less: neither that the cells run nor the plans that are
# shown hang on it.
SHORTER = {
    "any_model": [
        ("BLOCKS, STEPS = 48, 64, 4, 2, 120\n", "BLOCKS, STEPS = 48, 64, 4, 2, 16\n"),
        ("count=128)", "count=16)"),
        ("length=120)", "length=4)"),
    ],
    "quickstart": [
        ("epochs=15)", "epochs=2)"),
        ("epochs=5)", "epochs=1)"),
        ("kept = (0.5, 0.25, 0.1, 0.05)", "kept = (0.1,)"),
    ],
    "own_network": [
        ("epochs=25)", "epochs=8)"),
        ("compressions=(0.3, 0.5, 0.75, 0.9)", "compressions=(0.9,)"),
        ("keeps=(0.5, 0.25)", "keeps=(0.5,)"),
        ("budgets=(0.5, 0.25)", "budgets=(0.5,)"),
        ("shares=(0.5, 0.7, 0.9)", "shares=(0.5,)"),
        ("layer_steps=9", "layer_steps=2"),
    ],
    "transformer": [
        ("EPOCHS = 512, 200, 32, 8", "EPOCHS = 64, 8, 12, 1"),
        # Of few modules: all of them take seconds to read.
        ("seed=0)\nseen", "seed=0, library=Path(subprocess.__file__).parent / 'asyncio')\nseen"),
        ("SHARES = (0.75, 0.5, 0.35, 0.25)", "SHARES = (0.5,)"),
    ],
}
# Compiled as in the tests themselves; what is told by the clock alone is not.
CHEAP = (
    "from tests import cheap_programs; cheap_programs.install(); del cheap_programs; "
    "import tdjax.progress; tdjax.progress.QUIET = float('inf'); del tdjax"
)
# What is downloaded is another, small network here, of other plans.
DOWNLOADED = "FOLDER = None\n"
# Notebooks of the experiments, which are no part of the installed library.
OF_A_CLONE = {"own_network", "transformer"}
# What others need beside it.
BESIDE = {"quickstart": [("pip", "install --quiet matplotlib scikit-learn")]}


def shorten(notebook, changes):
    for before, after in changes:
        (cell,) = (cell for cell in code_of(notebook) if before in cell.source)
        cell.source = cell.source.replace(before, after)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def plans_of(notebook):
    """The tables of plans that a notebook shows."""
    data = (output.get("data", {}) for cell in code_of(notebook) for output in cell.outputs)
    return [shown["text/plain"] for shown in data if "text/html" in shown]


def kinds_of(cell):
    """Of outputs in their order. The clock alone tells what is printed in one piece or in two."""
    kinds = [(output.output_type, output.get("name")) for output in cell.outputs]
    return [
        kind
        for kind, before in zip(kinds, [None, *kinds], strict=False)
        if kind != before or kind[0] != "stream"
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_shows_what_is_stored(path, monkeypatch, tmp_path):
    # Bars would be as many outputs as the time that they take.
    monkeypatch.setenv("TQDM_DISABLE", "1")
    stored = nbformat.read(path, as_version=4)
    nbformat.validate(stored)
    counts = [cell.execution_count for cell in code_of(stored)]
    assert counts == list(range(1, len(counts) + 1)), "not executed from top to bottom"
    again = nbformat.read(path, as_version=4)
    shorten(again, SHORTER.get(path.stem, []))
    downloads = any(DOWNLOADED in cell.source for cell in code_of(again))
    if downloads:
        shorten(again, [(DOWNLOADED, f"FOLDER = {str(write(tmp_path))!r}\n")])
    NotebookClient(
        again,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": ROOT}},
        extra_arguments=[f"--IPKernelApp.exec_lines={CHEAP}"],
    ).execute()
    for before, after in zip(code_of(stored), code_of(again), strict=True):
        assert kinds_of(before) == kinds_of(after)
    assert plans_of(stored)
    assert downloads or plans_of(again) == plans_of(stored)


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} >= {"quickstart", "any_model"} | OF_A_CLONE


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("here", ["installed", "clone", "alone"])
def test_installs_from_the_clone_or_from_the_repository(path, here, tmp_path, monkeypatch):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (tmp_path / "notebooks").mkdir()
    if here == "clone":
        (tmp_path / "tdjax").mkdir()
        (tmp_path / "tdjax" / "py.typed").touch()
    monkeypatch.chdir(tmp_path / "notebooks")
    if here != "installed":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    asked = []
    shell = SimpleNamespace(run_line_magic=lambda *magic: asked.append(magic))
    shell.system = lambda command: asked.append(("!", command))
    names = {"get_ipython": lambda: shell}
    first = code_of(nbformat.read(path, as_version=4))[0].source
    monkeypatch.setattr(sys, "path", list(sys.path))
    exec(TransformerManager().transform_cell(first), names)
    if here == "installed":
        assert asked == []
    elif path.stem in OF_A_CLONE:
        source = names["source"]
        clone = ("!", "git clone --quiet --depth 1 {REPOSITORY} {source}")
        assert asked[-1] == ("pip", "install --quiet {source}[experiments]")
        assert asked[:-1] == ([] if here == "clone" else [clone])
        assert names["REPOSITORY"] == project["urls"]["Repository"]
        assert Path(sys.path[0]) == (tmp_path / "notebooks" / source).resolve()
        assert (source == "..") == (here == "clone")
    else:
        library, *others = asked
        assert library == ("pip", "install --quiet {source}")
        assert others == BESIDE.get(path.stem, [])
        address = f"git+{project['urls']['Repository']}"
        assert names["source"] == (".." if here == "clone" else address)
