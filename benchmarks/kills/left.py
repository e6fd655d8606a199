"""What an experiment left in its work directory, to be compared with what another one did."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.workdir.record_fields import AT, ENVIRONMENT


def results(workdir: Path) -> dict[str, Any]:
    """What must be the same however often an experiment was killed."""
    found = {file.name: file.read_bytes() for file in (workdir / "report").glob("*.[cm][sd]*")}
    files = {str(file.relative_to(workdir)) for file in workdir.rglob("*")}
    # Names inside of checkpoints are drawn.
    own = {file for file in files if not file.startswith(("checkpoints/", "compressed/"))}
    unfinished = {file for file in files if "partial" in file or "-tmp" in file or "in_use" in file}
    return {**found, "lines": lines_of(workdir), "files": own | unfinished}


def lines_of(workdir: Path) -> list[bytes]:
    """The lines of a journal, without what they say of when and with what they were written."""
    records = map(json.loads, (workdir / "metrics.jsonl").read_bytes().split(b"\n")[:-1])
    for record in (own := [one for one in records if one["kind"] != ENVIRONMENT]):
        record.pop(AT, None)
    return [json.dumps(record).encode("utf-8") + b"\n" for record in own]


def check_results(what: str, workdir: Path, expected: Mapping[str, Any]) -> None:
    """Raise RuntimeError where results are others than those of an undisturbed run."""
    found = results(workdir)
    if differing := [key for key in {**found, **expected} if found.get(key) != expected.get(key)]:
        files = sorted(found["files"] ^ expected["files"])
        raise RuntimeError(f"{what}: other {', '.join(differing)}; files of one alone: {files}")
