"""What processes left in a work directory."""

from benchmarks.kills.left import lines_of


def left(folder):
    """Of that with the name "run": the lines of its journal, in order, and its files."""
    workdir = (folder / "run").resolve()
    # Where there is none, the logs say why.
    lines = lines_of(workdir) if (workdir / "metrics.jsonl").exists() else []
    return {
        "lines": [line.decode() for line in lines],
        "files": sorted(str(path.relative_to(workdir)) for path in workdir.rglob("*")),
    }


def tables_of(workdir):
    return {path.name: path.read_text() for path in (workdir / "report").glob("*.csv")}
