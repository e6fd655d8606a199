import os
from contextlib import contextmanager

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

SETTINGS = {
    "jax_enable_compilation_cache": True,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs, shared by experiments, by processes that they start, and by workers."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    settings = {"jax_compilation_cache_dir": str(folder / "compiled"), **SETTINGS}
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield folder / "compiled"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@contextmanager
def drawing_nothing():
    figure = pytest.importorskip("matplotlib.figure")
    empty = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure.Figure, "savefig", lambda self, file, **_: file.write(empty))
        yield


@pytest.fixture
def undrawn():
    """Figures are made but not drawn: for reports of a kind that another test draws.

    To draw them takes most of the time of a report, and more than an experiment that goes on.
    """
    with drawing_nothing():
        yield


@pytest.fixture(scope="module")
def without_drawing():
    """The same as a context, for what fixtures of a module report."""
    return drawing_nothing
