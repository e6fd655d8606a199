"""Low rank by splits of the input channels and by other folds, through whole layers."""

import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_models import Scanned, normal, random_variables

import tdjax
from tdjax import GroupedLowRank, Layer, Plan, PlannedLayer, Rule
from tdjax.nnx import reconstruct
from tdjax.params.kernels import Weights, decompose_kernel
from tdjax.plan.chain import chain_of
from tdjax.plan.decide import plan_layer, plan_layers
from tdjax.plan.form import Form

pytestmark = pytest.mark.filterwarnings("ignore:too few rows")
SEQUENCE, IMAGE = normal(1, 2, 5, 12), normal(1, 2, 7, 6, 8)
CONV = Layer("conv", "conv", (3, 2, 12, 16), in_spatial=(8, 8), out_spatial=(4, 4))
GROUPS = Layer("groups", "conv", (3, 3, 4, 12), 2, in_spatial=(4, 4), out_spatial=(4, 4))
DENSE = Layer("dense", "dense", (24, 16), positions=3)
EMBED = Layer("embed", "embed", (24, 16), lookups=3)


def close(found, expected, tolerance=1e-4):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def rule(path=".*", rank=2, **form):
    return Rule(path=path, method="svd", rank=rank, **form)


# ---------------------------------------------------------------- chains


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("splits", "fold"),
    [(3, "channel"), (1, "rows"), (1, "columns"), (1, "window"), (2, "rows"), (3, "window")],
)
def test_kernels_stand_for_their_sum_over_splits(splits, fold, groups):
    shape = (3, 2, 6, 4 * groups)
    chain = chain_of(Layer("", "conv", shape, groups), Form("svd", (2,), splits=splits, fold=fold))
    stages = chain.stages
    kernels = {stage.name: normal(k, *stage.kernel_shape) for k, stage in enumerate(stages)}
    first = np.asarray(kernels["input"]).reshape(*stages[0].kernel_shape[:-1], groups, splits, 2)
    last = np.asarray(kernels["output"])
    last = last.reshape(*last.shape[:2], splits, 2, groups, 4)
    # Axes of size 1 are spread: an axis belongs to one of the two.
    expected = np.einsum("hwcgkr,HWkrgt->hHwWkcgt", first, last).reshape(shape)
    found = chain.reconstruct(kernels)
    close(found, expected, 1e-5)
    formats = chain.from_kernels(kernels)
    assert all(isinstance(part, GroupedLowRank) == (splits > 1) for part in formats)
    assert sum(part.size for part in formats) == sum(stage.size for stage in stages)
    jax.tree.map(np.testing.assert_array_equal, chain.to_kernels(formats), kernels)
    (part, *_), (kernel, *_) = formats, chain.split_groups(found)
    view = chain.tensor_view(kernel)
    close(view, part.to_tensor(), 1e-6)
    close(chain.kernel_view(view), kernel, 0)


# ---------------------------------------------------------------- plans


@pytest.mark.parametrize("splits", [1, 2, 6])
def test_sizes_and_macs_are_those_of_the_formula(splits):
    entry = plan_layer(CONV, rule(splits=splits))
    assert entry.size == 2 * (splits * 16 + 12 * 6)
    # Both thin layers run where the convolution has its outputs.
    assert entry.macs == 16 * entry.size
    assert [stage.groups for stage in entry.stages] == [splits, 1]
    dense = plan_layer(DENSE, rule(splits=splits))
    assert (dense.size, dense.macs) == (2 * (splits * 16 + 24), 3 * dense.size)
    within = plan_layer(GROUPS, rule(splits=2))
    assert [stage.groups for stage in within.stages] == [4, 2]
    assert within.size == 2 * 2 * (2 * 6 + 4 * 9)


