import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_models import (
    MLP,
    ConvNet,
    Scanned,
    Shared,
    Transformed,
    TwoConvs,
    Zoo,
    normal,
    random_variables,
)

import tdjax
from tdjax import Rule, dispatch
from tdjax.evaluate import errors
from tdjax.params.factorize import replace_kernel

IMAGES = [normal(10 + k, n, 7, 7, 3) for k, n in enumerate((4, 4, 3))]


@pytest.fixture(scope="module")
def network():
    model = TwoConvs()
    return model, random_variables(model, IMAGES[0])


# ---------------------------------------------------------------- weights


def test_weight_errors():
    kernel, approx = normal(0, 3, 3, 4, 5), normal(1, 3, 3, 4, 5)
    found = tdjax.weight_errors(kernel, approx)
    wide = np.asarray(kernel, np.float64)
    absolute = np.linalg.norm((wide - np.asarray(approx, np.float64)).ravel())
    assert set(found) == {"absolute", "relative", "scaled"} == set(errors.ERRORS)
    assert float(found["absolute"]) == pytest.approx(absolute, rel=1e-6)
    assert float(found["relative"]) == pytest.approx(absolute / np.linalg.norm(wide), rel=1e-6)
    assert float(found["scaled"]) == pytest.approx(absolute / (3 * 3 * 4 * 5), rel=1e-6)


def test_weight_errors_of_zeros():
    zero, one = jnp.zeros((3, 4)), jnp.ones((3, 4))
    assert [float(e) for e in tdjax.weight_errors(zero, zero).values()] == [0.0, 0.0, 0.0]
    assert float(tdjax.weight_errors(one, one)["relative"]) == 0.0
    assert float(tdjax.weight_errors(one, zero)["relative"]) == pytest.approx(1.0)


def test_weight_errors_of_half_precision_are_those_of_the_values():
    kernel, approx = (normal(k, 30, 40, dtype=jnp.bfloat16) for k in (0, 1))
    found = tdjax.weight_errors(kernel, approx)
    wide, other = np.asarray(kernel, np.float64), np.asarray(approx, np.float64)
    relative = np.linalg.norm(wide - other) / np.linalg.norm(wide)
    assert float(found["relative"]) == pytest.approx(relative, rel=1e-5)


def test_weight_errors_under_vmap_and_jit():
    kernel, many = normal(0, 4, 5), normal(1, 3, 4, 5)
    batched = jax.jit(jax.vmap(tdjax.weight_errors, in_axes=(None, 0)))(kernel, many)
    for k in range(3):
        for name, value in tdjax.weight_errors(kernel, many[k]).items():
            assert float(batched[name][k]) == pytest.approx(float(value), rel=1e-6)


def test_weight_errors_of_different_shapes():
    with pytest.raises(ValueError, match=r"weight_errors: shapes \(3, 4\) and \(4, 3\)"):
        tdjax.weight_errors(jnp.zeros((3, 4)), jnp.zeros((4, 3)))


# ---------------------------------------------------------------- features


def convolve(image, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        image[None],
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )[0]


@jax.jit
def features_by_hand(params, kernels, image):
    """Features of the three layers of one image, by its own kernels and by others."""
    x, found = image, {}
    for name, stride, padding in (("first", 1, 1), ("second", 2, 0)):
        p = params[name]
        own = convolve(x, p["kernel"], stride, padding) + p["bias"]
        other = convolve(x, kernels[name], stride, padding) + p["bias"]
        found[name] = (own, other)
        x = jnp.maximum(own, 0.0)
    x, p = x.mean(axis=(0, 1)), params["head"]
    found["head"] = (x @ p["kernel"] + p["bias"], x @ kernels["head"] + p["bias"])
    return found


