import os
import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from experiments.network.checkpoints import CheckpointError, restore_latest, save


def tree(scale=1.0):
    params = {"a": jnp.arange(6.0).reshape(2, 3) * scale, "b": {"c": jnp.array([True, False])}}
    # An optimiser's state holds counts, empty tuples and named tuples.
    return (params, optax.sgd(0.1, momentum=0.9).init(params["a"]), jnp.array(3), (), [])


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_round_trip_is_exact(tmp_path):
    saved = (tree(1 / 3), jnp.array([jnp.nan, jnp.inf, -0.0, 1e-42]), jnp.array(2**31 - 1))
    save(tmp_path / "new" / "folder", 7, saved)
    step, restored = restore_latest(
        tmp_path / "new" / "folder", jax.tree.map(jnp.zeros_like, saved)
    )
    assert step == 7
    assert_same(restored, saved)


def test_shapes_stand_for_arrays(tmp_path):
    save(tmp_path, 1, tree())
    assert_same(restore_latest(tmp_path, jax.eval_shape(tree))[1], tree())


def test_the_newest_is_kept_and_wins(tmp_path):
    for step in (1, 2, 10):
        save(tmp_path, step, tree(step))
    assert [found.name for found in tmp_path.iterdir()] == ["10"]
    step, restored = restore_latest(tmp_path, tree())
    assert step == 10
    assert_same(restored, tree(10))


def test_nothing_there(tmp_path):
    assert restore_latest(tmp_path / "missing", tree()) is None
    assert not (tmp_path / "missing").exists()
    assert restore_latest(tmp_path, tree()) is None


def damage_by_cutting(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage_by_garbage(file):
    content = bytearray(file.read_bytes())
    for k in range(len(content)):
        content[k] ^= 0x5A
    file.write_bytes(bytes(content))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [damage_by_cutting, damage_by_garbage])
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    # One array: beside one that fails, Orbax leaves the reading of others to warn on its own.
    lone = {"a": jnp.arange(6.0)}
    save(tmp_path, 4, lone)
    # The arrays themselves, wherever the format puts them.
    files = [file for file in (tmp_path / "4").rglob("*") if file.is_file()]
    for file in files:
        if "ocdbt" in str(file) or file.parent.name == "d" or "manifest" in file.name:
            damage(file)
    with pytest.raises(CheckpointError) as caught:
        restore_latest(tmp_path, lone)
    assert str(tmp_path / "4") in str(caught.value)
    assert f"remove {tmp_path} to train from scratch" in str(caught.value)


def test_damaged_metadata_is_refused(tmp_path):
    save(tmp_path, 4, tree())
    (metadata,) = (tmp_path / "4").rglob("_METADATA")
    metadata.write_text("{")
    with pytest.raises(CheckpointError, match=str(tmp_path / "4")):
        restore_latest(tmp_path, tree())


@pytest.mark.parametrize(
    "other",
    [
        {"a": jnp.zeros((2, 3)), "b": jnp.zeros(1)},
        {"b": jnp.zeros((2, 3))},
        {"a": jnp.zeros((2, 4))},
        {"a": jnp.zeros((3, 2))},
        {},
    ],
)
def test_another_structure_is_refused(tmp_path, other):
    save(tmp_path, 4, {"a": jnp.ones((2, 3))})
    with pytest.raises(CheckpointError, match="damaged or belongs to another network"):
        restore_latest(tmp_path, other)


def test_an_interrupted_save_is_ignored(tmp_path):
    save(tmp_path, 4, tree(4))
    partial = tmp_path / "5.orbax-checkpoint-tmp-0"
    partial.mkdir()
    (partial / "part").write_bytes(b"half")
    step, restored = restore_latest(tmp_path, tree())
    assert step == 4
    assert_same(restored, tree(4))
    save(tmp_path, 5, tree(5))
    assert restore_latest(tmp_path, tree())[0] == 5


def test_what_is_restored_is_tied_to_no_device(tmp_path):
    # Programs compiled before the interruption would otherwise be compiled again.
    save(tmp_path, 1, tree())
    restored = jax.tree.leaves(restore_latest(tmp_path, tree())[1])
    assert not any(leaf.committed for leaf in restored)


def test_a_flipped_bit_is_named(tmp_path):
    rng = random.Random(0)
    save(tmp_path, 4, tree())
    for file in [file for file in (tmp_path / "4").rglob("*") if file.is_file()]:
        content = file.read_bytes()
        if not content:
            continue
        place, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
        file.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        with pytest.raises(CheckpointError, match=re.escape(str(file))) as caught:
            restore_latest(tmp_path, tree())
        assert "\n" not in str(caught.value)
        assert f"remove {tmp_path} to train from scratch" in str(caught.value)
        file.write_bytes(content)
    assert_same(restore_latest(tmp_path, tree())[1], tree())


def test_a_pipe_in_place_of_a_checkpoint_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "4")
    with pytest.raises(CheckpointError, match="4 is neither a file nor a folder"):
        restore_latest(tmp_path, tree())


def test_other_arrays_of_the_same_shapes_are_refused(tmp_path):
    save(tmp_path / "one", 4, tree())
    save(tmp_path / "two", 4, tree(2.0))
    (tmp_path / "one" / "4" / "tree").rename(tmp_path / "aside")
    (tmp_path / "two" / "4" / "tree").rename(tmp_path / "one" / "4" / "tree")
    (tmp_path / "one" / "4" / "digests.json").unlink()
    with pytest.raises(CheckpointError, match=r"array \[0\]\['a'\] .* its digest differs"):
        restore_latest(tmp_path / "one", tree())


def test_a_checkpoint_of_before_there_were_digests_is_read_with_a_warning(tmp_path):
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(3, args=ocp.args.StandardSave(tree(3.0)))
        manager.wait_until_finished()
    with pytest.warns(UserWarning, match=f"{tmp_path}/3 was written without digests"):
        step, restored = restore_latest(tmp_path, tree())
    assert step == 3
    assert_same(restored, tree(3.0))
    save(tmp_path, 5, tree(5.0))
    assert_same(restore_latest(tmp_path, tree())[1], tree(5.0))
