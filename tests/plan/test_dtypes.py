"""Plans that say in what numbers layers are stored."""

import json

import pytest

import tdjax

DENSE = tdjax.Layer("dense", "dense", (64, 65))
CONV = tdjax.Layer("conv", "conv", (3, 3, 8, 16), 1, (8, 8), (8, 8))
PLAN = tdjax.Plan(
    (
        tdjax.PlannedLayer(DENSE, tdjax.Form("svd", (7,))),
        tdjax.PlannedLayer(CONV, tdjax.Form("tucker", (3, 5))),
    ),
    other=10,
)
# Numbers of float32, of scales, and of bytes for integers of four bits, counted by hand.
SIZE = {"dense": 7 * (64 + 65), "conv": 8 * 3 + 9 * 3 * 5 + 5 * 16}
SCALES = {"dense": 7 + 65, "conv": 3 + 5 + 16}
PAIRS = {"dense": 64 * 4 + 7 * 33, "conv": 8 * 2 + 9 * 3 * 3 + 5 * 8}


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float32", {path: 4 * size for path, size in SIZE.items()}),
        ("bfloat16", {path: 2 * size for path, size in SIZE.items()}),
        ("int8", {path: size + 4 * SCALES[path] for path, size in SIZE.items()}),
        ("int4", {path: pairs + 4 * SCALES[path] for path, pairs in PAIRS.items()}),
    ],
)
def test_bytes(dtype, expected):
    plan = PLAN.with_dtypes(dtype)
    assert {entry.layer.path: entry.bytes for entry in plan.layers} == expected
    assert plan.bytes == 40 + sum(expected.values())
    assert plan.bytes_before == PLAN.bytes_before == 4 * (10 + 64 * 65 + 9 * 8 * 16)
    assert tdjax.Plan.from_json(plan.to_json()) == plan
    assert dtype in str(plan)


def test_json_of_other_plans_stays():
    assert json.loads(PLAN.to_json())["version"] == 1
    assert PLAN.with_dtypes("int8").with_dtypes(None) == PLAN
    assert "bytes" not in str(PLAN)


def test_dense_layers():
    plan = tdjax.Plan((tdjax.PlannedLayer(DENSE),)).with_dtypes({"dense": "int4"})
    assert plan.bytes == 64 * 33 + 4 * 65
    assert tdjax.Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dtype", "int3", "dtype 'int3': known are float32, bfloat16, int8, int4"),
        ("nonzeros", 5, "sparse corrections are stored as they are"),
        ("dtype", 3, "must be of type str"),
    ],
)
def test_wrong_fields(field, value, message):
    raw = json.loads(PLAN.with_dtypes("int8").to_json())
    raw["layers"][0][field] = value
    with pytest.raises(ValueError, match=message):
        tdjax.Plan.from_json(json.dumps(raw))


def test_versions():
    raw = json.loads(PLAN.with_dtypes("int8").to_json())
    with pytest.raises(ValueError, match="field 'ways' is none of version 3"):
        tdjax.Plan.from_json(json.dumps({**raw, "version": 3}))
    raw["layers"] = [{**entry, "dtype": None} for entry in raw["layers"]]
    with pytest.raises(ValueError, match="not written as version 5"):
        tdjax.Plan.from_json(json.dumps(raw))


def test_what_cannot_be_stored():
    with pytest.raises(KeyError, match="no layer 'other'"):
        PLAN.with_dtypes({"other": "int8"})
    with pytest.raises(ValueError, match="dtype 'int16': known are"):
        PLAN.with_dtypes("int16")
    own = tdjax.Layer("own", "product", (4, 4))
    with pytest.raises(ValueError, match="products that are kept dense are stored as they are"):
        tdjax.Plan((tdjax.PlannedLayer(own),)).with_dtypes({"own": "int8"})
