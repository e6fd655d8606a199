import copy
import json
import random
import time
from dataclasses import replace
from fractions import Fraction

import pytest

from tdjax import Form, Layer, Plan, PlannedLayer, Rule
from tdjax.params.check import factor_shapes
from tdjax.plan.decide import plan_layer
from tdjax.plan.layers import Storage
from tdjax.plan.timing import Profile
from tdjax.plan.work import Use, Work

CONV = Layer("conv", "conv", (3, 3, 16, 32), 1, (8, 8), (4, 4), 1, 0, 32)
GROUPED = Layer("grouped", "conv", (3, 3, 8, 32), 2, (8, 8), (8, 8))
UP = Layer(
    "up", "conv_transpose", (3, 3, 8, 6), 1, (4, 4), (8, 8),
    stored=Storage("kernel", (3, 3, 6, 8), (0, 1, 3, 2), flipped=True),
)  # fmt: skip
HEAD = Layer("head", "dense", (32, 24), positions=3, other=24)
HEADS = Layer(
    "heads", "dense_general", (32, 24), positions=3,
    stored=Storage("kernel", (32, 4, 6), (0, 1, 2), stack=1, copies=3),
)  # fmt: skip
EINSUM = Layer("einsum", "einsum", (10, 12), stored=Storage("kernel", (3, 4, 10), (2, 0, 1)))
EMBED = Layer("embed", "embed", (50, 32), lookups=6, stored=Storage("embedding", (50, 32), (0, 1)))
ODD = Layer("odd", "LSTMCell", (32, 7), obstacle="LSTMCell is not supported")


def planned(layer, **rule):
    return plan_layer(layer, Rule(path=".*", **rule))


PLAN = Plan(
    (
        planned(CONV, method="cp", rank=4, spatial="merged"),
        planned(replace(CONV, path="a/sparse"), method="tucker", compression=0.5, sparse=0.2),
        planned(GROUPED, method="tt", rank=(3, 4, 5)),
        planned(replace(CONV, path="rows"), method="svd", rank=2, splits=4, fold="rows"),
        planned(UP, method="cp", rank=3),
        planned(HEAD, method="tt", compression=0.5),
        planned(HEADS, method="svd", rank=2),
        planned(EINSUM, method="svd", rank=2),
        planned(EMBED, method="tt", compression=0.5),
        PlannedLayer(replace(HEAD, path="dense"), reason="no rule matches it"),
        PlannedLayer(ODD, reason=ODD.obstacle),
    ),
    1234,
    Profile(0.02, 0.01, 2.0, 1.5, 2.5, 10),
)
RAW = json.loads(PLAN.to_json())
SHARED = replace(HEAD, path="shared", positions=Fraction(5, 3))
WORK = (Work(0, (Use("head", 1, 0),), ()), Work(3, (Use("shared", Fraction(5, 3), 0),), ()))
# What plans hold since version 3.
LATER = Plan(
    (
        planned(replace(CONV, dilated=True), method="svd", rank=2),
        planned(SHARED, method="svd", rank=2),
        planned(HEAD, method="svd", rank=2),
    ),
    other_macs=Fraction(7, 2),
    work=Work(Fraction(1, 2), (Use("conv", 1, 0),), (WORK,)),
)
# What they hold since version 4.
NAMED = LATER.with_ways({"conv": ("xla", "product")})
RAWS = (RAW, *(json.loads(plan.to_json()) for plan in (LATER, NAMED)))


def test_every_kind_of_plan_is_read_as_it_was():
    again = Plan.from_json(PLAN.to_json())
    assert (again, again.measured, hash(again)) == (PLAN, PLAN.measured, hash(PLAN))
    assert again.to_json() == PLAN.to_json()
    for entry in PLAN.layers:
        alone = Plan((entry,))
        assert Plan.from_json(alone.to_json()) == alone
    assert (Plan.from_json(LATER.to_json()), Plan.from_json(NAMED.to_json())) == (LATER, NAMED)
    assert Plan.from_json(LATER.to_json()).macs == LATER.macs