def test_sizes_and_macs_of_folds():
    sizes = {
        "channel": (3 * 2 * 12, 16),
        "rows": (3 * 12, 2 * 16),
        "columns": (2 * 12, 3 * 16),
        "window": (12, 3 * 2 * 16),
    }
    # Positions after the axes that the first thin layer spans.
    positions = {"channel": 16, "rows": 32, "columns": 32, "window": 64}
    for fold, (rows, columns) in sizes.items():
        entry = plan_layer(CONV, rule(fold=fold))
        assert entry.size == 2 * (rows + columns)
        assert entry.macs == 2 * (positions[fold] * rows + 16 * columns)
        full = plan_layer(CONV, rule(fold=fold, rank=min(rows, columns)))
        assert full.ranks == (min(rows, columns),)
        with pytest.raises(ValueError, match=f"not between 1 and {min(rows, columns)}"):
            plan_layer(CONV, rule(fold=fold, rank=min(rows, columns) + 1))
    assert plan_layer(DENSE, rule(fold="rows")) == plan_layer(DENSE, rule())


@pytest.mark.parametrize("form", [{"splits": 3}, {"fold": "rows"}, {"splits": 2, "fold": "window"}])
def test_compression_gives_the_nearest_rank(form):
    entry = plan_layer(CONV, Rule(path="conv", method="svd", compression=0.6, **form))
    (rank,) = entry.ranks
    around = [plan_layer(CONV, rule(rank=r, **form)).kept for r in (rank - 1, rank, rank + 1)]
    distances = [abs(kept - 0.4) for kept in around]
    assert min(distances) == distances[1]


def test_plan_in_text_and_json():
    table = (CONV, GROUPS, DENSE)
    rules = [rule("conv", splits=4), rule("groups", fold="rows"), rule(splits=2, rank=1)]
    plan = plan_layers(table, rules)
    again = Plan.from_json(plan.to_json())
    assert (again, hash(again), str(again)) == (plan, hash(plan), str(plan))
    lines = str(plan).splitlines()
    assert "svd /4 " in lines[2]
    assert "svd rows " in lines[3]
    assert "svd /2 " in lines[4]
    reason = plan_layers([CONV], [rule(splits=12, rank=6)])["conv"].reason
    assert "svd /12 at rank 6 would hold" in reason

    raw = json.loads(plan.to_json())
    for wrong in ({"splits": 5}, {"splits": 0}, {"splits": "2"}, {"fold": "sideways"}):
        entries = [{**raw["layers"][0], **wrong}, *raw["layers"][1:]]
        with pytest.raises(ValueError, match="not a plan"):
            Plan.from_json(json.dumps({**raw, "layers": entries}))
    # Plans of before there were splits have neither field.
    plain = plan_layers(table, [rule()])
    raw = json.loads(plain.to_json())
    for entry in raw["layers"]:
        del entry["splits"], entry["fold"]
    assert Plan.from_json(json.dumps(raw)) == plain


@pytest.mark.parametrize(
    ("layer", "form", "message"),
    [
        (CONV, {"splits": 5}, "5 splits do not divide its 12 input channels; use one of 1, 2, 3"),
        (GROUPS, {"splits": 3}, "3 splits do not divide its 4 input channels; use one of 1, 2, 4"),
        (EMBED, {"splits": 2}, "an embedding has no input channels to split; give it a rule"),
        (CONV, {"splits": 12, "rank": 7}, r"rank 7 of \(7,\) is not between 1 and 6"),
        (DENSE, {"splits": 8, "rank": 4}, r"rank 4 of \(4,\) is not between 1 and 3"),
    ],
)
def test_refusals_name_rule_layer_and_remedy(layer, form, message):
    with pytest.raises(ValueError, match=rf"Rule '\.\*' \(svd\): layer '{layer.path}': {message}"):
        plan_layers([layer], [rule(**form)])


def test_folds_of_two_axes_need_two():
    layer = Layer("a", "conv", (3, 4, 8), in_spatial=(5,), out_spatial=(5,))
    with pytest.raises(ValueError, match="fold 'rows' needs a window of two axes, got"):
        plan_layer(layer, rule(fold="rows"))
    assert plan_layer(layer, rule(fold="window")).size == 2 * (4 + 3 * 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "cp", "splits": 2}, "only method 'svd' knows splits and fold"),
        ({"method": "tucker", "fold": "window"}, "only method 'svd' knows splits and fold"),
        ({"method": "svd", "splits": 0}, "splits must be at least 1, got 0"),
        ({"method": "svd", "fold": "both"}, "fold must be one of channel, rows, columns, window"),
    ],
)
def test_rule_that_means_nothing_is_refused(arguments, message):
    with pytest.raises(ValueError, match=rf"Rule 'a' .*{message}"):
        Rule(path="a", rank=2, **arguments)


