import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_models import ConvNet

import tdjax
from tdjax import Layer, Plan, PlannedLayer, Rule
from tdjax.params.factorize import replace_kernel
from tdjax.params.tree import layer_params
from tdjax.plan.decide import plan_layer

# A model's parameters without a model: names, shapes and a plan are enough.
LAYERS = {
    "block/conv": Layer("block/conv", "conv", (3, 3, 6, 8)),
    "block/pair": Layer("block/pair", "conv", (3, 3, 6, 16), groups=2),
    "head": Layer("head", "dense", (10, 7)),
}
# Few shapes and one number of sweeps: every other is compiled anew.
SWEEPS = 20
RANKS = {"cp": 4, "tucker": 3, "tt": 4, "svd": 3}


def normal(seed, *shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(dtype))


def make_params(dtype=np.float32):
    return {
        "block": {
            "conv": {"kernel": normal(0, 3, 3, 6, 8, dtype=dtype), "bias": normal(1, 8)},
            "pair": {"kernel": normal(2, 3, 3, 6, 16, dtype=dtype)},
            "norm": {"scale": normal(3, 8), "bias": normal(4, 8)},
        },
        "head": {"kernel": normal(5, 10, 7, dtype=dtype), "bias": normal(6, 7)},
    }


def make_plan(method="svd", paths=tuple(LAYERS)):
    entries = []
    for path, layer in LAYERS.items():
        if path in paths:
            rule = Rule(path=path, method=method, rank=RANKS[method])
            entries.append(plan_layer(layer, rule))
        else:
            entries.append(PlannedLayer(layer, reason="no rule matches it"))
    return Plan(tuple(entries))


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("method", RANKS)
def test_tree_of_the_factors(method):
    params, plan = make_params(), make_plan(method)
    before = jax.tree.map(np.array, params)
    factors = tdjax.factorize_params(params, plan, key=jax.random.key(0), max_iters=SWEEPS)
    # Pure: what went in is as it was.
    equal(params, before)
    assert set(params["block"]["conv"]) == {"kernel", "bias"}
    for entry in plan.factorised:
        own = layer_params(factors, entry.layer.path)
        names = {stage.name: stage.kernel_shape for stage in entry.stages}
        kernels = {name: leaf["kernel"].shape for name, leaf in own.items() if name != "bias"}
        assert kernels == names
    # All else is passed on, not copied.
    assert factors["block"]["norm"] == params["block"]["norm"]
    assert factors["block"]["conv"]["bias"] is params["block"]["conv"]["bias"]
    assert factors["head"]["bias"] is params["head"]["bias"]
    assert "bias" not in factors["block"]["pair"]


def test_layers_that_stay_dense_are_passed_on():
    params, plan = make_params(), make_plan("svd", ("head",))
    factors = tdjax.factorize_params(params, plan)
    assert factors["block"]["conv"]["kernel"] is params["block"]["conv"]["kernel"]
    assert "kernel" not in factors["head"]
    equal(tdjax.reconstruct_params(factors, plan)["block"], params["block"])


def truncated(matrix, rank):
    u, s, vt = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return u[:, :rank] * s[:rank] @ vt[:rank]


def test_svd_is_the_best_of_its_rank_in_every_group():
    params, plan = make_params(), make_plan("svd")
    dense = tdjax.reconstruct_params(tdjax.factorize_params(params, plan), plan)
    kernel = np.asarray(params["block"]["conv"]["kernel"])
    expected = truncated(kernel.reshape(54, 8), 3).reshape(kernel.shape)
    np.testing.assert_allclose(dense["block"]["conv"]["kernel"], expected, atol=2e-5)
    pair = np.asarray(params["block"]["pair"]["kernel"])
    halves = [truncated(half.reshape(54, 8), 3).reshape(3, 3, 6, 8) for half in
              np.split(pair, 2, axis=-1)]  # fmt: skip
    expected = np.concatenate(halves, axis=-1)
    np.testing.assert_allclose(dense["block"]["pair"]["kernel"], expected, atol=2e-5)
    expected = truncated(params["head"]["kernel"], 3)
    np.testing.assert_allclose(dense["head"]["kernel"], expected, atol=2e-5)


