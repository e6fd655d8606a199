"""What the manual needs beyond its pages: the changes, and addresses of files beside `docs`."""

import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s]+)(?=\))")


def on_files(files: Any, config: Any) -> Any:
    """The page of changes is the file beside the README."""
    files.append(File.generated(config, "changelog.md", abs_src_path=str(ROOT / "CHANGELOG.md")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links out of `docs`, as to a notebook, lead to the repository."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def target(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[1]))
        if path.startswith("docs/"):
            return link[1]
        if not (ROOT / path.partition("#")[0]).exists():
            raise FileNotFoundError(f"{page.file.src_uri} links {link[1]}, which there is not")
        return f"{project['urls']['Repository']}/blob/main/{path}"

    return LINK.sub(target, markdown)