def brute_force(params, kernels, batches):
    """One image at a time, in double precision behind the features."""
    sums = {name: dict.fromkeys(errors.ERRORS, 0.0) for name in kernels}
    count = 0
    for images in batches:
        for image in images:
            count += 1
            for name, (own, other) in features_by_hand(params, kernels, image).items():
                own, other = np.asarray(own, np.float64), np.asarray(other, np.float64)
                absolute = np.linalg.norm((own - other).ravel())
                sums[name]["absolute"] += absolute
                sums[name]["relative"] += absolute / np.linalg.norm(own.ravel())
                sums[name]["scaled"] += absolute / own.size
    return {
        name: {error: total / count for error, total in by_name.items()}
        for name, by_name in sums.items()
    }


def assert_same(found, expected, rel=1e-5):
    assert set(found) == set(expected)
    for name in expected:
        assert set(found[name]) == set(errors.ERRORS)
        for error, value in expected[name].items():
            assert found[name][error] == pytest.approx(value, rel=rel), (name, error)


RULES = (
    Rule(path="first|second", method="svd", rank=2),
    Rule(path="head", method="svd", rank=1),
)


def test_feature_errors_equal_one_image_at_a_time(network):
    model, variables = network
    plan = tdjax.make_plan(model, variables, RULES, IMAGES[0])
    assert len(plan.factorised) == 3
    factors = tdjax.factorize_params(variables["params"], plan)
    dense = tdjax.reconstruct_params(factors, plan)
    kernels = {name: dense[name]["kernel"] for name in ("first", "second", "head")}
    expected = brute_force(variables["params"], kernels, IMAGES)
    assert_same(tdjax.feature_errors(model, variables, plan, IMAGES), expected)
    assert_same(tdjax.feature_errors(model, variables, dense, iter(IMAGES)), expected)


def test_kernels_that_are_the_same_are_left_out(network):
    model, variables = network
    changed = replace_kernel(variables["params"], "second", normal(5, 3, 3, 6, 5))
    found = tdjax.feature_errors(model, variables, changed, IMAGES[:1])
    assert set(found) == {"second"}
    assert tdjax.feature_errors(model, variables, variables["params"], IMAGES[:1]) == {}


