import json
import math
from dataclasses import fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_models import ConvNet

import tdjax
from tdjax import Form, Layer, Plan, PlannedLayer, Rule
from tdjax.plan.decide import plan_layer, plan_layers

CONV1 = Layer("conv1", "conv", (3, 3, 16, 32), in_spatial=(8, 8), out_spatial=(4, 4), other=32)
CONV2 = Layer("conv2", "conv", (3, 3, 16, 32), groups=2, in_spatial=(4, 4), out_spatial=(4, 4))
HEAD = Layer("block/head", "dense", (32, 24), positions=3, other=24)
EMBED = Layer("embed", "Embed", (50, 32), obstacle="Embed is not supported")
TABLE = (CONV1, CONV2, HEAD, EMBED)


def test_first_match_wins():
    rules = (
        Rule(path="conv2", method="svd", rank=3),
        Rule(path="conv.", method="tucker", rank=(4, 5)),
        Rule(path=".*", method="cp", rank=2),
    )
    plan = plan_layers(TABLE, rules)
    assert [(e.layer.path, e.method, e.ranks) for e in plan.factorised] == [
        ("conv1", "tucker", (4, 5)),
        ("conv2", "svd", (3,)),
        ("block/head", "svd", (2,)),
    ]
    assert plan["conv1"].layer is CONV1


def test_path_must_match_whole():
    for part, whole in (
        ("head", r"\.\*head"),
        ("block", r"block\.\*"),
        ("ead|x", r"\.\*\(ead\|x\)"),
    ):
        message = f"matches no layer; .*; a pattern is for whole paths: '{whole}' matches some"
        with pytest.raises(ValueError, match=message):
            plan_layers(TABLE, [Rule(path=part, method="svd", rank=2)])
    assert len(plan_layers(TABLE, [Rule(path=".*/head", method="svd", rank=2)]).factorised) == 1


def test_rule_that_matches_no_layer_names_the_layers():
    rules = (Rule(path="conv1", method="cp", rank=2), Rule(path="fc.*", method="tt", rank=2))
    with pytest.raises(ValueError, match=r"Rule 'fc\.\*' \(tt\).*conv1, conv2, block/head, embed"):
        plan_layers(TABLE, rules)


def test_rule_behind_another_that_takes_its_layers_is_allowed():
    rules = (Rule(path=".*", method="svd", rank=2), Rule(path="conv1", method="cp", rank=2))
    assert {entry.method for entry in plan_layers(TABLE, rules).factorised} == {"svd"}


def test_obstacle_stays_dense_with_its_reason():
    plan = plan_layers(TABLE, [Rule(path=".*", method="svd", rank=2)])
    assert plan["embed"].method is None
    assert plan["embed"].reason == "Embed is not supported"
    with pytest.raises(ValueError, match=r"Rule 'embed' \(svd\): layer 'embed': Embed is not"):
        plan_layer(EMBED, Rule(path="embed", method="svd", rank=2))


def test_unmatched_stays_dense_with_the_reason():
    plan = plan_layers(TABLE, [Rule(path="conv1", method="svd", rank=2)])
    assert plan["conv2"].reason == "no rule matches it"
    assert plan["conv2"].size == CONV2.size
    assert plan["conv2"].stages == ()


def test_layer_that_would_not_shrink_stays_dense():
    full = plan_layers([CONV1], [Rule(path=".*", method="svd", rank=32)])
    assert full["conv1"].method is None
    assert full["conv1"].reason == (
        "svd at rank 32 would hold 5,632 parameters, no fewer than its 4,608"
    )
    # 4608 / (144 + 32) is 26.2.
    assert plan_layers([CONV1], [Rule(path=".*", method="svd", rank=27)])["conv1"].method is None
    kept = plan_layers([CONV1], [Rule(path=".*", method="svd", rank=26)])["conv1"]
    assert kept.size == 26 * (144 + 32)
    assert kept.kept == 26 * (144 + 32) / 4608


