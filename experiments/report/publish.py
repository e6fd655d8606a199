"""A report's folder: files, pictures and the page that shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.report.html import Picture
from tdjax.files import write_atomically


def publish(
    workdir: Path,
    files: Mapping[str, str | bytes],
    pictures: Sequence[tuple[Picture, bytes]],
    page: str,
) -> Path:
    """Write `workdir/report/`; return its `index.html`.

    Arguments:
        files: contents by name.
        pictures: each with its PNG.
        page: HTML that refers to them.
    """
    report = workdir / "report"
    report.mkdir(exist_ok=True)
    for name, content in files.items():
        write_atomically(report / name, content)
    for picture, png in pictures:
        write_atomically(report / picture.file, png)
    # Last, so that whatever the page refers to is already there.
    write_atomically(report / "index.html", page)
    return report / "index.html"