# ---------------------------------------------------------------- layers


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(2, qkv_features=8, name="attention")(x, x)


STRIDED = {"strides": (2, 1), "padding": ((1, 2), (0, 1)), "kernel_dilation": (1, 2)}
# Name, model, input, splits, fold.
LINEN = {
    "conv": (nn.Conv(6, (3, 2), **STRIDED), IMAGE, 4, "channel"),
    "same": (nn.Conv(6, (3, 3), strides=2), IMAGE, 8, "channel"),
    "in groups": (nn.Conv(6, (3, 3), feature_group_count=2), IMAGE, 2, "channel"),
    "rows": (nn.Conv(6, (3, 2), **STRIDED), IMAGE, 1, "rows"),
    "columns": (nn.Conv(6, (3, 3), strides=2), IMAGE, 2, "columns"),
    "window": (nn.Conv(6, (3, 2), **STRIDED), IMAGE, 1, "window"),
    "transposed": (nn.ConvTranspose(6, (3, 2), strides=(2, 3)), IMAGE, 2, "channel"),
    "transposed rows": (
        nn.ConvTranspose(6, (3, 3), strides=(2, 1), transpose_kernel=True),
        IMAGE,
        1,
        "rows",
    ),
    "dense": (nn.Dense(10), SEQUENCE, 3, "channel"),
    "general": (nn.DenseGeneral((2, 4), axis=(1, -1)), IMAGE, 4, "channel"),
    "einsum": (nn.Einsum((12, 2, 4), "abc,cde->abde"), SEQUENCE, 3, "channel"),
    "attention": (Attention(), SEQUENCE, 4, "channel"),
    "stack": (Scanned(), normal(1, 2, 8), 2, "channel"),
}


def exact_plan(table, **form):
    """A plan at the ranks asked for, even where they save nothing."""
    return Plan(tuple(plan_layer(layer, rule(**form)) for layer in table))


@pytest.mark.parametrize("name", LINEN)
def test_chain_equals_the_reconstructed_kernel(name, count_macs):
    model, sample, splits, fold = LINEN[name]
    shapes = jax.eval_shape(model.init, jax.random.key(0), sample)
    plan = exact_plan(tdjax.layer_table(model, shapes, sample), splits=splits, fold=fold)
    small = tdjax.factorize(model, plan)
    params = random_variables(small, sample)["params"]
    made = jax.eval_shape(lambda p: tdjax.factorize_params(p, plan), shapes["params"])
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, made)
    found = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert found == plan.size + sum(entry.layer.other for entry in plan.layers)

    @jax.jit
    def both(params):
        dense = tdjax.reconstruct_params(params, plan)
        return small.apply({"params": params}, sample), model.apply({"params": dense}, sample)

    close(*both(params))
    if "transposed" not in name:
        # Attention multiplies queries, keys and values besides.
        beside = 2 * 2 * 2 * 5 * 5 * 4 if name == "attention" else 0
        traced = count_macs(lambda p: small.apply({"params": p}, sample), params) - beside
        assert traced == len(sample) * plan.macs


