import os
import random
import re
import warnings
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tdjax
from tdjax.moments.collect import LayerMoments


def second(rng, *shape):
    x = rng.normal(size=(*shape[:-1], 40, shape[-1])).astype(np.float32)
    return jnp.asarray(x.swapaxes(-1, -2) @ x / 40), jnp.asarray(x.mean(axis=-2))


def layer(seed, *shape, **words):
    rng = np.random.default_rng(seed)
    (inputs, mean), (outputs, _) = second(rng, *shape), second(rng, *shape[:-1], 2)
    return LayerMoments(inputs, mean, outputs, jnp.float32(40), jnp.float32(20), **words)


MOMENTS = {
    "a/conv": layer(0, 1, 3),
    "stacked": layer(1, 2, 1, 3, kronecker="nearest"),
    "": LayerMoments(jnp.ones((1, 4)), jnp.ones((1, 4)), None, jnp.float32(3), jnp.float32(2)),
    "attended": LayerMoments(None, None, jnp.eye(2)[None], jnp.float32(3), jnp.float32(2)),
}


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("moments") / "whole.npz"
    tdjax.save_moments(path, MOMENTS)
    return path.read_bytes()


def same(found):
    assert list(found) == list(MOMENTS)
    assert jax.tree.structure(found) == jax.tree.structure(MOMENTS)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(MOMENTS), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def refusal(path):
    with pytest.raises(ValueError, match=re.escape(f"{path} is not a file of moments")) as caught:
        tdjax.load_moments(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_flipped_bit_is_refused_or_changes_nothing(content, tmp_path):
    path, rng, refused = tmp_path / "m.npz", random.Random(0), 0
    for _ in range(80):
        place = rng.randrange(len(content))
        bit = 1 << rng.randrange(8)
        path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        try:
            found = tdjax.load_moments(path)
        except ValueError:
            refusal(path)
            refused += 1
        else:
            same(found)
    assert refused > 40


def test_a_file_cut_anywhere_is_refused(content, tmp_path):
    path = tmp_path / "m.npz"
    for size in range(0, len(content), 397):
        path.write_bytes(content[:size])
        refusal(path)


def plain(**changes):
    """The arrays of one layer as an earlier version wrote them, with changes."""
    names = [name for name in LayerMoments.__annotations__ if name != "kronecker"]
    own = {name: np.asarray(getattr(MOMENTS["a/conv"], name)) for name in names}
    return {
        f"conv:{name}": array for name, array in {**own, **changes}.items() if array is not None
    }


SYMMETRIC = np.asarray(MOMENTS["a/conv"].inputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": SYMMETRIC * np.nan}, "inputs holds NaN or Inf"),
        ({"inputs": SYMMETRIC[:, :2]}, "inputs of shape .* do not belong to a mean"),
        ({"inputs": SYMMETRIC[0]}, "do not belong to a mean"),
        ({"inputs": -SYMMETRIC}, "inputs is no second moment"),
        ({"inputs": SYMMETRIC + np.triu(np.ones((3, 3)), 1)}, "inputs is no second moment"),
        ({"outputs": -np.eye(2)[None]}, "outputs is no second moment"),
        ({"outputs": np.ones((1, 2, 3))}, "outputs has shape"),
        ({"inputs": SYMMETRIC.astype(int)}, "inputs has dtype int64"),
        ({"inputs": SYMMETRIC.astype("U9")}, "inputs has dtype <U9"),
        ({"inputs": SYMMETRIC.astype(">f4")}, "inputs has dtype >f4"),
        ({"inputs": SYMMETRIC * np.float64(1e300)}, "inputs holds numbers beyond float32"),
        ({"mean": None}, "inputs or mean is missing"),
        ({"rows": np.float32(-1)}, "rows is no count"),
        ({"rows": np.ones(2)}, "rows is no count"),
        ({"examples": None}, "lacks examples"),
        ({"colour": np.ones(2)}, "holds colour"),
        ({"kronecker": np.ones(2, np.uint8)}, "kronecker is none of independent, nearest"),
        ({"inputs": np.array([None])}, "no plain array|is no second"),
    ],
)
def test_what_cannot_be_moments_is_refused(tmp_path, changes, message):
    path = tmp_path / "m.npz"
    np.savez(path, **plain(**changes))
    assert re.search(message, refusal(path))


def test_what_an_earlier_version_saved_is_read_with_a_warning(tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, **plain())
    with pytest.warns(UserWarning, match=f"{path} was written without a digest"):
        found = tdjax.load_moments(path)
    np.testing.assert_array_equal(found["conv"].inputs, SYMMETRIC)


def test_what_a_later_version_saved_is_refused(tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, format=np.array(3), **plain())
    assert "it has format 3, and this version of tdjax reads up to 2: update tdjax" in refusal(path)
    np.savez(path, format=np.ones(2), **plain())
    assert "its format is no number" in refusal(path)


def test_no_more_is_unpacked_than_the_file_holds(tmp_path):
    path = tmp_path / "m.npz"
    np.savez_compressed(path, **{"conv:inputs": np.zeros(1 << 22, np.float32)})
    assert path.stat().st_size < 1 << 16
    assert "unpacked to more than its size" in refusal(path)
    # A header that asks for more than there is.
    with zipfile.ZipFile(path, "w") as archive:
        header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"
        text = header.ljust(117).encode() + b"\n"
        archive.writestr("conv:inputs.npy", b"\x93NUMPY\x01\x00\x76\x00" + text)
    assert "its header says 4000000000128" in refusal(path)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        assert "no regular file" in refusal(path)
    with warnings.catch_warnings(), pytest.raises(FileNotFoundError):
        tdjax.load_moments(tmp_path / "none")
