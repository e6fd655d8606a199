from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def plans_of(notebook):
    """The tables of plans that a notebook shows."""
    data = (output.get("data", {}) for cell in code_of(notebook) for output in cell.outputs)
    return [shown["text/plain"] for shown in data if "text/html" in shown]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_shows_what_is_stored(path):
    stored = nbformat.read(path, as_version=4)
    nbformat.validate(stored)
    counts = [cell.execution_count for cell in code_of(stored)]
    assert counts == list(range(1, len(counts) + 1)), "not executed from top to bottom"
    again = nbformat.read(path, as_version=4)
    NotebookClient(
        again, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parents[1]}}
    ).execute()
    for before, after in zip(code_of(stored), code_of(again), strict=True):
        kinds = [[output.output_type for output in cell.outputs] for cell in (before, after)]
        assert kinds[0] == kinds[1]
    assert plans_of(stored)
    assert plans_of(again) == plans_of(stored)


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} >= {"quickstart", "any_model"}
