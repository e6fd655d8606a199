import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from plain_models import (
    MLP,
    Autoencoder,
    Classifier,
    ConvNet,
    Shared,
    Transformed,
    Zoo,
)

import tdjax
from tdjax import Plan, Rule
from tdjax.plan.decide import plan_layer

METHODS = {
    "cp": {"method": "cp", "rank": 3},
    "cp-merged": {"method": "cp", "rank": 3, "spatial": "merged"},
    "tucker": {"method": "tucker", "rank": 2},
    "tt": {"method": "tt", "rank": 3},
    "svd": {"method": "svd", "rank": 2},
}
IMAGES = jax.ShapeDtypeStruct((2, 9, 9, 3), jnp.float32)


class Only(nn.Module):
    """One layer, under a name."""

    layer: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.layer(x)


def normal(seed, *shape, dtype=jnp.float32, scale=1.0):
    return jax.device_put((scale * np.random.default_rng(seed).normal(size=shape)).astype(dtype))


def random_like(shapes, seed=0):
    """Normal arrays of the shapes and dtypes of a pytree, scaled by the fan-in of kernels."""
    leaves, structure = jax.tree.flatten(shapes)
    arrays = [
        normal(
            seed + k,
            *leaf.shape,
            dtype=leaf.dtype,
            scale=1 / math.sqrt(math.prod(leaf.shape[:-1])),
        )
        for k, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, arrays)


def shapes_of(model, *sample):
    return jax.eval_shape(model.init, jax.random.key(0), *sample)


def run(model, variables, *args, **options):
    """Apply as one compiled program, which beats many small ones."""
    return jax.jit(lambda v: model.apply(v, *args, **options))(variables)


def reconstruct(params, plan):
    return jax.jit(lambda p: tdjax.reconstruct_params(p, plan))(params)


def exact_plan(model, variables, sample, **rule):
    """A plan at the ranks asked for, even where they save nothing."""
    table = tdjax.layer_table(model, variables, sample)
    return Plan(tuple(plan_layer(layer, Rule(path=".*", **rule)) for layer in table))


def assert_close(actual, expected, tolerance):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.max(np.abs(actual - expected)) <= tolerance * np.max(np.abs(expected))


def leaf_shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


# ---------------------------------------------------------------- convolutions