def test_depthwise_convolution_stays_dense_where_nothing_is_saved():
    depthwise = Layer("depth", "conv", (3, 3, 1, 8), 8, in_spatial=(5, 5), out_spatial=(5, 5))
    plans = {
        method: plan_layers([depthwise], [Rule(path=".*", method=method, rank=1)])["depth"]
        for method in ("svd", "tucker", "cp", "tt")
    }
    for method in ("svd", "tucker"):
        assert plans[method].method is None
        assert "no fewer than its 72" in plans[method].reason
    # Separable windows: 1 + 3 + 3 + 1 in place of 9 for each channel.
    assert (plans["cp"].size, plans["tt"].size) == (64, 64)


@pytest.mark.parametrize(
    ("method", "rank", "message"),
    [
        ("svd", 0, r"rank 0 of \(0,\) is not between 1 and 32; full ranks are \(32,\)"),
        ("svd", 33, r"rank 33 of \(33,\) is not between 1 and 32"),
        ("cp", 145, r"rank 145 of \(145,\) is not between 1 and 144"),
        ("tucker", 17, r"rank 17 of \(17, 17\) .* full ranks are \(16, 32\)"),
        ("tucker", (16, 33), r"rank 33 of \(16, 33\) is not between 1 and 32"),
        ("tucker", (4, 4, 4), r"2 ranks are needed, got \(4, 4, 4\)"),
        ("tt", (17, 3, 3), r"rank 17 of .* full ranks are \(16, 48, 32\)"),
        ("tt", 49, r"rank 49 of \(49,\) is not between 1 and 48"),
        ("tt", 0, r"rank 0 of \(0,\)"),
        ("tt", (4, 4), r"3 ranks are needed"),
    ],
)
def test_rank_out_of_range_names_rule_layer_and_bounds(method, rank, message):
    with pytest.raises(ValueError, match=rf"Rule 'conv1' \({method}\): layer 'conv1': {message}"):
        plan_layers(TABLE, [Rule(path="conv1", method=method, rank=rank)])


def test_rank_of_a_group_is_bounded_by_the_group():
    # A group maps 16 channels in a 3x3 window to 16.
    with pytest.raises(ValueError, match="not between 1 and 16"):
        plan_layers(TABLE, [Rule(path="conv2", method="svd", rank=17)])


def test_rank_of_merged_cp_is_bounded_by_the_merged_shape():
    thin = Layer("thin", "conv", (3, 3, 1, 2), in_spatial=(5, 5), out_spatial=(5, 5))
    # (9, 1, 2) has rank 2 at most, (3, 3, 1, 2) up to 6.
    plan_layer(thin, Rule(path="thin", method="cp", rank=6))
    with pytest.raises(ValueError, match="not between 1 and 2"):
        plan_layer(thin, Rule(path="thin", method="cp", rank=3, spatial="merged"))


def test_single_rank_stands_for_all():
    tucker = plan_layer(CONV1, Rule(path=".*", method="tucker", rank=5))
    assert tucker.ranks == (5, 5)
    # min(48, ...) by the unfoldings: 16 from the left, 32 from the right.
    train = plan_layer(CONV1, Rule(path=".*", method="tt", rank=48))
    assert train.ranks == (16, 48, 32)