def places(raw, path=()):
    """The keys to everything in a JSON value."""
    if path:
        yield path
    for key in raw if isinstance(raw, dict) else range(len(raw)) if isinstance(raw, list) else ():
        yield from places(raw[key], (*path, key))


def mutated(original, rng):
    raw = copy.deepcopy(original)
    *front, last = rng.choice(list(places(raw)))
    above = raw
    for key in front:
        above = above[key]
    value, kind = above[last], rng.choice(("type", "value", "delete", "add", "permute"))
    if kind == "type":
        above[last] = rng.choice([None, True, 1.5, 3, -1, "x", [], {}, [1, "a"], {"a": 1}, [value]])
    elif kind == "value" and type(value) is int:
        above[last] = rng.choice([value + 1, -value, 10**40, 0, float(value), str(value), 2**40])
    elif kind == "value" and isinstance(value, str):
        above[last] = rng.choice([value + "x", "", "svd", "tt", "conv", "rows", "grouped"])
    elif kind == "delete":
        del above[last]
    elif kind == "add" and isinstance(value, list):
        value.insert(rng.randrange(len(value) + 1), rng.choice([1, 0, "x", *value]))
    elif kind == "add" and isinstance(value, dict):
        value[rng.choice(["more", "Rank", "path "])] = rng.choice([None, 1, "x"])
    elif kind == "permute" and isinstance(value, list):
        rng.shuffle(value)
    return raw


def test_a_changed_plan_is_refused_or_says_what_its_text_says():
    rng, messages, taken = random.Random(0), [], 0
    for turn in range(400):
        whole = RAWS[{0: 1, 4: 2}.get(turn % 8, 0)]
        original = {**whole, "layers": rng.sample(whole["layers"], 2)} if whole is RAW else whole
        raw = mutated(original, rng)
        text = json.dumps(raw, sort_keys=True)
        try:
            plan = Plan.from_json(text)
        except ValueError as error:
            messages.append(str(error))
            continue
        # Nothing is filled in, cast or passed over, and what was read does not fail later.
        assert json.dumps(json.loads(plan.to_json()), sort_keys=True) == text
        assert str(plan)
        assert all(factor_shapes(entry) for entry in plan.factorised)
        taken += raw != original
    assert all(text.startswith("not a plan: ") and "\n" not in text for text in messages)
    # Another path, number of positions or dense layer makes another plan.
    assert len(messages) > 150
    assert 0 < taken < 80