def correlate(x, kernel, strides=None, pads=None, dilation=None, input_dilation=None, groups=1):
    """A convolution (batch, *spatial, C) by its definition: a sum over the taps of the window."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    axes = kernel.ndim - 2
    strides, dilation, input_dilation = (
        value or (1,) * axes for value in (strides, dilation, input_dilation)
    )
    spread = np.zeros(
        (
            x.shape[0],
            *((n - 1) * d + 1 for n, d in zip(x.shape[1:-1], input_dilation, strict=True)),
            x.shape[-1],
        )
    )
    spread[(slice(None), *(slice(None, None, d) for d in input_dilation))] = x
    x = np.pad(spread, [(0, 0), *(pads or [(0, 0)] * axes), (0, 0)])
    sizes = [
        (n - (k - 1) * d - 1) // s + 1
        for n, k, d, s in zip(x.shape[1:-1], kernel.shape, dilation, strides, strict=False)
    ]
    result = 0.0
    for tap in np.ndindex(*kernel.shape[:-2]):
        window = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, dilation, sizes, strides, strict=True)
        )
        parts = zip(
            np.split(x[(slice(None), *window)], groups, axis=-1),
            np.split(kernel[tap], groups, axis=-1),
            strict=True,
        )
        result = result + np.concatenate([part @ weights for part, weights in parts], axis=-1)
    return result


def same_pads(sizes, kernel, strides):
    """What "SAME" adds: as many outputs as strides fit, the odd one of the padding at the end."""
    totals = [
        max((math.ceil(n / s) - 1) * s + k - n, 0)
        for n, k, s in zip(sizes, kernel, strides, strict=True)
    ]
    return [(total // 2, total - total // 2) for total in totals]


# name: (shape of the input, arguments of nn.Conv, arguments of `correlate`, padding by hand).
CONVOLUTIONS = {
    "padding-int": (
        (2, 6, 7, 4),
        {"kernel_size": (3, 3), "padding": 1},
        {"pads": [(1, 1), (1, 1)]},
    ),
    "stride-by-axis": (
        (2, 7, 8, 4),
        {"kernel_size": (3, 2), "strides": (2, 3), "padding": (2, 1)},
        {"strides": (2, 3), "pads": [(2, 2), (1, 1)]},
    ),
    "same-stride": (
        (2, 7, 8, 4),
        {"kernel_size": (3, 4), "strides": 2, "padding": "SAME"},
        {"strides": (2, 2), "pads": same_pads((7, 8), (3, 4), (2, 2))},
    ),
    "asymmetric": (
        (2, 5, 6, 4),
        {"kernel_size": (3, 3), "strides": (1, 2), "padding": ((2, 0), (1, 3))},
        {"strides": (1, 2), "pads": [(2, 0), (1, 3)]},
    ),
    "valid-dilated": (
        (2, 8, 6, 4),
        {"kernel_size": (3, 3), "kernel_dilation": (2, 1), "padding": "VALID"},
        {"dilation": (2, 1)},
    ),
    "input-dilated": (
        (2, 4, 5, 4),
        {"kernel_size": (3, 3), "input_dilation": (1, 2), "padding": 1},
        {"input_dilation": (1, 2), "pads": [(1, 1), (1, 1)]},
    ),
    "circular-dilated": (
        (2, 7, 6, 4),
        {"kernel_size": (3, 2), "kernel_dilation": (2, 1), "padding": "CIRCULAR", "strides": 2},
        {"dilation": (2, 1), "strides": (2, 2), "wrap": [(2, 2), (0, 1)]},
    ),
    "groups": (
        (2, 6, 5, 4),
        {"kernel_size": (3, 3), "feature_group_count": 2, "strides": (2, 1), "padding": "SAME"},
        {"groups": 2, "strides": (2, 1), "pads": same_pads((6, 5), (3, 3), (2, 1))},
    ),
    "no-bias": (
        (2, 5, 5, 4),
        {"kernel_size": (2, 2), "use_bias": False, "padding": "VALID"},
        {},
    ),
    "one-by-one": (
        (2, 5, 6, 4),
        {"kernel_size": (1, 1), "strides": 2},
        {"strides": (2, 2)},
    ),
    "one-axis-causal": (
        (2, 9, 4),
        {"kernel_size": (3,), "kernel_dilation": 2, "padding": "CAUSAL"},
        {"dilation": (2,), "pads": [(4, 0)]},
    ),
    "one-axis-int": (
        (2, 9, 4),
        {"kernel_size": 4, "strides": 3, "padding": ((0, 2),)},
        {"strides": (3,), "pads": [(0, 2)]},
    ),
    "three-axes": (
        (2, 4, 5, 6, 4),
        {"kernel_size": (2, 3, 3), "strides": (1, 2, 1), "padding": "SAME"},
        {"strides": (1, 2, 1), "pads": same_pads((4, 5, 6), (2, 3, 3), (1, 2, 1))},
    ),
}


def by_definition(x, kernel, settings):
    """`correlate`, behind a periodic padding where the settings ask for it."""
    settings = dict(settings)
    wrap = settings.pop("wrap", None)
    if wrap is not None:
        x = np.pad(np.asarray(x), [(0, 0), *wrap, (0, 0)], mode="wrap")
    return correlate(x, kernel, **settings)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("setting", CONVOLUTIONS)
def test_factorised_convolution_equals_the_reconstructed_kernel(setting, method):
    shape, arguments, settings = CONVOLUTIONS[setting]
    x = normal(1, *shape)
    model = Only(nn.Conv(6, **arguments))
    variables = shapes_of(model, x)
    plan = exact_plan(model, variables, x, **METHODS[method])
    small = tdjax.factorize(model, plan)
    params = random_like(shapes_of(small, x)["params"])

    @jax.jit
    def both(params):
        return small.apply({"params": params}, x), tdjax.reconstruct_params(params, plan)

    actual, dense = both(params)
    assert leaf_shapes(dense) == leaf_shapes(variables["params"])
    expected = by_definition(x, dense["layer"]["kernel"], settings)
    if "bias" in params["layer"]:
        expected = expected + np.asarray(params["layer"]["bias"])
    assert_close(actual, expected, 1e-5)
    assert plan["layer"].layer.out_spatial == actual.shape[1:-1]


@pytest.mark.parametrize("setting", CONVOLUTIONS)
def test_dense_convolution_is_what_the_definition_says(setting):
    shape, arguments, settings = CONVOLUTIONS[setting]
    x = normal(1, *shape)
    model = nn.Conv(6, **arguments)
    params = random_like(shapes_of(model, x)["params"])
    expected = by_definition(x, params["kernel"], settings) + np.asarray(params.get("bias", 0.0))
    assert_close(run(model, {"params": params}, x), expected, 1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7)], ids=["batch", "sequence"])
def test_factorised_dense_layer_equals_the_product(shape, method):
    x = normal(1, *shape)
    model = Only(nn.Dense(6))
    rule = {**METHODS[method], "rank": 2}
    plan = exact_plan(model, shapes_of(model, x), x, **rule)
    assert plan["layer"].method == "svd"
    assert plan["layer"].layer.positions == math.prod(shape[1:-1])
    small = tdjax.factorize(model, plan)
    params = random_like(shapes_of(small, x)["params"])
    expected = (
        np.einsum(
            "...c,cr,rt->...t",
            x,
            params["layer"]["input"]["kernel"],
            params["layer"]["output"]["kernel"],
        )
        + params["layer"]["bias"]
    )
    assert_close(run(small, {"params": params}, x), expected, 1e-5)


@pytest.mark.parametrize("method", ["tucker", "tt", "svd"])
@pytest.mark.parametrize("setting", ["groups", "three-axes"])
def test_full_rank_reproduces_the_layer(setting, method):
    shape, arguments, _ = CONVOLUTIONS[setting]
    x = normal(1, *shape)
    model = Only(nn.Conv(6, **arguments))
    variables = random_like(shapes_of(model, x))
    (layer,) = tdjax.layer_table(model, variables, x)
    full = tdjax.plan.ranks.full_ranks(method, layer.group_shape)
    plan = exact_plan(model, variables, x, method=method, rank=full)
    params = tdjax.factorize_params(variables["params"], plan)
    actual = jax.jit(tdjax.factorize(model, plan).apply)({"params": params}, x)
    assert_close(actual, run(model, variables, x), 1e-4)


def test_cp_reproduces_a_layer_of_its_rank():
    x = normal(1, 2, 6, 5, 4)
    model = Only(nn.Conv(6, (3, 3), feature_group_count=2, strides=(2, 1), padding=1))
    shapes = shapes_of(model, x)
    plan = exact_plan(model, shapes, x, method="cp", rank=2, spatial="merged")
    factors = random_like(shapes_of(tdjax.factorize(model, plan), x)["params"])
    params = reconstruct(factors, plan)
    small = tdjax.factorize(model, plan)
    expected = run(model, {"params": params}, x)
    # Alternating least squares may get stuck; of a few starts, one does not.
    errors = []
    for seed in range(4):
        key = jax.random.key(seed)
        found = tdjax.factorize_params(params, plan, key=key, max_iters=500, tol=0.0)
        errors.append(float(jnp.max(jnp.abs(run(small, {"params": found}, x) - expected))))
    assert min(errors) <= 1e-4 * float(jnp.max(jnp.abs(expected)))


def test_depthwise_convolution_as_separable_windows():
    x = normal(1, 2, 6, 5, 4)
    model = Only(nn.Conv(8, (3, 3), feature_group_count=4, padding="SAME"))
    variables = random_like(shapes_of(model, x))
    plan = exact_plan(model, variables, x, method="tt", rank=2)
    params = random_like(shapes_of(tdjax.factorize(model, plan), x)["params"])
    dense = reconstruct(params, plan)
    actual = run(tdjax.factorize(model, plan), {"params": params}, x)
    expected = correlate(x, dense["layer"]["kernel"], pads=[(1, 1), (1, 1)], groups=4)
    assert_close(actual, expected + np.asarray(params["layer"]["bias"]), 1e-5)


@pytest.mark.parametrize("batch", [(), (2, 3)], ids=["none", "two"])
def test_inputs_without_batch_axis_and_with_two(batch):
    model = Only(nn.Conv(6, (3, 3), strides=2))
    x = normal(1, *batch, 6, 5, 4)
    one = normal(1, 1, 6, 5, 4)
    plan = exact_plan(model, shapes_of(model, one), one, method="cp", rank=3)
    small = tdjax.factorize(model, plan)
    variables = random_like(shapes_of(small, one))
    alone = jnp.stack([run(small, variables, image[None])[0] for image in x.reshape(-1, 6, 5, 4)])
    actual = run(small, variables, x)
    assert actual.shape == (*batch, 3, 3, 6)
    assert_close(actual, alone.reshape(actual.shape), 1e-5)


@pytest.mark.parametrize("layer", [nn.Conv(6, (3, 3)), nn.Dense(6)], ids=["conv", "dense"])
def test_model_that_is_one_layer(layer):
    x = normal(1, 2, 5, 5, 4)
    variables = random_like(shapes_of(layer, x))
    plan = exact_plan(layer, variables, x, method="svd", rank=4)
    assert plan.factorised[0].layer.path == ""
    params = tdjax.factorize_params(variables["params"], plan)
    assert set(params) == {"input", "output", "bias"}
    small = tdjax.factorize(layer, plan)
    assert leaf_shapes(shapes_of(small, x)["params"]) == leaf_shapes(params)
    dense = reconstruct(params, plan)
    assert_close(run(small, {"params": params}, x), run(layer, {"params": dense}, x), 1e-5)


@pytest.mark.parametrize(
    ("dtype", "param_dtype", "result"),
    [
        (None, jnp.bfloat16, jnp.float32),
        (jnp.bfloat16, jnp.float32, jnp.bfloat16),
        (jnp.bfloat16, jnp.bfloat16, jnp.bfloat16),
    ],
)
def test_dtypes_are_those_of_the_dense_layer(dtype, param_dtype, result):
    class Both(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(6, (3, 3), dtype=dtype, param_dtype=param_dtype, name="conv")(x)
            return nn.Dense(6, dtype=dtype, param_dtype=param_dtype, name="dense")(x)

    model, x = Both(), normal(1, 2, 5, 5, 4)
    variables = random_like(shapes_of(model, x))
    plan = exact_plan(model, variables, x, method="svd", rank=2)
    params = tdjax.factorize_params(variables["params"], plan)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(param_dtype)}
    small = tdjax.factorize(model, plan)
    assert leaf_shapes(shapes_of(small, x)["params"]) == leaf_shapes(params)
    output = run(small, {"params": params}, x)
    assert output.dtype == result == run(model, variables, x).dtype
    dense = reconstruct(params, plan)
    assert_close(output, run(model, {"params": dense}, x), 0.05)


def test_settings_of_the_layer_reach_its_stages():
    calls = []

    def spy(*args, **kwargs):
        calls.append(kwargs["precision"])
        return jax.lax.dot_general(*args, **kwargs)

    model = Only(nn.Dense(6, precision="highest", dot_general=spy))
    x = normal(1, 2, 6)
    plan = exact_plan(model, shapes_of(model, x), x, method="svd", rank=2)
    calls.clear()
    shapes_of(tdjax.factorize(model, plan), x)
    assert calls == ["highest", "highest"]


# ---------------------------------------------------------------- the layer table


def test_layer_table_of_a_network():
    model = ConvNet()
    conv0, conv1, head = tdjax.layer_table(model, shapes_of(model, IMAGES), IMAGES)
    assert (conv0.path, conv0.kind, conv0.kernel_shape) == ("conv0", "conv", (3, 3, 3, 8))
    assert (conv0.in_spatial, conv0.out_spatial, conv0.other) == ((9, 9), (9, 9), 8)
    assert conv0.macs == 9 * 9 * 8 * (3 * 3 * 3)
    # Stride 2 from 9 padded to 11: 5 windows of 3.
    assert (conv1.in_spatial, conv1.out_spatial) == ((9, 9), (5, 5))
    assert conv1.macs == 5 * 5 * 12 * (3 * 3 * 8)
    assert (head.kind, head.kernel_shape, head.in_spatial) == ("dense", (12, 5), ())
    assert head.macs == 12 * 5
    assert all(layer.obstacle is None and layer.positions == 1 for layer in (conv0, conv1, head))


def test_order_is_that_of_the_calls():
    model, x = Autoencoder(), jax.ShapeDtypeStruct((3, 10), jnp.float32)
    table = tdjax.layer_table(model, shapes_of(model, x), x)
    assert [layer.path for layer in table] == [
        "encoder_0",
        "encoder_1",
        "decoder/layers_0",
        "decoder/layers_2",
    ]


@pytest.mark.parametrize("method", METHODS)
def test_macs_are_those_of_the_traced_program(method, count_macs):
    model = ConvNet()
    variables = shapes_of(model, IMAGES)
    plan = exact_plan(model, variables, IMAGES, **{**METHODS[method], "rank": 2})
    small = tdjax.factorize(model, plan)
    assert count_macs(model.apply, variables, IMAGES) == 2 * plan.macs_before
    assert count_macs(small.apply, shapes_of(small, IMAGES), IMAGES) == 2 * plan.macs


def test_macs_do_not_depend_on_the_batch():
    model = ConvNet()
    variables = shapes_of(model, IMAGES)
    tables = [
        tdjax.layer_table(model, variables, jax.ShapeDtypeStruct((n, 9, 9, 3), jnp.float32))
        for n in (1, 2, 7)
    ]
    assert tables[0] == tables[1] == tables[2]


@pytest.mark.parametrize(
    "sample",
    [
        IMAGES,
        np.zeros((2, 9, 9, 3), np.float32),
        jnp.zeros((2, 9, 9, 3)),
        (IMAGES,),
        (IMAGES, True),
        {"x": IMAGES},
        {"train": True, "x": IMAGES},
    ],
    ids=["shape", "numpy", "jax", "tuple", "tuple-train", "dict", "dict-train"],
)
def test_samples_of_any_kind(sample):
    model = ConvNet()
    variables = shapes_of(model, IMAGES)
    expected = tdjax.layer_table(model, variables, IMAGES)
    assert tdjax.layer_table(model, variables, sample) == expected


def test_variables_are_left_alone_and_frozen_ones_will_do():
    model = ConvNet()
    variables = random_like(shapes_of(model, IMAGES))
    before = jax.tree.map(np.array, variables)
    table = tdjax.layer_table(model, variables, (IMAGES, True))
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    assert tdjax.layer_table(model, nn.FrozenDict(variables), IMAGES) == table


def test_shared_layer_counts_every_call():
    model = Shared()
    variables = shapes_of(model, IMAGES.update(shape=(2, 8, 8, 8)))
    sample = jax.ShapeDtypeStruct((2, 8, 8, 8), jnp.float32)
    (layer,) = tdjax.layer_table(model, variables, sample)
    assert layer.positions == 2
    plan = tdjax.make_plan(model, variables, [Rule(path=".*", method="svd", rank=2)], sample)
    small = tdjax.factorize(model, plan)
    params = random_like(shapes_of(small, sample)["params"])
    x = normal(3, 2, 8, 8, 8)
    dense = reconstruct(params, plan)
    expected = run(model, {"params": dense}, x)
    assert_close(run(small, {"params": params}, x), expected, 1e-5)


def test_modules_that_cannot_be_factorised_are_listed():
    tokens = jax.ShapeDtypeStruct((2, 7), jnp.int32)
    model = Zoo()
    variables = jax.eval_shape(lambda key, t: model.init(key, t, False), jax.random.key(0), tokens)
    table = {layer.path: layer for layer in tdjax.layer_table(model, variables, (tokens, True))}
    reasons = {path: layer.obstacle for path, layer in table.items()}
    assert reasons == {
        "": "it holds modules beside its own position",
        "embed": None,
        "attention/query": None,
        "attention/key": None,
        "attention/value": None,
        "attention/out": None,
        "general": None,
        "transpose": None,
        "masked": "its kernel is masked",
        "unused/aside": "its module is called by another method, or not at all",
        "head": None,
    }
    assert table["embed"].kernel_shape == (11, 8)
    assert table["general"].kernel_shape == (8, 8)
    assert table["general"].storage.shape == (8, 2, 4)
    assert (table["head"].positions, table["head"].macs) == (7, 7 * 8 * 3)
    rules = [Rule(path=".*", method="svd", rank=1)]
    plan = tdjax.make_plan(model, variables, rules, (tokens, True))
    assert {entry.layer.path for entry in plan.factorised} == {
        path for path, reason in reasons.items() if reason is None
    }
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    assert plan.size_before == total
    assert "masked is kept dense: its kernel is masked" in str(plan)


def test_layers_inside_transformed_modules():
    model, x = Transformed(), normal(1, 2, 8)
    variables = random_like(shapes_of(model, x))
    model.apply(variables, x)
    rules = [Rule(path=".*", method="svd", rank=2)]
    plan = tdjax.make_plan(model, variables, rules, x)
    # What `nn.jit` has compiled before is seen again.
    assert tdjax.make_plan(model, variables, rules, x) == plan
    paths = ["jitted/dense", "saved/dense", "layer"]
    assert [entry.layer.path for entry in plan.factorised] == paths
    assert plan.macs_before == 3 * 8 * 8
    params = tdjax.factorize_params(variables["params"], plan)
    dense = reconstruct(params, plan)
    small = tdjax.factorize(model, plan)
    assert leaf_shapes(shapes_of(small, x)["params"]) == leaf_shapes(params)

    def loss(model, params):
        return jnp.sum(model.apply({"params": params}, x) ** 2)

    assert_close(loss(small, params), loss(model, dense), 1e-5)
    gradient = jax.grad(lambda p: loss(small, p))(params)
    through = jax.grad(lambda p: loss(model, reconstruct(p, plan)))(params)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-4), gradient, through)


def test_recurrent_cell_inside_a_scan():
    model, x = nn.RNN(nn.SimpleCell(6)), normal(1, 2, 5, 8)
    variables = random_like(shapes_of(model, x))
    plan = tdjax.make_plan(model, variables, [Rule(path=".*", method="svd", rank=1)], x)
    assert len(plan.factorised) == 2
    params = tdjax.factorize_params(variables["params"], plan)
    dense = reconstruct(params, plan)
    actual = run(tdjax.factorize(model, plan), {"params": params}, x)
    assert_close(actual, run(model, {"params": dense}, x), 1e-5)


@pytest.mark.parametrize("function", ["layer_table", "factorize"])
def test_what_is_no_linen_module_is_refused(function):
    call = {
        "factorize": lambda: tdjax.factorize(object(), Plan(())),
        "layer_table": lambda: tdjax.layer_table(object(), {"params": {}}, IMAGES),
    }[function]
    with pytest.raises(TypeError, match=r"flax\.linen\.(module\.)?Module"):
        call()


# ---------------------------------------------------------------- the factorised model

RULES = (
    Rule(path="conv0", method="tt", compression=0.5),
    Rule(path="conv1", method="cp", compression=0.8, spatial="merged"),
    Rule(path="head", method="svd", rank=2),
)


@pytest.fixture(scope="module")
def network():
    """Model, variables, plan, factors."""
    model = ConvNet()
    shapes = shapes_of(model, IMAGES)
    stats = {
        name: {"mean": jnp.zeros(leaf["mean"].shape), "var": jnp.ones(leaf["var"].shape)}
        for name, leaf in shapes["batch_stats"].items()
    }
    variables = {"params": random_like(shapes["params"]), "batch_stats": stats}
    plan = tdjax.make_plan(model, variables, RULES, IMAGES)
    assert len(plan.factorised) == 3
    params = random_like(shapes_of(tdjax.factorize(model, plan), IMAGES)["params"], seed=50)
    return model, variables, plan, params


def test_init_creates_exactly_the_factors(network):
    model, variables, plan, params = network
    small = tdjax.factorize(model, plan)
    shapes = shapes_of(small, IMAGES)
    assert leaf_shapes(shapes["params"]) == leaf_shapes(params)
    assert leaf_shapes(shapes["batch_stats"]) == leaf_shapes(variables["batch_stats"])
    assert set(shapes) == set(variables)
    assert set(params["conv0"]) == {"input", "spatial_0", "spatial_1", "output", "bias"}
    assert set(params["conv1"]) == {"input", "spatial", "output", "bias"}


def test_training_mode_equals_that_of_the_reconstructed_kernels(network):
    model, variables, plan, params = network
    x = normal(2, 4, 9, 9, 3)
    dense = reconstruct(params, plan)
    (actual, state), (expected, other) = (
        run(
            net,
            {**variables, "params": p},
            x,
            train=True,
            rngs={"dropout": jax.random.key(3)},
            mutable=["batch_stats"],
        )
        for net, p in ((tdjax.factorize(model, plan), params), (model, dense))
    )
    assert_close(actual, expected, 1e-5)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-4), state, other)
    # The statistics have moved.
    assert float(jnp.abs(state["batch_stats"]["norm0"]["mean"]).max()) > 0.01


def test_captured_intermediates_are_those_of_the_model(network):
    model, variables, plan, params = network
    x = normal(2, 2, 9, 9, 3)
    actual, state = run(
        tdjax.factorize(model, plan),
        {**variables, "params": params},
        x,
        capture_intermediates=True,
        mutable=["intermediates"],
    )
    seen = state["intermediates"]
    assert len(seen["__call__"]) == 1
    dense = reconstruct(params, plan)
    expected, other = run(
        model,
        {**variables, "params": dense},
        x,
        capture_intermediates=True,
        mutable=["intermediates"],
    )
    assert_close(seen["norm1"]["__call__"][0], other["intermediates"]["norm1"]["__call__"][0], 1e-5)
    assert_close(actual, expected, 1e-5)


def test_equal_models_with_equal_plans_are_equal(network):
    model, _, plan, _ = network
    one = tdjax.factorize(model, plan)
    other = tdjax.factorize(ConvNet(), Plan.from_json(plan.to_json()))
    assert one == other
    assert hash(one) == hash(other)
    assert type(one) is type(other)
    assert isinstance(one, ConvNet)
    assert (type(one).__name__, type(one).__doc__) == ("ConvNet", ConvNet.__doc__)
    assert one != model
    assert one != tdjax.factorize(ConvNet(classes=6), plan)
    assert one != tdjax.factorize(model, Plan(plan.layers[:1]))
    assert one.clone() == one


def test_jit_traces_once(network):
    model, variables, plan, params = network
    traced = []

    @jax.jit
    def closed_over(params, x):
        traced.append("closed over")
        return tdjax.factorize(model, plan).apply({**variables, "params": params}, x)

    def argument(net, params, x):
        traced.append("argument")
        return net.apply({**variables, "params": params}, x)

    argument = jax.jit(argument, static_argnums=0)
    for seed in range(3):
        x = normal(seed, 2, 9, 9, 3)
        again = tdjax.factorize(ConvNet(), Plan.from_json(plan.to_json()))
        np.testing.assert_array_equal(closed_over(params, x), argument(again, params, x))
    assert traced == ["closed over", "argument"]


def test_dense_model_is_not_affected(network):
    model, variables, plan, params = network
    x = normal(2, 2, 9, 9, 3)
    before = run(model, variables, x)
    run(tdjax.factorize(model, plan), {**variables, "params": params}, x)
    np.testing.assert_array_equal(run(model, variables, x), before)


def test_training_lowers_the_loss(network):
    model, variables, plan, params = network
    small = tdjax.factorize(model, plan)
    x, labels = normal(2, 16, 9, 9, 3), jnp.arange(16) % 5
    state = TrainState.create(apply_fn=small.apply, params=params, tx=optax.adam(1e-2))

    @jax.jit
    def step(state, stats):
        def loss(params):
            logits, new = state.apply_fn(
                {"params": params, "batch_stats": stats},
                x,
                train=True,
                rngs={"dropout": jax.random.key(0)},
                mutable=["batch_stats"],
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

        (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=gradient), new["batch_stats"], value, gradient

    losses, stats = [], variables["batch_stats"]
    for _ in range(30):
        state, stats, value, gradient = step(state, stats)
        losses.append(float(value))
    assert losses[-1] < 0.7 * losses[0]
    # The bias before a normalisation has no effect; every factor does.
    for path in ("conv0", "conv1", "head"):
        for name in params[path]:
            if name != "bias":
                assert np.any(np.asarray(gradient[path][name]["kernel"]))
    assert state.step == 30
    assert leaf_shapes(state.params) == leaf_shapes(params)


@pytest.mark.parametrize("method", ["cp", "tt"])
def test_gradients_equal_finite_differences(method, float64):
    with float64():
        model = Only(nn.Conv(6, (3, 2), strides=(1, 2), feature_group_count=2))
        x = normal(2, 2, 5, 4, 4, dtype=jnp.float64)
        plan = exact_plan(model, shapes_of(model, x), x, **METHODS[method])
        small = tdjax.factorize(model, plan)

        @jax.jit
        def loss(params):
            return jnp.sum(jnp.sin(small.apply({"params": params}, x)))

        params = jax.tree.map(
            lambda leaf: normal(leaf.size, *leaf.shape, dtype=jnp.float64),
            shapes_of(small, x)["params"],
        )
        gradient = jax.grad(loss)(params)
        for seed in (1, 2):
            direction = jax.tree.map(
                lambda leaf, s=seed: normal(100 * s + leaf.size, *leaf.shape, dtype=leaf.dtype),
                params,
            )
            terms = jax.tree.map(lambda a, b: np.vdot(a, b), gradient, direction)
            ahead, behind = (
                float(loss(jax.tree.map(lambda p, d, s=sign: p + 1e-6 * s * d, params, direction)))
                for sign in (1, -1)
            )
            slope = (ahead - behind) / 2e-6
            assert sum(jax.tree.leaves(terms)) == pytest.approx(slope, rel=1e-6)


@pytest.fixture(scope="module")
def autoencoder():
    model, x = Autoencoder(), normal(4, 3, 10)
    variables = random_like(shapes_of(model, x))
    rules = [Rule(path="(encoder_0|decoder/.*)", method="svd", rank=2)]
    plan = tdjax.make_plan(model, variables, rules, x)
    assert len(plan.factorised) == 3
    params = tdjax.factorize_params(variables["params"], plan)
    dense = {"params": reconstruct(params, plan)}
    return model, tdjax.factorize(model, plan), dense, {"params": params}, x


def test_setup_style(autoencoder):
    model, small, dense, variables, x = autoencoder
    assert leaf_shapes(shapes_of(small, x)) == leaf_shapes(variables)
    assert_close(run(small, variables, x), run(model, dense, x), 1e-5)


def test_apply_with_another_method(autoencoder):
    model, small, dense, variables, x = autoencoder
    code = run(model, dense, x, method="encode")
    assert_close(run(small, variables, x, method="encode"), code, 1e-5)
    assert_close(run(small, variables, x, method=small.encode), code, 1e-5)
    assert_close(run(small, variables, x, method=Autoencoder.encode), code, 1e-5)
    assert_close(
        run(small, variables, code, method=lambda module, z: module.decoder(z)),
        run(model, dense, code, method="decode"),
        1e-5,
    )
    bound = small.bind(variables)
    assert_close(bound.decode(bound.encode(x)), run(model, dense, x), 1e-5)


def test_init_with_another_method(autoencoder):
    _, small, _, variables, x = autoencoder
    shapes = jax.eval_shape(
        lambda key: small.init(key, x, method=lambda module, x: module.encode(x)),
        jax.random.key(0),
    )
    expected = {name: variables["params"][name] for name in ("encoder_0", "encoder_1")}
    assert leaf_shapes(shapes["params"]) == leaf_shapes(expected)


def test_factorised_model_inside_another(network):
    model, variables, plan, params = network
    small = tdjax.factorize(model, plan)
    x = normal(2, 2, 9, 9, 3)
    outer, plain = Classifier(small), Classifier(model)
    shapes = shapes_of(outer, x)
    assert leaf_shapes(shapes["params"]["backbone"]) == leaf_shapes(params)
    # The head of the whole bears the name of a factorised one inside.
    assert set(shapes["params"]["head"]) == {"kernel", "bias"}
    whole = random_like(shapes)
    stats = {"backbone": variables["batch_stats"]}
    actual = run(outer, {"params": whole["params"], "batch_stats": stats}, x)
    dense = {
        **whole["params"],
        "backbone": reconstruct(whole["params"]["backbone"], plan),
    }
    assert_close(actual, run(plain, {"params": dense, "batch_stats": stats}, x), 1e-5)


def test_whole_with_a_factorised_model_inside_can_be_factorised():
    inner, x = MLP((8, 8)), normal(1, 2, 8)
    model = Classifier(inner)
    variables = random_like(shapes_of(model, x))
    rules = [Rule(path="backbone/dense0|head", method="svd", rank=1)]
    plan = tdjax.make_plan(model, variables, rules, x)
    params = tdjax.factorize_params(variables["params"], plan)
    small = tdjax.factorize(model, plan)
    # And once more: what is left of it.
    second = tdjax.make_plan(
        small, {"params": params}, [Rule(path="backbone/dense1", method="svd", rank=1)], x
    )
    assert [entry.layer.path for entry in second.layers] == [
        "backbone/dense0/input",
        "backbone/dense0/output",
        "backbone/dense1",
        "head/input",
        "head/output",
    ]
    assert second.size_before == plan.size
    last = tdjax.factorize_params(params, second)
    smallest = tdjax.factorize(small, second)
    assert leaf_shapes(shapes_of(smallest, x)["params"]) == leaf_shapes(last)
    dense = reconstruct(tdjax.reconstruct_params(last, second), plan)
    actual = run(smallest, {"params": last}, x)
    assert_close(actual, run(model, {"params": dense}, x), 1e-5)


def test_model_with_a_list_for_an_attribute():
    model, x = MLP([8, 8]), normal(1, 2, 8)
    variables = random_like(shapes_of(model, x))
    plan = tdjax.make_plan(model, variables, [Rule(path=".*", method="svd", rank=1)], x)
    params = tdjax.factorize_params(variables["params"], plan)
    dense = {"params": reconstruct(params, plan)}
    actual = run(tdjax.factorize(model, plan), {"params": params}, x)
    assert_close(actual, run(model, dense, x), 1e-5)


def test_vmap_over_networks(autoencoder):
    _, small, _, variables, x = autoencoder
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), variables)
    both = jax.vmap(small.apply, in_axes=(0, None))(many, x)
    for k in range(2):
        one = jax.tree.map(lambda leaf, k=k: leaf[k], many)
        assert_close(both[k], run(small, one, x), 1e-5)
