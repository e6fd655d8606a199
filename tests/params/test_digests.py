import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_models import normal

from tdjax.params.digests import check_arrays, check_seal, check_shapes, digests_of, sealed

TREE = {
    "a": {"kernel": normal(0, 3, 2), "half": normal(1, 4).astype(jnp.bfloat16)},
    "count": jnp.array(3),
    "flags": np.array([True, False]),
    "none": np.zeros((0, 3), np.float32),
    "empty": {},
}


def test_digests_survive_json_and_know_their_arrays():
    known = json.loads(json.dumps(digests_of(TREE)))
    check_arrays(TREE, known)
    check_shapes(jax.eval_shape(lambda: TREE), known)
    assert known["['a']['kernel']"]["shape"] == [3, 2]


@pytest.mark.parametrize("seed", range(12))
def test_any_flipped_bit_is_seen(seed):
    rng = random.Random(seed)
    path = rng.choice([("a", "kernel"), ("a", "half"), ("count",), ("flags",)])
    above = TREE if len(path) == 1 else TREE["a"]
    array = np.asarray(above[path[-1]])
    content = bytearray(array.tobytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    changed = np.frombuffer(bytes(content), array.dtype).reshape(array.shape)
    other = (
        {**TREE, path[-1]: changed}
        if above is TREE
        else {**TREE, "a": {**TREE["a"], path[-1]: changed}}
    )
    with pytest.raises(ValueError, match=rf"{path[-1]}'\] is not what was saved: its digest"):
        check_arrays(other, digests_of(TREE))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"count": jnp.array([3])},
            r"array \['count'\] is int32 \(1,\), not what was saved, int32",
        ),
        ({"count": jnp.array(3.0)}, r"array \['count'\] is float32 \(\), not what was saved"),
        ({"more": jnp.ones(2)}, r"array \['more'\] was not saved"),
        ({"empty": jnp.ones(2)}, r"array \['empty'\] is float32 \(2,\), not what was saved, empty"),
        ({"count": {}}, r"array \['count'\] is empty, not what was saved, int32 \(\)"),
    ],
)
def test_another_structure_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        check_shapes({**TREE, **change}, digests_of(TREE))
    with pytest.raises(ValueError, match=r"array \['count'\] was saved and is missing"):
        check_arrays({k: v for k, v in TREE.items() if k != "count"}, digests_of(TREE))


def test_an_edited_object_is_seen():
    fields = {"plan": {"ranks": [1, 2]}, "speed": 1.5, "names": None}
    read = json.loads(json.dumps(sealed(fields)))
    assert check_seal(read) == fields
    for wrong in ({**read, "speed": 1.25}, {**read, "more": 1}, {**read, "sha256": "0"}):
        with pytest.raises(ValueError, match="its digest differs"):
            check_seal(wrong)
    for wrong in (fields, [], None):
        with pytest.raises(ValueError, match="its digest is missing"):
            check_seal(wrong)