@pytest.mark.parametrize(
    ("method", "axes"),
    [
        ("tucker", (0, 1, 2, 3)),
        ("tt", (2, 0, 1, 3)),
        ("cp", (0, 1, 2, 3)),
    ],
)
def test_factors_are_those_of_the_decomposition(method, axes):
    params = make_params()
    plan = make_plan(method, ("block/conv",))
    key = jax.random.key(3)
    factors = tdjax.factorize_params(params, plan, key=key, max_iters=SWEEPS, tol=1e-8)
    dense = tdjax.reconstruct_params(factors, plan)["block"]["conv"]["kernel"]
    kernel = params["block"]["conv"]["kernel"]
    entry = plan["block/conv"]
    tensor = kernel.transpose(axes)
    if method == "tucker":
        direct = tdjax.tucker_als(tensor, (None, None, 3, 3), max_iters=SWEEPS)[0]
    elif method == "tt":
        direct = tdjax.tt_svd(tensor, entry.ranks)
    else:
        own = jax.random.fold_in(jax.random.fold_in(key, 0), 0)
        direct = tdjax.cp_als(tensor, 4, key=own, init="normal", max_iters=SWEEPS)[0]
    expected = direct.to_tensor().transpose(np.argsort(axes))
    np.testing.assert_allclose(dense, expected, atol=1e-5)
    assert (
        0
        < float(jnp.linalg.norm((dense - kernel).ravel()))
        < float(jnp.linalg.norm(kernel.ravel()))
    )


def test_key_is_needed_for_cp_alone():
    params = make_params()
    for method in ("tucker", "tt", "svd"):
        tdjax.factorize_params(params, make_plan(method))
    with pytest.raises(ValueError, match="CP starts from random factors, pass key="):
        tdjax.factorize_params(params, make_plan("cp"))
    # Between two modes CP is a product of two matrices, which needs no start.
    tdjax.factorize_params(params, make_plan("cp", ("head",)))


def test_key_decides():
    params, plan = make_params(), make_plan("cp")
    one, same, other = (
        tdjax.factorize_params(params, plan, key=jax.random.key(seed), max_iters=SWEEPS)
        for seed in (0, 0, 1)
    )
    equal(one, same)
    assert not np.allclose(
        one["block"]["conv"]["input"]["kernel"], other["block"]["conv"]["input"]["kernel"]
    )


def test_groups_and_layers_start_apart():
    params = make_params()
    twice = jnp.tile(params["block"]["pair"]["kernel"][..., :8], 2)
    params = replace_kernel(params, "block/pair", twice)
    plan = make_plan("cp", ("block/pair",))
    factors = tdjax.factorize_params(params, plan, key=jax.random.key(0), max_iters=SWEEPS)
    left, right = np.split(np.asarray(factors["block"]["pair"]["input"]["kernel"]), 2, axis=-1)
    assert not np.allclose(left, right)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_kernel_that_is_not_finite_is_refused(value):
    params = make_params()
    params["block"]["conv"]["kernel"] = params["block"]["conv"]["kernel"].at[0, 0, 0, 0].set(value)
    with pytest.raises(ValueError, match="layer 'block/conv': the kernel holds NaN or Inf"):
        tdjax.factorize_params(params, make_plan())
    # Of a layer that is kept dense nothing is asked.
    tdjax.factorize_params(params, make_plan("svd", ("head",)))


def test_parameters_that_do_not_fit_the_plan_are_named():
    plan = make_plan()
    params = make_params()
    params["head"]["kernel"] = normal(0, 10, 6)
    with pytest.raises(
        ValueError, match=r"layer 'head': kernel of shape \(10, 6\), .* made for \(10, 7\)"
    ):
        tdjax.factorize_params(params, plan)
    del params["head"]["kernel"]
    with pytest.raises(KeyError, match="layer 'head' has no kernel; it has bias"):
        tdjax.factorize_params(params, plan)
    del params["head"]
    with pytest.raises(KeyError, match="no parameters at 'head'"):
        tdjax.factorize_params(params, plan)
    del params["block"]["conv"]
    with pytest.raises(KeyError, match="no parameters at 'block/conv'"):
        tdjax.factorize_params(params, plan)
    params["block"] = normal(0, 3)
    with pytest.raises(KeyError, match="no parameters at 'block/conv'"):
        tdjax.factorize_params(params, plan)


def test_factorised_parameters_are_not_factorised_again():
    params, plan = make_params(), make_plan()
    factors = tdjax.factorize_params(params, plan)
    with pytest.raises(KeyError, match="layer 'block/conv' has no kernel; it has bias, input"):
        tdjax.factorize_params(factors, plan)
    with pytest.raises(KeyError, match="layer 'block/conv' has no factors input, output"):
        tdjax.reconstruct_params(params, plan)