def test_tensor_train_ranks_are_those_that_can_be_reached():
    # From the left, 2 * 3 is all that the second rank can be.
    train = plan_layer(CONV1, Rule(path=".*", method="tt", rank=(2, 20, 30)))
    assert train.ranks == (2, 6, 18)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "a(", "method": "svd", "rank": 1}, r"Rule 'a\(' \(svd\).*regular expression"),
        ({"path": "a", "method": "qr", "rank": 1}, "unknown method; known are cp, tucker, tt, svd"),
        ({"path": "a", "method": "svd"}, "exactly one of compression and rank"),
        ({"path": "a", "method": "svd", "rank": 1, "compression": 0.5}, "exactly one of"),
        ({"path": "a", "method": "svd", "compression": 0.0}, "between 0 and 1"),
        ({"path": "a", "method": "svd", "compression": 1.0}, "between 0 and 1"),
        ({"path": "a", "method": "svd", "compression": math.nan}, "between 0 and 1"),
        ({"path": "a", "method": "cp", "rank": 1, "spatial": "half"}, "separate, merged"),
        ({"path": "a", "method": "tt", "rank": 1, "spatial": "merged"}, "only method 'cp'"),
    ],
)
def test_rule_that_means_nothing_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Rule(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 2.7}, "rank 2.7 is no whole number"),
        ({"rank": True}, "rank True is no whole number"),
        ({"rank": (2, 2.7)}, "rank 2.7 is no whole number"),
        ({"rank": "2"}, "rank '2' is no whole number"),
        ({"rank": 2, "splits": 2.0}, "splits 2.0 is no whole number; pass 2"),
        ({"rank": 2, "splits": True}, "splits True is no whole number"),
        ({"compression": True}, "compression True is no number"),
        ({"compression": "0.5"}, "compression '0.5' is no number"),
        ({"rank": 2, "sparse": True}, "sparse True is no number"),
        ({"rank": 2, "fold": 1}, "fold 1 is no str"),
        ({"rank": 2, "path": None}, "path None is no pattern"),
    ],
)
def test_rule_of_values_of_a_wrong_kind_is_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        unchecked_rule(**arguments)


def unchecked_rule(**arguments):
    """Not by its own `__init__`, whose types these tests check on their own account."""
    given, rule = {"path": ".*", "method": "svd", **arguments}, object.__new__(Rule)
    for field in fields(Rule):
        object.__setattr__(rule, field.name, given.get(field.name, field.default))
    rule.__post_init__()
    return rule


def test_numbers_of_numpy_are_numbers():
    rule = unchecked_rule(rank=(np.int64(2),), splits=np.int32(2), sparse=np.float32(0.5))
    assert rule == Rule(path=".*", method="svd", rank=(2,), splits=2, sparse=0.5)
    assert [type(x) for x in (*rule.rank, rule.splits, rule.sparse)] == [int, int, float]
    plan = Plan((plan_layer(HEAD, unchecked_rule(rank=np.int64(2), splits=np.int32(2))),))
    assert Plan.from_json(plan.to_json()) == plan


def test_arguments_that_a_rule_has_not():
    with pytest.raises(TypeError, match=r"no argument 'ranks'; .*; did you mean 'rank'"):
        Rule(path=".*", method="svd", ranks=2)
    with pytest.raises(TypeError, match="'conv' has no name"):
        Rule("conv", method="svd", rank=2)


@settings(max_examples=60, deadline=None)
@given(
    spatial=st.lists(st.integers(1, 5), max_size=3),
    c=st.integers(1, 12),
    t=st.integers(1, 12),
    groups=st.integers(1, 3),
    choice=st.sampled_from(
        [("cp", "separate"), ("cp", "merged"), ("tucker", "separate"), ("tt", "separate"),
         ("svd", "separate")]
    ),
    compression=st.floats(0.01, 0.99),
)  # fmt: skip
def test_any_shape_gets_a_plan_that_saves_and_round_trips(
    spatial, c, t, groups, choice, compression
):
    groups = groups if spatial else 1
    size = tuple(spatial)
    layer = Layer(
        "a", "conv" if spatial else "dense", (*spatial, c, groups * t), groups, size, size
    )
    method, mode = choice
    rule = Rule(path="a", method=method, compression=compression, spatial=mode)
    plan = plan_layers([layer], [rule], other=7)
    entry = plan["a"]
    assert (entry.size < layer.size) == (entry.method is not None) == (entry.reason is None)
    assert plan.size == 7 + entry.size
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert hash(again) == hash(plan)


def test_compression_is_the_share_removed():
    for method in ("cp", "tucker", "tt", "svd"):
        entry = plan_layer(CONV1, Rule(path=".*", method=method, compression=0.75))
        assert 0.17 < entry.kept < 0.33


