"""What is published: built as an index or an address would give it, and installed."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import tdjax

ROOT = Path(__file__).resolve().parents[1]
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]


def run(*command, **kwargs):
    """What a command printed; its messages are told where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the archive of the sources and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("packaging")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "tdjax", folder / "tdjax", ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", cwd=folder)
    return folder / "dist"


def test_the_archive_has_what_the_wheel_is_built_from(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "tdjax/__init__.py"} <= names


def test_the_wheel_has_the_library_alone(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        (about,) = (name for name in file.namelist() if name.endswith("METADATA"))
        metadata = Parser().parsestr(file.read(about).decode("utf-8"))
    own = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tdjax").rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    assert names == own
    assert metadata["Version"] == tdjax.__version__
    assert metadata["License-Expression"] == "Apache-2.0"


def test_the_wheel_is_imported_without_the_clone(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    # All that an installer does of one that is pure Python; environments of uv have no pip.
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    asked = "import tdjax; print(tdjax.__file__, tdjax.__version__, tdjax.linen.factorize.__name__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    told = run(sys.executable, "-c", asked, cwd=tmp_path, env=environment)
    file = tmp_path / "tdjax" / "__init__.py"
    assert told.split() == [str(file), tdjax.__version__, "factorize"]


def test_what_completion_shows_is_public():
    assert {name for name in dir(tdjax) if not name.startswith("__")} == {
        *tdjax.__all__,
        "linen",
        "nnx",
    }


def test_the_citation_is_of_this_version():
    lines = (ROOT / "CITATION.cff").read_text("utf-8").splitlines()
    assert f"version: {tdjax.__version__}" in lines
    assert f"repository-code: {URLS['Repository']}" in lines


def test_the_changes_tell_of_this_version():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"\n## {tdjax.__version__}" in text