def test_key_decides_on_the_decomposition(network):
    model, variables = network
    rules = [Rule(path="second", method="cp", rank=2)]
    plan = tdjax.make_plan(model, variables, rules, IMAGES[0])
    first, again, other = (
        tdjax.feature_errors(model, variables, plan, IMAGES[:1], key=jax.random.key(seed))
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_candidate_feature_errors_are_those_of_each(network):
    model, variables = network
    kernels = normal(5, 3, 3, 3, 6, 5)
    found = dispatch.candidate_feature_errors(model, variables, "second", kernels, IMAGES)
    for k in range(3):
        params = replace_kernel(variables["params"], "second", kernels[k])
        alone = tdjax.feature_errors(model, variables, params, IMAGES)["second"]
        for name, value in alone.items():
            assert found[name].dtype == np.float64
            assert found[name][k] == pytest.approx(value, rel=1e-5)


def test_shared_layer_has_the_features_of_all_its_calls():
    model, x = Shared(), normal(3, 2, 4, 4, 8)
    variables = random_variables(model, x)
    own, other = variables["params"]["conv"], normal(5, 3, 3, 8, 8)
    found = tdjax.feature_errors(
        model, variables, replace_kernel(variables["params"], "conv", other), [x]
    )["conv"]
    totals = {"absolute": 0.0, "relative": 0.0}
    for image in x:
        large = convolve(image, own["kernel"], 1, 1) + own["bias"]
        small = large[::2, ::2]
        features = [large, convolve(small, own["kernel"], 1, 1) + own["bias"]]
        changes = [convolve(map_, other - own["kernel"], 1, 1).ravel() for map_ in (image, small)]
        absolute = np.linalg.norm(np.concatenate(changes))
        totals["absolute"] += absolute / 2
        norm = np.linalg.norm(np.concatenate([f.ravel() for f in features]))
        totals["relative"] += absolute / norm / 2
    assert found["absolute"] == pytest.approx(totals["absolute"], rel=1e-4)
    assert found["relative"] == pytest.approx(totals["relative"], rel=1e-4)
    assert found["scaled"] == pytest.approx(totals["absolute"] / ((16 + 4) * 8), rel=1e-4)


def test_layers_inside_transformed_modules():
    model, x = Transformed(), normal(1, 2, 8)
    variables = random_variables(model, x)
    model.apply(variables, x)
    params = variables["params"]
    for path in ("jitted/dense", "saved/dense", "layer"):
        params = replace_kernel(params, path, normal(5, 8, 8))
    for scale in (1.0, 2.0):
        # Twice, as compiled code from before must not be met with other values.
        found = tdjax.feature_errors(model, variables, params, [scale * x])
        z, own = scale * x, variables["params"]
        for path in ("jitted", "saved"):
            change = z @ (params[path]["dense"]["kernel"] - own[path]["dense"]["kernel"])
            norms = np.linalg.norm(np.asarray(change), axis=1)
            assert found[f"{path}/dense"]["absolute"] == pytest.approx(norms.mean(), rel=1e-4)
            z = z + z @ own[path]["dense"]["kernel"] + own[path]["dense"]["bias"]
        change = z @ (params["layer"]["kernel"] - own["layer"]["kernel"])
        norms = np.linalg.norm(np.asarray(change), axis=1)
        assert found["layer"]["absolute"] == pytest.approx(norms.mean(), rel=1e-4)


def test_model_that_is_one_layer():
    model, x = nn.Dense(6), normal(1, 3, 4)
    variables = random_variables(model, x)
    params = {**variables["params"], "kernel": normal(5, 4, 6)}
    found = tdjax.feature_errors(model, variables, params, [x])
    change = np.asarray(x @ (params["kernel"] - variables["params"]["kernel"]))
    assert set(found) == {""}
    assert found[""]["absolute"] == pytest.approx(np.linalg.norm(change, axis=1).mean(), rel=1e-4)


def test_models_with_lists_and_inputs_with_flags(network):
    x = normal(1, 3, 6)
    mlp = MLP([5, 4])
    variables = random_variables(mlp, x)
    params = replace_kernel(variables["params"], "dense1", normal(5, 5, 4))
    assert set(tdjax.feature_errors(mlp, variables, params, [x])) == {"dense1"}

    model, variables = network
    params = replace_kernel(variables["params"], "head", normal(5, 5, 4))
    plain = tdjax.feature_errors(model, variables, params, IMAGES[:1])
    batch = {"scale": True, "x": IMAGES[0]}
    assert_same(tdjax.feature_errors(model, variables, params, [batch]), plain)


def test_network_with_batch_statistics():
    model, x = ConvNet(), normal(1, 2, 9, 9, 3)
    variables = random_variables(model, x)
    stats = jax.tree.map(jnp.ones_like, variables["batch_stats"])
    variables = {**variables, "batch_stats": stats}
    params = replace_kernel(variables["params"], "conv0", normal(5, 3, 3, 3, 8))
    found = tdjax.feature_errors(model, variables, params, [x])
    change = convolve(
        x[0], params["conv0"]["kernel"] - variables["params"]["conv0"]["kernel"], 1, 1
    )
    other = convolve(x[1], params["conv0"]["kernel"] - variables["params"]["conv0"]["kernel"], 1, 1)
    expected = (np.linalg.norm(change.ravel()) + np.linalg.norm(other.ravel())) / 2
    assert found["conv0"]["absolute"] == pytest.approx(float(expected), rel=1e-4)


class Trained(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(not train, use_scale=False, use_bias=False)(nn.Dense(5, name="first")(x))
        return nn.Dense(4, use_bias=False, name="last")(x)


def test_what_a_training_mode_updates_is_as_the_model_computes_with_it():
    x, model = normal(1, 12, 6), Trained()
    variables = random_variables(model, x)
    other = normal(2, 5, 4)
    params = replace_kernel(variables["params"], "last", other)
    hidden = np.asarray(x @ variables["params"]["first"]["kernel"], np.float64)
    hidden = (hidden - hidden.mean(axis=0)) / np.sqrt(hidden.var(axis=0) + 1e-5)
    change = hidden @ (np.asarray(variables["params"]["last"]["kernel"]) - other)
    for batch in ((x, True), {"x": x, "train": True}):
        found = tdjax.feature_errors(model, variables, params, [batch])["last"]
        assert found["absolute"] == pytest.approx(np.linalg.norm(change, axis=1).mean(), rel=1e-4)
    (mean,) = tdjax.evaluate_candidates(
        model,
        variables,
        "last",
        other[None],
        [({"x": x, "train": True}, None)],
        lambda y, _: y[:, 0],
    )
    assert mean == pytest.approx(float((hidden @ other)[:, 0].mean()), abs=1e-5)


def test_feature_errors_refuse_what_they_cannot_do(network):
    model, variables = network
    params = variables["params"]
    plan = tdjax.make_plan(model, variables, RULES, IMAGES[0])
    with pytest.raises(ValueError, match="no batches"):
        tdjax.feature_errors(model, variables, plan, [])
    with pytest.raises(ValueError, match="empty batch"):
        tdjax.feature_errors(model, variables, plan, [IMAGES[0][:0]])
    factors = tdjax.factorize_params(params, plan)
    with pytest.raises(ValueError, match=r"no kernel at 'first'; pass the plan, or .*reconstruct"):
        tdjax.feature_errors(model, variables, factors, IMAGES)
    other = {**params, "second": params["second"]["kernel"]}
    with pytest.raises(ValueError, match="no kernel at 'second'"):
        tdjax.feature_errors(model, variables, other, IMAGES)
    other = replace_kernel(params, "second", normal(5, 3, 3, 6, 4))
    with pytest.raises(ValueError, match=r"layer 'second' .* \(3, 3, 6, 5\).* \(3, 3, 6, 4\)"):
        tdjax.feature_errors(model, variables, other, IMAGES)


def test_layer_that_is_not_met_is_named():
    tokens = jnp.zeros((2, 7), jnp.int32)
    model = Zoo()
    shapes = jax.eval_shape(lambda key: model.init(key, tokens, False), jax.random.key(0))
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    params = replace_kernel(variables["params"], "unused/aside", jnp.zeros((8, 4)))
    with pytest.raises(ValueError, match="the model never calls layer 'unused/aside'"):
        tdjax.feature_errors(model, variables, params, [(tokens, False)])
    # A stack of kernels has no features of its own.
    scanned, x = Scanned(), normal(1, 2, 8)
    variables = random_variables(scanned, x)
    params = replace_kernel(variables["params"], "stack/dense", jnp.zeros((3, 8, 8)))
    with pytest.raises(ValueError, match="the model never calls layer 'stack/dense'"):
        tdjax.feature_errors(scanned, variables, params, [x])


class Branched(nn.Module):
    """A layer in a condition, whose values Flax cannot carry out of it."""

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(8, name="inside")
        if self.is_initializing():
            return layer(x)
        return nn.cond(x.sum() > 0, lambda _, x: layer(x), lambda _, x: x, self, x)


def test_layers_whose_outputs_stay_where_they_are_called():
    message = "layer '{}' is called inside a loop, a condition or a gradient"
    model, x = Branched(), normal(1, 2, 8)
    variables = random_variables(model, x)
    params = replace_kernel(variables["params"], "inside", jnp.zeros((8, 8)))
    with pytest.raises(ValueError, match=message.format("inside")):
        tdjax.feature_errors(model, variables, params, [x])
    cell = nnx.RNN(nnx.SimpleCell(8, 8, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    plan = tdjax.make_plan(cell, [tdjax.Rule(path=".*_h", method="svd", rank=1)], x[None])
    with pytest.raises(ValueError, match=message.format("cell/dense_h")):
        tdjax.feature_errors(cell, plan, [x[None]])


class Tied(nn.Module):
    """An embedding that is looked up and attended to, with names on its axes, and attention."""

    @nn.compact
    def __call__(self, tokens):
        init = nn.with_partitioning(nn.initializers.normal(1.0), ("vocabulary", None))
        embed = nn.Embed(12, 8, embedding_init=init, name="embed")
        x = embed(tokens)
        return embed.attend(x + nn.MultiHeadDotProductAttention(2, name="attention")(x))


def test_feature_errors_of_embeddings_and_attention():
    tokens = jax.random.randint(jax.random.key(0), (3, 5), 0, 12)
    model = Tied()
    variables = model.init(jax.random.key(1), tokens)
    rules = [
        Rule(path="embed", method="svd", rank=3),
        Rule(path="attention/query", method="svd", rank=2),
    ]
    plan = tdjax.make_plan(model, variables, rules, tokens)
    params = tdjax.factorize_params(variables["params"], plan)
    dense = tdjax.reconstruct_params(params, plan)
    found = tdjax.feature_errors(model, variables, dense, [tokens])
    assert found == tdjax.feature_errors(model, variables, plan, [tokens])
    assert list(found) == ["embed", "attention/query"]

    # By hand: what is looked up and all logits are the features of one example.
    def table(params):
        return np.asarray(nn.meta.unbox(params)["embed"]["embedding"], np.float64)

    rows = np.asarray(tokens)
    _, state = model.apply(variables, tokens, capture_intermediates=True)
    attended = np.asarray(state["intermediates"]["attention"]["__call__"][0])
    own, other = table(variables["params"]), table(dense)
    query = own[rows] + attended
    change = np.concatenate([(own - other)[rows], query @ (own - other).T], axis=-1)
    whole = np.concatenate([own[rows], query @ own.T], axis=-1)
    norms = [np.linalg.norm(x.reshape(3, -1), axis=1) for x in (change, whole)]
    assert found["embed"]["absolute"] == pytest.approx(norms[0].mean(), rel=1e-4)
    assert found["embed"]["relative"] == pytest.approx((norms[0] / norms[1]).mean(), rel=1e-4)


def random_moments(groups, rows, columns, seed=0):
    """Second moments of few samples, so that some directions are hardly there."""
    rng = np.random.default_rng(seed)

    def moments(size):
        samples = rng.normal(size=(groups, size // 2 + 2, size)) * rng.uniform(0.1, 2, size)
        return np.einsum("gni,gnj->gij", samples, samples) / samples.shape[1]

    return moments(rows), moments(columns // groups)


def norm_by_hand(array, inputs, outputs):
    """Root of the sum over the groups of tr(G E^T S E), entry by entry in float64."""
    groups, total = len(inputs), 0.0
    matrix = np.asarray(array, np.float64).reshape(-1, array.shape[-1])
    width = matrix.shape[1] // groups
    for group in range(groups):
        part = matrix[:, group * width : (group + 1) * width]
        g = np.eye(width) if outputs is None else outputs[group]
        for a, b in np.ndindex(width, width):
            total += g[a, b] * (part[:, b] @ inputs[group] @ part[:, a])
    return np.sqrt(total)


@pytest.mark.parametrize(
    ("shape", "groups"), [((3, 2, 4, 6), 1), ((3, 3, 2, 6), 3), ((3, 3, 1, 4), 4), ((7, 5), 1)]
)
@pytest.mark.parametrize("whole", [True, False])
def test_data_errors_by_hand(shape, groups, whole):
    rng = np.random.default_rng(1)
    kernel, change = rng.normal(size=shape), 0.1 * rng.normal(size=shape)
    inputs, outputs = random_moments(groups, int(np.prod(shape[:-1])), shape[-1])
    outputs = outputs if whole else None
    given = [None if x is None else jnp.asarray(x, jnp.float32) for x in (inputs, outputs)]
    approx = jnp.asarray(kernel + change, jnp.float32)
    found = errors.data_errors(jnp.asarray(kernel, jnp.float32), approx, *given)
    absolute = norm_by_hand(change, inputs, outputs)
    np.testing.assert_allclose(found["absolute"], absolute, rtol=1e-4)
    relative = absolute / norm_by_hand(kernel, inputs, outputs)
    np.testing.assert_allclose(found["relative"], relative, rtol=1e-4)


def test_data_errors_with_diagonal_moments_and_the_identity():
    kernel, approx = jax.random.normal(jax.random.key(0), (2, 3, 3, 2, 4))
    diagonal, columns = jnp.arange(1.0, 37).reshape(2, 18), jnp.array([[1.0, 3.0], [2.0, 0.0]])
    each = errors.data_errors(kernel, approx, diagonal, columns)
    full = errors.data_errors(
        kernel, approx, jax.vmap(jnp.diag)(diagonal), jax.vmap(jnp.diag)(columns)
    )
    plain = errors.data_errors(kernel, approx, jnp.ones((2, 18)))
    frobenius = errors.weight_errors(kernel, approx)
    for name in ("absolute", "relative"):
        np.testing.assert_allclose(each[name], full[name], rtol=1e-5)
        np.testing.assert_allclose(plain[name], frobenius[name], rtol=1e-5)


def test_a_change_that_the_data_never_shows_is_no_error():
    kernel, approx = jax.random.normal(jax.random.key(0), (2, 3, 3, 1, 2))
    inputs = jnp.stack([jnp.zeros((9, 9)), jnp.eye(9)])
    found = errors.data_errors(kernel, approx, inputs)
    seen = errors.weight_errors(kernel[..., 1], approx[..., 1])
    np.testing.assert_allclose(found["absolute"], seen["absolute"], rtol=1e-5)
    np.testing.assert_allclose(found["relative"], seen["relative"], rtol=1e-5)
    dead = errors.data_errors(kernel, approx, jnp.zeros((2, 9, 9)))
    assert dead == {"absolute": 0, "relative": 0}


@pytest.mark.parametrize(
    ("other", "inputs", "outputs"),
    [
        ((3, 3, 2, 4), (1, 18, 18), None),
        ((3, 3, 2, 6), (1, 17, 17), None),
        ((3, 3, 2, 6), (4, 18, 18), None),
        ((3, 3, 2, 6), (2, 18, 18), (2, 6, 6)),
    ],
)
def test_data_errors_need_shapes_that_fit(other, inputs, outputs):
    given = [None if shape is None else jnp.ones(shape) for shape in (inputs, outputs)]
    with pytest.raises(ValueError, match=r"data_errors: .*shape"):
        errors.data_errors(jnp.ones((3, 3, 2, 6)), jnp.ones(other), *given)


class Noisy(nn.Module):
    """Draws from streams of its own and of dropout."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6, name="first")(x)
        x = x + jax.random.normal(self.make_rng("noise"), x.shape)
        return nn.Dense(4, name="last")(nn.Dropout(0.3, deterministic=False)(x))


def test_models_that_draw_random_numbers_see_the_same_in_both():
    model, x = Noisy(), normal(3, 20, 5)
    variables = model.init({name: jax.random.key(0) for name in ("params", "noise", "dropout")}, x)
    kernel = variables["params"]["last"]["kernel"]
    other = replace_kernel(variables["params"], "last", 1.1 * kernel)
    found = tdjax.feature_errors(model, variables, other, [x])
    np.testing.assert_allclose(found["last"]["relative"], 0.1, rtol=1e-4)
    network, _ = tdjax.linen.network_of(model, variables)
    np.testing.assert_array_equal(network.outputs(variables, x), network.outputs(variables, x))
