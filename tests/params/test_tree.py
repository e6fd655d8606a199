import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tdjax.params.options import Options
from tdjax.params.tree import (
    copied,
    find,
    join_path,
    layer_params,
    map_leaves,
    mappings,
    put,
    remove,
    split_path,
)
from tdjax.plan.layers import LEAF


def tree():
    return {"block": {"conv": {"kernel": 1, "bias": 2}, "norm": {"scale": 3}}, "head": {"bias": 4}}


def test_paths():
    assert split_path("") == ()
    assert split_path("a/b") == ("a", "b")
    assert join_path() == join_path("", "") == ""
    assert join_path("a/b", "", "c", 3) == "a/b/c/3"


def test_what_lies_at_a_path():
    whole = tree()
    assert layer_params(whole, "") is whole
    assert layer_params(whole, "block/conv") is whole["block"]["conv"]
    assert find(whole, "block/conv") is whole["block"]["conv"]
    # An array is a layer by itself.
    assert find(whole, "block/conv/kernel") == {LEAF: 1}
    for nothing in ("block/pool", "block/conv/kernel/deep", "tail"):
        assert find(whole, nothing) is None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("block/convs/more", "no parameters at 'block/convs'; did you mean 'block/conv'?"),
        ("haed", "no parameters at 'haed'; did you mean 'head'?"),
        ("block/zzz", "no parameters at 'block/zzz'"),
        ("block/conv/kernel/deep", "no parameters at 'block/conv/kernel/deep'"),
    ],
)
def test_a_wrong_path_is_named_with_what_is_near(path, message):
    with pytest.raises(KeyError) as caught:
        layer_params(tree(), path)
    assert caught.value.args == (message,)


def test_a_copy_shares_leaves_and_no_mappings():
    whole = tree()
    leaf = whole["head"]["bias"] = np.zeros(2)
    twin = copied(whole)
    put(twin, "block/conv", {"kernel": 5})
    put(twin, "new/deep", {"kernel": 6})
    put(twin, "head/bias", {"input": 8})
    put(twin, "", {"top": 7})
    assert twin["head"]["bias"] == {LEAF: leaf, "input": 8}
    assert twin["block"]["conv"] == {"kernel": 5, "bias": 2}
    assert (twin["new"], twin["top"]) == ({"deep": {"kernel": 6}}, 7)
    assert whole == {**tree(), "head": {"bias": leaf}}


def test_mappings_that_are_empty_go_with_what_was_in_them():
    whole = tree()
    remove(whole, "block/norm/scale")
    assert whole["block"] == {"conv": {"kernel": 1, "bias": 2}}
    remove(whole, "block/conv/kernel")
    remove(whole, "block/conv/kernel")
    remove(whole, "block/none/deep")
    assert whole["block"] == {"conv": {"bias": 2}}
    remove(whole, "block/conv")
    assert whole == {"head": {"bias": 4}}


def test_mappings_come_with_their_paths_outer_ones_first():
    paths = [path for path, _ in mappings(tree())]
    assert paths == ["", "block", "block/conv", "block/norm", "head"]
    assert dict(mappings(tree()))["block/norm"] == {"scale": 3}


def test_leaves_are_mapped_with_their_paths():
    found = map_leaves(lambda path, leaf: (path, leaf), tree())
    assert found["block"]["conv"] == {
        "kernel": ("block/conv/kernel", 1),
        "bias": ("block/conv/bias", 2),
    }
    assert found["head"] == {"bias": ("head/bias", 4)}
    with pytest.raises(ValueError, match="head: the key 3 is not a string"):
        map_leaves(lambda path, leaf: leaf, {"head": {3: 1}})


def test_parts_get_keys_of_their_own():
    assert Options(tol=0.1).of_part(2) == Options(tol=0.1)
    options = Options(key=jax.random.key(5), max_iters=7)
    own = options.of_part(2)
    assert own.max_iters == 7
    assert jnp.array_equal(
        jax.random.key_data(own.key),
        jax.random.key_data(jax.random.fold_in(jax.random.key(5), 2)),
    )