@pytest.mark.parametrize(
    ("layer", "change", "message"),
    [
        ("conv", {"path": 3}, r"field 'layers\[0\].layer.path' must be of type str, got 3"),
        ("conv", {"positions": True}, r"layer.positions' must be of type int, got True"),
        ("conv", {"kernel_shape": [3, 3.0, 16, 32]}, r"layer.kernel_shape\[1\]' must be of type"),
        ("conv", {"kernel_shape": [10**40, 3, 16, 32]}, r"kernel_shape\[0\]' must be from 0 to"),
        ("head", {"kernel_shape": [2**62, 24]}, "kernel_shape': an array has up to 32 axes"),
        ("conv", {"kernel_shape": [1] * 99}, "kernel_shape': an array has up to 32 axes"),
        ("conv", {"groups": 3}, "layer.groups': 3 do not divide a kernel of shape"),
        ("conv", {"groups": 0}, "layer.groups'"),
        ("head", {"groups": 2}, "layer.groups': a layer of kind dense has one group"),
        ("conv", {"in_spatial": [8]}, r"in_spatial': \(8,\) is not of the 2 axes of its window"),
        ("conv", {"lookups": 1}, "lookups': a layer of kind conv looks nothing up"),
        ("conv", {"kind": "Conv"}, "kind': 'Conv' needs an obstacle; known are dense"),
        ("conv", {"obstacle": "it is masked"}, "method': 'cp', but the layer is kept dense"),
        ("odd", {"obstacle": "another"}, "reason' is not the obstacle"),
        ("up", {"order": [0, 1, 2, 3]}, r"stored.order': \(0, 1, 2, 3\) is not that of kind"),
        ("up", {"flipped": False}, "stored.order'"),
        ("heads", {"order": [0, 2, 1]}, "stored.order'"),
        ("heads", {"order": [0, 1, 1]}, "stored.order': .* does not order 3 axes"),
        ("heads", {"name": "weight"}, "stored.name': 'weight' is not that of kind dense_general"),
        ("heads", {"shape": [32, 4, 7]}, "stored.shape': .* does not hold a kernel of"),
        ("heads", {"stack": 4}, "stored.stack': 4 is no axis of a stack"),
        ("heads", {"stack": None}, "stored.copies': 3 layers do not lie along axis None"),
        ("einsum", {"order": [0, 2, 1]}, "stored.shape'"),
        ("conv", {"method": None}, "method' is null, but the layer has a form"),
        ("dense", {"ranks": [1]}, "method' is null, but the layer has a form"),
        ("grouped", {"ranks": [3, 4]}, "ranks: 3 ranks are needed"),
        ("grouped", {"ranks": [1, 4, 5]}, "one is above what its neighbours let it reach"),
        ("conv", {"splits": 2}, "only method 'svd' knows splits and fold"),
        ("dense", {"path": "head"}, "layer.path': 'head' twice"),
    ],
)
def test_what_other_fields_deny_is_named(layer, change, message):
    raw = copy.deepcopy(RAW)
    (entry,) = (entry for entry in raw["layers"] if entry["layer"]["path"] == layer)
    for name, value in change.items():
        owners = (entry, entry["layer"], entry["layer"]["stored"] or {})
        next(own for own in owners if name in own)[name] = value
    with pytest.raises(ValueError, match=f"not a plan: .*{message}"):
        Plan.from_json(json.dumps(raw))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "not a plan: "),
        ('{"version": 1, "other": ' + "9" * 10_000 + ', "layers": []}', "not a plan: "),
        ('{"version": 1, "other": 1, "layers": [], "other": 1}', "field 'other' is there twice"),
        ('{"version": 1, "other": NaN, "layers": []}', "NaN is no value of a field"),
        ('{"version": true, "other": 1, "layers": []}', "'version' must be of type int, got True"),
        ('{"version": 1, "other": 1, "layers": [], "rules": []}', "unknown field 'rules'; known"),
        ('{"version": 1, "other": 1, "layers": [], "measured": [1.0]}', "'measured' must list"),
        (
            '{"version": 1, "other": 1, "layers": [], "measured": [1.0, 1.0, 9.0, 1.0, 2.0, 3]}',
            "speedup' does not lie between",
        ),
    ],
)
def test_hostile_text_is_refused_in_words(text, message):
    with pytest.raises(ValueError, match=message):
        Plan.from_json(text)


def test_sizes_without_end_take_no_time():
    start = time.process_time()
    large = Layer("a", "dense", (2**31 - 1, 2**31 - 1))
    plan = Plan((PlannedLayer(large, Form("svd", (1,))),))
    assert Plan.from_json(plan.to_json()) == plan
    raw = json.loads(plan.to_json())
    raw["layers"][0]["splits"] = 5
    with pytest.raises(ValueError, match="5 splits do not divide its 2147483647 input channels"):
        Plan.from_json(json.dumps(raw))
    assert time.process_time() - start < 2


def test_a_kernel_without_entries_has_no_form():
    for entry in range(len(PLAN.factorised)):
        raw = copy.deepcopy({**RAW, "layers": [RAW["layers"][entry]]})
        raw["layers"][0]["layer"]["kernel_shape"][-2] = 0
        with pytest.raises(ValueError, match=r"not a plan: (field|layer) '"):
            Plan.from_json(json.dumps(raw))
