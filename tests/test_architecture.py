import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from importlib.util import resolve_name
from pathlib import Path

import pytest

import tdjax

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
# What a plain installation may lack, and what takes long to load: absl comes with Flax and Optax.
LATE = (
    "absl", "flax", "jinja2", "matplotlib", "ml_collections", "optax", "orbax", "pandas",
    "PIL", "sklearn", "tqdm",
)  # fmt: skip
# A room stands on those before it alone; rooms on one floor do not know each other.
FLOORS = (
    ("files", "hints", "progress"),
    ("compilation", "processes"),
    ("decompose",),
    ("plan",),
    ("compute",),
    ("timings",),
    ("trace",),
    ("moments",),
    ("arguments",),
    ("params",),
    ("pruning",),
    ("allocation",),
    ("functions",),
    ("linen", "nnx"),
    ("evaluate", "refinement"),
    ("dispatch",),
)
KNOW_NO_FLAX = (
    "files", "hints", "progress", "compilation", "processes", "decompose", "plan", "compute",
    "timings", "trace", "moments", "arguments", "pruning", "allocation",
)  # fmt: skip
EXPERIMENTS = ("error_study", "data_aware", "compress", "compressibility")


def module_name(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(file): file
    for house in ("tdjax", "experiments")
    for file in sorted((ROOT / house).rglob("*.py"))
}


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


def room(name):
    return name.split(".")[1] if "." in name else ""


FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
LIBRARY = [name for name in MODULES if inside(name, "tdjax")]


def test_every_room_has_a_floor():
    assert {room(name) for name in LIBRARY} - {""} == FLOOR.keys()


@pytest.mark.parametrize("name", [name for name in LIBRARY if room(name)])
def test_a_room_stands_on_those_below_it(name):
    for found in imported(name):
        if inside(found, "tdjax") and room(found) != room(name):
            assert room(found), f"{name} imports the face of the library"
            assert FLOOR[room(found)] < FLOOR[room(name)], f"{name} imports {found}"
        if room(name) in KNOW_NO_FLAX:
            assert not inside(found, "flax"), f"{name} imports {found}"


@pytest.mark.parametrize("name", MODULES)
def test_the_houses_know_each_other_one_way(name):
    for found in imported(name):
        for outer in ("configs", "benchmarks", "notebooks", "tests"):
            assert not inside(found, outer), f"{name} imports {found}"
        if inside(name, "tdjax"):
            assert not inside(found, "experiments"), f"{name} imports {found}"


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) in EXPERIMENTS])
def test_an_experiment_knows_no_other(name):
    for found in imported(name):
        if inside(found, "experiments") and room(found) in EXPERIMENTS:
            assert room(found) == room(name), f"{name} imports {found}"


def test_no_import_runs_in_a_circle():
    below = {name: imported(name) & MODULES.keys() for name in MODULES}
    while below:
        free = [name for name, needs in below.items() if not needs & below.keys()]
        assert free, f"in a circle: {sorted(below)}"
        for name in free:
            del below[name]


@pytest.mark.parametrize(
    ("script", "late"),
    [
        ("import tdjax", LATE),
        ("import tdjax; tdjax.make_plan; tdjax.nnx", ("orbax", "tensorstore")),
    ],
)
def test_loading_what_is_used_loads_no_more(script, late):
    script += (
        f"; import sys; print(*{{name.split('.')[0] for name in sys.modules}} & set({late!r}))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_all_names_of_the_face_are_there():
    assert all(getattr(tdjax, name) for name in tdjax.__all__)
    assert set(tdjax.__all__) <= set(dir(tdjax))
    assert callable(tdjax.nnx.carry_optimizer)
    assert callable(tdjax.linen.factorize)
    with pytest.raises(AttributeError, match="no attribute 'factorise'; did you mean 'factorize'"):
        tdjax.factorise  # noqa: B018
    # What type checkers see is what is loaded later.
    (seen,) = (
        node
        for node in ast.parse(MODULES["tdjax"].read_text("utf-8")).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    names = {alias.name: node.module for node in seen.body for alias in node.names}
    assert names == tdjax._LATER | {"linen": "tdjax", "nnx": "tdjax"}


def packages(names):
    """The packages that the modules of these files come from, without Python's own."""
    found = set()
    for file in names:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"tdjax", "experiments", "configs", "benchmarks"}


def requirements(entries):
    """The modules of the packages that are asked for."""
    asked = {re.match(r"[\w-]+", entry)[0] for entry in entries}
    return {
        module
        for module, owners in metadata.packages_distributions().items()
        if asked & {owner.lower().replace("_", "-") for owner in owners}
    }


def test_the_library_requires_what_it_imports():
    named = requirements(PROJECT["dependencies"])
    found = packages((ROOT / "tdjax").rglob("*.py"))
    assert found <= named
    assert len(found) == len(PROJECT["dependencies"])


def test_the_extra_has_what_the_experiments_import():
    extras = PROJECT["optional-dependencies"]
    own = (*extras["experiments"], *extras["images"], *extras["tensorboard"])
    named = requirements([*PROJECT["dependencies"], *own])
    folders = ("experiments", "configs", "benchmarks")
    assert packages(file for name in folders for file in (ROOT / name).rglob("*.py")) <= named


def test_the_oldest_versions_are_the_lower_bounds():
    bounds = dict(
        re.fullmatch(r"([\w-]+)>=([\w.]+)", entry).groups() for entry in PROJECT["dependencies"]
    )
    lines = (ROOT / ".ci" / "oldest.txt").read_text("utf-8").splitlines()
    oldest = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    # jaxlib comes with jax, in the same version.
    assert oldest.pop("jaxlib") == oldest["jax"]
    known = {name: oldest.get(name) for name in bounds}
    assert known == bounds
    optional = {}
    for entries in PROJECT["optional-dependencies"].values():
        optional |= dict(
            found.groups() for e in entries if (found := re.fullmatch(r"([\w-]+)>=([\w.]+)", e))
        )
    for name in oldest.keys() - bounds.keys():
        assert oldest[name] == optional[name]