def test_frozen_and_numpy_parameters():
    params, plan = make_params(), make_plan()
    expected = tdjax.factorize_params(params, plan)
    equal(tdjax.factorize_params(nn.FrozenDict(params), plan), expected)
    equal(tdjax.factorize_params(jax.tree.map(np.asarray, params), plan), expected)
    dense = tdjax.reconstruct_params(expected, plan)
    equal(tdjax.reconstruct_params(nn.FrozenDict(expected), plan), dense)


@pytest.mark.parametrize("method", RANKS)
def test_half_precision_is_decomposed_in_single(method):
    plan = make_plan(method, ("block/conv",))
    key = jax.random.key(0)
    half = make_params(jnp.bfloat16)
    factors = tdjax.factorize_params(half, plan, key=key, max_iters=SWEEPS)["block"]["conv"]
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    expected = tdjax.factorize_params(single, plan, key=key, max_iters=SWEEPS)["block"]["conv"]
    for name in set(factors) - {"bias"}:
        assert factors[name]["kernel"].dtype == jnp.bfloat16
        np.testing.assert_array_equal(
            factors[name]["kernel"], expected[name]["kernel"].astype(jnp.bfloat16)
        )


@pytest.mark.parametrize("method", ["tucker", "tt", "svd"])
def test_full_rank_is_undone(method):
    params = make_params()
    plan = Plan(
        tuple(
            plan_layer(
                layer,
                Rule(path=".*", method=method, rank=tdjax.plan.ranks.full_ranks(
                    "svd" if layer.kind == "dense" else method, layer.group_shape
                )),
            )
            for layer in LAYERS.values()
        )
    )  # fmt: skip
    dense = tdjax.reconstruct_params(tdjax.factorize_params(params, plan), plan)
    assert jax.tree.structure(dense) == jax.tree.structure(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), dense, params)


def test_inside_jit_and_vmap():
    params, plan = make_params(), make_plan()
    factors = tdjax.factorize_params(params, plan)
    traced = jax.jit(lambda p: tdjax.factorize_params(p, plan))(params)
    dense = tdjax.reconstruct_params(factors, plan)
    # Factors of one product may differ in sign, their product does not.
    again = tdjax.reconstruct_params(traced, plan)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), again, dense)
    pairs = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), factors)
    both = jax.vmap(lambda p: tdjax.reconstruct_params(p, plan))(pairs)
    kernel = dense["head"]["kernel"]
    np.testing.assert_allclose(both["head"]["kernel"][0], kernel, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(both["head"]["kernel"][1], 4 * kernel, rtol=1e-5, atol=1e-6)


def test_gradient_of_the_reconstruction():
    params, plan = make_params(), make_plan("svd", ("head",))
    factors = tdjax.factorize_params(params, plan)
    weights = normal(9, 10, 7)

    def loss(p):
        return jnp.sum(weights * tdjax.reconstruct_params(p, plan)["head"]["kernel"])

    gradient = jax.grad(loss)(factors)["head"]
    np.testing.assert_allclose(
        gradient["input"]["kernel"], weights @ factors["head"]["output"]["kernel"].T, rtol=1e-4,
        atol=1e-5,
    )  # fmt: skip
    np.testing.assert_allclose(
        gradient["output"]["kernel"], factors["head"]["input"]["kernel"].T @ weights, rtol=1e-4,
        atol=1e-5,
    )  # fmt: skip


def test_parameters_of_a_model_and_its_plan():
    model, x = ConvNet(), jnp.zeros((2, 9, 9, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: normal(0, *leaf.shape), shapes)
    rules = [Rule(path="conv1", method="tucker", compression=0.7)]
    plan = tdjax.make_plan(model, variables, rules, x)
    factors = tdjax.factorize_params(variables["params"], plan)
    assert set(factors) == set(variables["params"])
    assert sum(leaf.size for leaf in jax.tree.leaves(factors)) == plan.size
    assert set(variables["params"]["conv1"]) == {"kernel", "bias"}


def test_replace_kernel_and_layer_params():
    params = make_params()
    kernel = normal(9, 10, 7)
    changed = replace_kernel(params, "head", kernel)
    assert changed["head"]["kernel"] is kernel
    assert params["head"]["kernel"] is not kernel
    assert layer_params(changed, "block/norm") == params["block"]["norm"]
    assert layer_params(params, "") is params
    with pytest.raises(KeyError, match="no parameters at 'block/tail'"):
        layer_params(params, "block/tail/conv")