class Stacked(nnx.Module):
    """Three linear layers whose kernels are one stacked array."""

    def __init__(self, rngs):
        keys = jax.random.split(rngs.params(), 3)
        self.blocks = nnx.vmap(lambda key: nnx.Linear(8, 8, rngs=nnx.Rngs(key)))(keys)

    def __call__(self, x):
        scan = nnx.scan(lambda x, block: x + block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return scan(x, self.blocks)


NNX = {
    "conv": (lambda r: nnx.Conv(8, 6, (3, 2), **STRIDED, rngs=r), IMAGE, 4, "channel"),
    "rows": (lambda r: nnx.Conv(8, 6, (3, 2), **STRIDED, rngs=r), IMAGE, 1, "rows"),
    "transposed": (
        lambda r: nnx.ConvTranspose(8, 6, (3, 2), strides=(2, 3), rngs=r),
        IMAGE,
        2,
        "channel",
    ),
    "dense": (lambda r: nnx.Linear(12, 10, rngs=r), SEQUENCE, 3, "channel"),
    "general": (
        lambda r: nnx.LinearGeneral((7, 8), (2, 4), axis=(1, -1), rngs=r),
        IMAGE,
        4,
        "channel",
    ),
    "einsum": (
        lambda r: nnx.Einsum("abc,cde->abde", (12, 2, 4), (2, 4), rngs=r),
        SEQUENCE,
        3,
        "channel",
    ),
    "attention": (
        lambda r: nnx.MultiHeadAttention(2, 12, qkv_features=8, decode=False, rngs=r),
        SEQUENCE,
        4,
        "channel",
    ),
    "stack": (Stacked, normal(1, 2, 8), 2, "channel"),
}


@pytest.mark.parametrize("name", NNX)
def test_nnx_chain_equals_the_reconstructed_kernel_and_linen(name):
    make, sample, splits, fold = NNX[name]
    model = make(nnx.Rngs(0))
    plan = exact_plan(tdjax.layer_table(model, sample), splits=splits, fold=fold)
    small = tdjax.factorize(model, plan)
    found, expected = nnx.jit(lambda *models: [m(sample) for m in models])(
        small, reconstruct(small, plan)
    )
    close(found, expected)
    (entry, *others) = plan.layers
    if others or entry.layer.copies > 1:
        return
    own = {stage.name: {"kernel": getattr(small, stage.name).kernel[...]} for stage in entry.stages}
    linen = tdjax.factorize(LINEN[name][0], plan)
    close(found, linen.apply({"params": {**own, "bias": model.bias[...]}}, sample), 1e-6)


def test_dtypes_and_products_are_those_of_the_layer():
    seen = []

    def product(*arguments, **settings):
        seen.append(settings.get("precision"))
        return jax.lax.dot_general(*arguments, **settings)

    settings = {"dtype": jnp.bfloat16, "precision": "highest"}
    for given in ({"dot_general": product}, {"dot_general_cls": lambda: product}):
        model = nn.Dense(8, **settings, **given)
        variables = model.init(jax.random.key(0), SEQUENCE)
        plan = exact_plan(tdjax.layer_table(model, variables, SEQUENCE), splits=3)
        params = tdjax.factorize_params(variables["params"], plan)
        seen.clear()
        found = tdjax.factorize(model, plan).apply({"params": params}, SEQUENCE)
        assert (found.dtype, len(seen), set(seen)) == (jnp.bfloat16, 2, {"highest"})
    model = nnx.Linear(12, 8, dot_general=product, rngs=nnx.Rngs(0), **settings)
    small = tdjax.factorize(model, exact_plan(tdjax.layer_table(model, SEQUENCE), splits=3))
    seen.clear()
    assert small(SEQUENCE).dtype == jnp.bfloat16
    assert len(seen) == 2


def test_full_rank_is_exact():
    model = nn.Sequential([nn.Conv(8, (3, 3)), nn.Dense(6)])
    variables = random_variables(model, IMAGE)
    rules = [rule("layers_0", splits=2, rank=8), rule("layers_1", splits=4, rank=2)]
    table = tdjax.layer_table(model, variables, IMAGE)
    plan = Plan(tuple(plan_layer(layer, r) for layer, r in zip(table, rules, strict=True)))
    params = tdjax.factorize_params(variables["params"], plan)
    jax.tree.map(close, tdjax.reconstruct_params(params, plan), dict(variables["params"]))


def test_names_of_axes_lie_where_the_whole_axis_is():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("data", "model"))
    model = nn.Dense(8, kernel_init=init)
    variables = model.init(jax.random.key(0), SEQUENCE)
    plan = exact_plan(tdjax.layer_table(model, variables, SEQUENCE), splits=3)
    params = tdjax.factorize_params(variables["params"], plan)
    for found in (params, tdjax.factorize(model, plan).init(jax.random.key(0), SEQUENCE)["params"]):
        assert found["input"]["kernel"].names == (None, None)
        assert found["output"]["kernel"].names == (None, "model")
    assert tdjax.reconstruct_params(params, plan)["kernel"].names == (None, "model")