def test_stages_of_a_planned_layer_hold_its_size():
    for method in ("cp", "tucker", "tt", "svd"):
        entry = plan_layer(CONV2, Rule(path=".*", method=method, compression=0.5))
        assert sum(stage.size for stage in entry.stages) == entry.size


def test_unknown_path_lists_the_layers():
    plan = plan_layers(TABLE, [])
    with pytest.raises(KeyError, match="no layer 'conv3'; layers are: conv1, conv2"):
        plan["conv3"]


def example_plan():
    rules = (
        Rule(path="conv1", method="cp", rank=4, spatial="merged"),
        Rule(path="conv2", method="tt", rank=(3, 4, 5)),
        Rule(path="block/.*", method="svd", compression=0.5),
    )
    return plan_layers(TABLE, rules, other=123)


def test_json_round_trip():
    plan = example_plan()
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert hash(again) == hash(plan)
    assert {again: 1}[plan] == 1
    assert str(again) == str(plan)
    assert json.loads(plan.to_json())["version"] == 1


def change(raw, keys, value):
    *front, last = keys
    target = raw
    for key in front:
        target = target[key]
    if value is None:
        del target[last]
    else:
        target[last] = value


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["version"], 2),
        (["version"], None),
        (["layers"], None),
        (["layers"], 3),
        (["layers"], ["conv1"]),
        (["other"], None),
        (["other"], "many"),
        (["layers", 0, "layer"], "conv1"),
        (["layers", 0, "layer"], None),
        (["layers", 0, "layer", "path"], None),
        (["layers", 0, "layer", "kernel_shape"], 7),
        (["layers", 0, "layer", "kernel_shape"], [3, 3, "x", 4]),
        (["layers", 0, "layer", "colour"], "red"),
        (["layers", 0, "method"], "qr"),
        (["layers", 0, "ranks"], 4),
        (["layers", 0, "ranks"], [4, 4]),
        (["layers", 0, "ranks"], [0]),
        (["layers", 0, "ranks"], [1000]),
        (["layers", 1, "ranks"], [3]),
        (["layers", 3, "layer", "kernel_shape"], ["x", "y"]),
    ],
)
def test_corrupt_json_is_refused(keys, value):
    raw = json.loads(example_plan().to_json())
    change(raw, keys, value)
    with pytest.raises(ValueError, match="not a plan"):
        Plan.from_json(json.dumps(raw))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"plan"', "{}"])
def test_text_that_is_no_plan_is_refused(text):
    with pytest.raises(ValueError, match="not a plan"):
        Plan.from_json(text)


def test_table_text():
    plan = example_plan()
    lines = str(plan).splitlines()
    assert lines[0].split() == ["layer", "kernel", "format", "ranks", "parameters", "MACs"]
    rows = {line.split()[0]: line for line in lines[2:6]}
    conv1 = 4 * (16 + 9 + 32)
    assert "3x3x16x32" in rows["conv1"]
    assert "cp merged  4 " in rows["conv1"]
    assert f"4,608 -> {conv1:,}" in rows["conv1"]
    assert f"{100 * conv1 / 4608:.1f} %" in rows["conv1"]
    assert "3x3x16x32 /2" in rows["conv2"]
    assert "tt" in rows["conv2"]
    assert "3, 4, 5" in rows["conv2"]
    assert rows["embed"].split() == ["embed", "50x32", "dense", "1,600", "0"]
    assert f"{plan.size_before:,} -> {plan.size:,}" in lines[7]
    assert f"{plan.macs_before:,} -> {plan.macs:,}" in lines[7]
    assert lines[-1] == "embed is kept dense: Embed is not supported"
    assert len({len(line) for line in (lines[1], lines[6])}) == 1


def test_table_text_of_a_model_that_is_one_layer():
    layer = Layer("", "dense", (32, 32))
    text = str(plan_layers([layer], [Rule(path="", method="svd", rank=2)]))
    assert text.splitlines()[2].split()[0] == "(model)"
    assert "dense" not in text


