"""Compiled programs kept in a folder, where the next process finds them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from tdjax.files import writing

FOLDER = "jax_compilation_cache_dir"
# Settings of JAX that leave small programs out unless somebody has changed them, and what keeps all
# of them: a network is decomposed by hundreds of programs, each of them compiled in milliseconds.
THRESHOLDS = {
    "jax_persistent_cache_min_compile_time_secs": (1.0, 0.0),
    "jax_persistent_cache_min_entry_size_bytes": (0, -1),
}


def enable_compilation_cache(folder: str | os.PathLike[str] | None = None) -> str:
    """Keep compiled programs in a folder, from which later processes read them.

    JAX's own persistent cache, with what is too small for it by default: decompositions compile
    many small programs. It is for all programs of the process from now on; called again with
    another folder, for those that follow. Thresholds that you have set stay, and
    `JAX_ENABLE_COMPILATION_CACHE=false` still turns it off. It grows without bounds unless
    `jax_compilation_cache_max_size` says otherwise. Whoever may write to the folder may run code
    in your processes.

        >>> import tempfile, tdjax
        >>> folder = tempfile.mkdtemp()
        >>> tdjax.enable_compilation_cache(folder) == folder
        True

    Arguments:
        folder: made if it is not there. None for the one that JAX has already, by
            `JAX_COMPILATION_CACHE_DIR` or `jax.config`, or else `tdjax/xla` in the user's folder
            of caches, `~/.cache`.

    Returns: the folder.

    Raises OSError that names the folder where it cannot be written.
    """
    config: Any = jax.config
    chosen = os.fspath(folder or getattr(config, FOLDER) or _of_user())
    # Of a remote file system, which has other means, the name is all that is known here.
    if "://" not in chosen:
        chosen = _writable(Path(chosen).expanduser().absolute())
    for name, (unset, kept) in THRESHOLDS.items():
        if getattr(config, name) == unset:
            config.update(name, kept)
    if getattr(config, FOLDER) != chosen:
        config.update(FOLDER, chosen)
        # It is opened by the first program that is compiled.
        compilation_cache.reset_cache()
    return chosen


def _of_user() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "tdjax" / "xla"


def _writable(folder: Path) -> str:
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        what = f"no place for compiled programs, name another folder: {error.strerror}"
        raise OSError(error.errno, what, str(folder)) from error
    return str(folder)