# ---------------------------------------------------------------- data


def test_rows_of_a_split_are_weighed_by_their_own_moments():
    kernel, samples = normal(0, 3, 2, 6, 5), normal(1, 50, 36) @ normal(2, 36, 36)
    moment = samples.T @ samples / 50
    layer = Layer("a", "conv", kernel.shape, in_spatial=(4, 4), out_spatial=(4, 4))
    entry = plan_layer(layer, rule(splits=3))
    parts = decompose_kernel(kernel, entry, weights=Weights(moment[None], None))
    found = entry.chain.dense(parts)
    # Rows of the matrix are ordered by tap, then channel; those of a split have two channels.
    rows = np.array([tap * 6 + c for k in range(3) for tap in range(6) for c in (2 * k, 2 * k + 1)])
    norm = tdjax.Covariance(moment[rows][:, rows])
    _, info = tdjax.grouped_svd(kernel.reshape(36, 5)[rows], 2, 3, norm=norm)
    error = tdjax.Covariance(moment).relative_error(kernel, found)
    np.testing.assert_allclose(error, info.error, rtol=1e-3)


def correlated(seed, *shape):
    """Images whose neighbouring pixels and channels are alike, as in a network."""
    x = np.random.default_rng(seed).normal(size=shape)
    for axis in (1, 2, 3):
        x = x + np.roll(x, 1, axis) + np.roll(x, 2, axis)
    return jnp.maximum(jnp.asarray(x, jnp.float32), 0) + 0.5


@pytest.mark.parametrize("form", [{"splits": 4}, {"fold": "rows"}, {"fold": "window"}], ids=str)
def test_outputs_change_less_by_the_data(form, tmp_path):
    x = correlated(0, 20, 6, 6, 8)
    model = nn.Conv(12, (3, 3))
    variables = random_variables(model, x)
    moments = tdjax.collect_moments(model, variables, [x])
    plan = tdjax.make_plan(
        model, variables, [Rule(path=".*", method="svd", compression=0.6, **form)], x
    )
    outputs = model.apply(variables, x)
    apply = jax.jit(tdjax.factorize(model, plan).apply)

    def change(params):
        return float(jnp.sum((apply({"params": params}, x) - outputs) ** 2))

    params = [
        tdjax.factorize_params(variables["params"], plan, max_iters=10, **options)
        for options in ({}, {"moments": moments}, {"moments": moments, "correct_bias": True})
    ]
    plain, weighed, corrected = map(change, params)
    assert weighed < 0.8 * plain
    assert corrected < weighed * 1.001
    tdjax.save_factorised(tmp_path, params[1], plan)
    loaded, again = tdjax.load_factorised(tmp_path)
    assert again == plan
    jax.tree.map(np.testing.assert_array_equal, loaded, params[1])


def test_layer_after_layer():
    model = nn.Sequential([nn.Conv(8, (3, 3)), nn.relu, nn.Conv(6, (3, 3), strides=2)])
    x = correlated(0, 8, 6, 6, 8)
    variables = random_variables(model, x)
    plan = tdjax.make_plan(
        model, variables, [Rule(path=".*", method="svd", compression=0.5, splits=2)], x
    )
    moments = tdjax.collect_moments(model, variables, [x])
    found = tdjax.factorize_sequentially(model, variables, plan, [x], max_iters=3)
    small = tdjax.factorize(model, plan)
    expected = tdjax.factorize_params(variables["params"], plan, moments=moments, max_iters=3)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, expected)
    outputs = model.apply(variables, x)
    changes = [
        float(jnp.linalg.norm(small.apply({"params": p}, x) - outputs)) for p in (found, expected)
    ]
    assert changes[0] < 1.05 * changes[1]


def test_planned_layer_is_plain_by_default():
    form = Form("svd", (2,))
    assert (form.splits, form.fold) == (1, "channel")
    assert PlannedLayer(CONV, form).format == "svd"