def test_macs_of_planned_layers_by_hand():
    plan = example_plan()
    assert plan["conv1"].layer.macs == 16 * 9 * 16 * 32
    assert plan["conv1"].macs == 64 * 16 * 4 + 16 * (9 * 4 + 4 * 32)
    assert plan["conv2"].macs == 16 * 2 * (16 * 3 + 3 * 3 * 4 + 4 * 3 * 5 + 5 * 16)
    rank = plan["block/head"].ranks[0]
    assert plan["block/head"].layer.macs == 3 * 32 * 24
    assert plan["block/head"].macs == 3 * rank * (32 + 24)
    assert plan.macs == sum(plan[p].macs for p in ("conv1", "conv2", "block/head"))


def test_totals_are_counts_of_the_actual_parameters():
    model = ConvNet()
    sample = jax.ShapeDtypeStruct((2, 9, 9, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), sample)
    rules = (
        Rule(path="conv0", method="tt", compression=0.5),
        Rule(path="conv1", method="cp", compression=0.5),
        Rule(path="head", method="svd", rank=1),
    )
    plan = tdjax.make_plan(model, variables, rules, sample)
    small = jax.eval_shape(tdjax.factorize(model, plan).init, jax.random.key(0), sample)
    before, after = (
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree["params"]))
        for tree in (variables, small)
    )
    assert (plan.size_before, plan.size) == (before, after)
    assert f"{before:,} -> {after:,}" in str(plan)
    # Biases and two parameters for each normalised channel.
    assert plan.other == (8 + 12 + 5) + 2 * (8 + 12)


def test_planned_layer_defaults_to_dense():
    entry = PlannedLayer(CONV1)
    assert (entry.size, entry.macs, entry.kept) == (CONV1.size, CONV1.macs, 1.0)


OLD_LAYER = (
    '{"path": "a", "kind": "conv", "kernel_shape": [3, 3, 16, 32], "groups": 1, '
    '"in_spatial": [8, 8], "out_spatial": [4, 4], "positions": 1, "lookups": 0, "other": 32, '
    '"obstacle": null, "stored": null}'
)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (
            PlannedLayer(replace(CONV1, path="a"), Form("cp", (4,), "merged", nonzeros=57)),
            '"method": "cp", "ranks": [4], "spatial": "merged", "reason": null, "splits": 1, '
            '"fold": "channel", "nonzeros": 57',
        ),
        (
            PlannedLayer(replace(CONV1, path="a"), Form("svd", (2,), splits=4, fold="rows")),
            '"method": "svd", "ranks": [2], "spatial": "separate", "reason": null, "splits": 4, '
            '"fold": "rows", "nonzeros": 0',
        ),
        (
            PlannedLayer(replace(CONV1, path="a"), reason="no rule matches it"),
            '"method": null, "ranks": [], "spatial": "separate", "reason": "no rule matches it", '
            '"splits": 1, "fold": "channel", "nonzeros": 0',
        ),
    ],
)
def test_json_is_the_text_of_earlier_plans(entry, text):
    whole = f'{{"version": 1, "other": 9, "layers": [{{"layer": {OLD_LAYER}, {text}}}]}}'
    assert Plan((entry,), 9).to_json() == whole
    assert Plan.from_json(whole) == Plan((entry,), 9)


def test_a_layer_that_is_kept_dense_has_no_chain():
    with pytest.raises(ValueError, match="layer 'conv1' is kept dense: it has no chain"):
        PlannedLayer(CONV1).chain  # noqa: B018


def test_a_form_says_what_differs_from_the_plain_one():
    assert [str(Form("tt", (2,))), str(Form("cp", (2,), "merged"))] == ["tt", "cp merged"]
    assert str(Form("svd", (2,), splits=2, fold="rows", nonzeros=3)) == "svd rows /2 + sparse"
