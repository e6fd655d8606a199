import ast
import re
import subprocess
import sys
import tomllib
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What a plain installation lacks, or what only a study needs.
EXTRAS = ("matplotlib", "sklearn", "tqdm", "pandas", "tensorboardX", "grain", "PIL")


def module_name(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted((ROOT / "tdjax").rglob("*.py"))}


def imported(name):
    """The modules that a module of the project imports, anywhere in its text."""
    file, found = MODULES[name], set()
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            within = {f"{base}.{alias.name}" for alias in node.names} & MODULES.keys()
            # `from package import module` depends on the module, not on all of the package.
            found |= within or {base}
    return found


def inside(name, package):
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("package", ["formats", "norms", "ranks", "decompose"])
def test_the_mathematics_knows_no_networks(package):
    allowed = [f"tdjax.{name}" for name in ("formats", "norms", "ranks", "decompose")]
    for name in MODULES:
        if inside(name, f"tdjax.{package}"):
            for found in imported(name):
                assert not inside(found, "flax"), f"{name} imports {found}"
                if inside(found, "tdjax"):
                    assert any(inside(found, a) for a in allowed), f"{name} imports {found}"


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    for found in imported(name):
        for outer in ("experiments", "configs", "benchmarks", "notebooks", "tests"):
            assert not inside(found, outer), f"{name} imports {found}"
        if not inside(name, "tdjax.study"):
            assert not inside(found, "tdjax.study"), f"{name} imports {found}"
        if inside(found, "tdjax") and inside(name, "tdjax.data"):
            assert inside(found, "tdjax.data"), f"{name} imports {found}"


def test_no_import_runs_in_a_circle():
    below = {name: imported(name) & MODULES.keys() for name in MODULES}
    while below:
        free = [name for name, needs in below.items() if not needs & below.keys()]
        assert free, f"in a circle: {sorted(below)}"
        for name in free:
            del below[name]


def test_importing_the_library_imports_no_extra():
    script = (
        "import sys, tdjax, tdjax.training, tdjax.checkpoints, tdjax.models, tdjax.data\n"
        f"print(*sorted({{name.split('.')[0] for name in sys.modules}} & set({EXTRAS!r})))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_the_oldest_versions_are_the_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    bounds = dict(
        re.fullmatch(r"([\w-]+)>=([\w.]+)", entry).groups() for entry in project["dependencies"]
    )
    lines = (ROOT / ".ci" / "oldest.txt").read_text("utf-8").splitlines()
    oldest = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    # jaxlib comes with jax, in the same version.
    assert oldest.pop("jaxlib") == oldest["jax"]
    known = {name: oldest.get(name) for name in bounds}
    assert known == bounds
    optional = {}
    for entries in project["optional-dependencies"].values():
        optional |= dict(
            found.groups() for e in entries if (found := re.fullmatch(r"([\w-]+)>=([\w.]+)", e))
        )
    for name in oldest.keys() - bounds.keys():
        assert oldest[name] == optional[name]
