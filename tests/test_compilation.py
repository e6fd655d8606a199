import jax
import jax.numpy as jnp
import pytest

import tdjax
from tdjax.compilation import FOLDER, THRESHOLDS

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(autouse=True)
def unset():
    """As JAX is where nobody has set anything."""
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update(FOLDER, None)
    for name, (value, _) in THRESHOLDS.items():
        jax.config.update(name, value)


def kept(folder):
    return {path.name for path in folder.iterdir()}


def compile_one():
    """A small program, compiled anew or read: each call of `jax.jit` begins with none."""
    assert jax.jit(lambda x: 2 * x + 1)(jnp.float32(3)) == 7


def test_small_programs_are_kept_and_read(tmp_path):
    first, second = tmp_path / "new" / "first", tmp_path / "second"
    compile_one()
    assert tdjax.enable_compilation_cache(first) == str(first)
    compile_one()
    found = kept(first)
    assert found
    assert tdjax.enable_compilation_cache(first) == tdjax.enable_compilation_cache() == str(first)
    compile_one()
    assert kept(first) == found
    tdjax.enable_compilation_cache(second)
    compile_one()
    assert kept(first) == found
    assert len(kept(second)) == len(found)


def test_what_the_user_has_set_stays(tmp_path):
    jax.config.update(FOLDER, str(tmp_path / "own"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    assert tdjax.enable_compilation_cache() == str(tmp_path / "own")
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.5
    assert jax.config.jax_persistent_cache_min_entry_size_bytes == -1


def test_the_folder_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tdjax.enable_compilation_cache() == str(tmp_path / "tdjax" / "xla")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"name another folder: Not a directory.*file/below"):
        tdjax.enable_compilation_cache(tmp_path / "file" / "below")
    assert getattr(jax.config, FOLDER) is None
