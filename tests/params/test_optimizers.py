from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from plain_models import normal

import tdjax
from tdjax import Layer, Plan, PlannedLayer, Rule
from tdjax.params.optimizers import carry_optimizer_state
from tdjax.plan.decide import plan_layer

LAYERS = (Layer("block/conv", "conv", (3, 3, 4, 8)), Layer("head", "dense", (8, 6)))
RULE = Rule(path="block/conv", method="tucker", rank=2)
PLAN = Plan((plan_layer(LAYERS[0], RULE), PlannedLayer(LAYERS[1], reason="no rule matches it")))
FACTORS = ("input", "core", "output")
SCHEDULE = optax.linear_schedule(0.1, 0.0, 10)


def make_params():
    return {
        "block": {
            "conv": {"kernel": normal(0, 3, 3, 4, 8), "bias": normal(1, 8)},
            "norm": {"scale": normal(2, 8)},
        },
        "head": {"kernel": normal(3, 8, 6), "bias": normal(4, 6)},
    }


def matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def labels(params):
    return jax.tree.map(lambda leaf: "matrix" if leaf.ndim > 1 else "vector", params)


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(SCHEDULE, momentum=0.9, nesterov=True),
    "adam": optax.adam(SCHEDULE),
    "adam_bfloat16": optax.adam(0.1, mu_dtype=jnp.bfloat16),
    "adamw": optax.adamw(0.1, weight_decay=0.1, mask=matrices),
    "chain": optax.chain(optax.add_decayed_weights(0.1), optax.trace(0.9), optax.scale(-0.1)),
    "rmsprop": optax.rmsprop(SCHEDULE, momentum=0.5, centered=True),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=2, momentum=0.9),
    "inject": optax.inject_hyperparams(optax.adam)(learning_rate=SCHEDULE),
    "inject_fixed": optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9),
    "masked": optax.chain(optax.masked(optax.trace(0.9), matrices), optax.scale(-0.1)),
    "multi": optax.multi_transform(
        {"matrix": optax.adam(SCHEDULE), "vector": optax.sgd(0.1, momentum=0.9)}, labels
    ),
    "steps": optax.MultiSteps(
        optax.sgd(0.1, momentum=0.9), every_k_schedule=2
    ).gradient_transformation(),
    "ema": optax.chain(optax.ema(0.9), optax.scale(-0.1)),
}


def gradients(params, seed):
    """Gradients that depend on path and step alone, so that parameters kept see the same."""

    def draw(path, leaf):
        name = sum(map(ord, jax.tree_util.keystr(path)))
        return normal(1000 * seed + name, *leaf.shape)

    return jax.tree_util.tree_map_with_path(draw, params)


def train(optimizer, params, state, steps):
    """Parameters, state and the last updates after some steps."""
    updates = None
    for step in steps:
        updates, state = optimizer.update(gradients(params, step), state, params)
        params = optax.apply_updates(params, updates)
    return params, state, updates


def factorised(params):
    return tdjax.factorize_params(params, PLAN, max_iters=2)


def kept(params):
    """What no factorisation touches."""
    block = {"bias": params["block"]["conv"]["bias"], "scale": params["block"]["norm"]["scale"]}
    return {"block": block, "head": params["head"]}


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def same_types(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (jnp.shape(a), jnp.result_type(a)) == (jnp.shape(b), jnp.result_type(b))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_other_parameters_train_on_as_if_nothing_had_happened(name):
    optimizer, params = OPTIMIZERS[name], make_params()
    params, state, _ = train(optimizer, params, optimizer.init(params), range(3))
    small = factorised(params)
    carried = carry_optimizer_state(optimizer, state, params, small)
    same_types(carried, optimizer.init(small))
    one = train(optimizer, params, state, range(3, 6))
    other = train(optimizer, small, carried, range(3, 6))
    equal(kept(one[0]), kept(other[0]))
    equal(kept(one[2]), kept(other[2]))
    # With a fresh state they would not.
    if name != "sgd":
        fresh = train(optimizer, small, optimizer.init(small), range(3, 6))
        pairs = zip(jax.tree.leaves(kept(fresh[0])), jax.tree.leaves(kept(one[0])), strict=True)
        assert not all(np.array_equal(a, b) for a, b in pairs)


@dataclass
class About:
    """What a leaf of a state is about: a parameter's path, or nothing."""

    name: str | None
    leaf: Any


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "multi"])
def test_state_of_the_factors_is_fresh(name):
    # optax's own way of finding parameters in a state; it takes no labels that are a function.
    optimizer, params = OPTIMIZERS[name], make_params()
    params, state, _ = train(optimizer, params, optimizer.init(params), range(3))
    small = factorised(params)
    carried = carry_optimizer_state(optimizer, state, params, small)
    names = jax.tree_util.tree_map_with_path(lambda path, _: jax.tree_util.keystr(path), small)

    def masked(leaf):
        return isinstance(leaf, optax.MaskedNode)

    def marked(state):
        return jax.tree.leaves(
            optax.tree_utils.tree_map_params(
                optimizer,
                lambda leaf, name: leaf if masked(leaf) else About(name, leaf),
                state,
                names,
                is_leaf=masked,
                transform_non_params=lambda leaf: About(None, leaf),
            )
        )

    old = list(map(id, jax.tree.leaves(state)))
    found = marked(carried)
    assert len(found) == len(jax.tree.leaves(carried))
    for one, fresh in zip(found, marked(optimizer.init(small)), strict=True):
        if one.name is not None and any(f"['{factor}']" in one.name for factor in FACTORS):
            np.testing.assert_array_equal(one.leaf, fresh.leaf)
        else:
            assert id(one.leaf) in old


def test_counts_and_hyperparameters_are_kept():
    optimizer, params = OPTIMIZERS["inject"], make_params()
    params, state, _ = train(optimizer, params, optimizer.init(params), range(4))
    small = factorised(params)
    carried = carry_optimizer_state(optimizer, state, params, small)
    assert int(carried.count) == 4
    assert float(carried.hyperparams["learning_rate"]) == float(SCHEDULE(3))
    assert int(optax.tree_utils.tree_get(carried.inner_state, "count")) == 4
    moments = carried.inner_state[0].mu
    assert set(moments["block"]["conv"]) == {*FACTORS, "bias"}
    assert all(not leaf.any() for leaf in jax.tree.leaves(moments["block"]["conv"]["core"]))
    assert moments["head"]["kernel"] is state.inner_state[0].mu["head"]["kernel"]


def test_back_to_dense_kernels():
    optimizer, params = OPTIMIZERS["adam"], factorised(make_params())
    params, state, _ = train(optimizer, params, optimizer.init(params), range(3))
    dense = tdjax.reconstruct_params(params, PLAN)
    carried = carry_optimizer_state(optimizer, state, params, dense)
    same_types(carried, optimizer.init(dense))
    assert not carried[0].nu["block"]["conv"]["kernel"].any()
    assert carried[0].nu["head"] == state[0].nu["head"]


def test_another_rank_is_another_parameter():
    # Adafactor's statistics of rows have one shape for several ranks.
    optimizer, params = OPTIMIZERS["adafactor"], {"a": normal(0, 4, 5), "b": normal(1, 4, 5)}
    params, state, _ = train(optimizer, params, optimizer.init(params), range(3))
    new = {"a": normal(2, 4, 3), "b": normal(1, 4, 5)}
    carried = carry_optimizer_state(optimizer, state, params, new)
    fresh = optimizer.init(new)
    same_types(carried, fresh)
    for found, expected, old in zip(*map(jax.tree.leaves, (
        [optax.tree_utils.tree_get(tree, name) for name in ("v_row", "v_col", "v")]
        for tree in (carried, fresh, state))), strict=True):  # fmt: skip
        assert np.array_equal(found, expected) or found is old
    for name in ("v_row", "v_col"):
        found, expected, old = (
            optax.tree_utils.tree_get(tree, name) for tree in (carried, fresh, state)
        )
        np.testing.assert_array_equal(found["a"], expected["a"])
        assert found["b"] is old["b"]
    # So is one of another dtype.
    half = {**params, "a": params["a"].astype(jnp.bfloat16)}
    same_types(carry_optimizer_state(optimizer, state, params, half), optimizer.init(half))


def test_names_of_axes_around_arrays():
    box = lambda leaf, *names: nn.Partitioned(leaf, names)  # noqa: E731
    params = {"conv": {"kernel": box(normal(0, 3, 8, 6), None, None, "model")},
              "head": {"kernel": box(normal(1, 6, 5), "model", None)}}  # fmt: skip
    layer = Layer("conv", "conv", (3, 8, 6))
    plan = Plan((plan_layer(layer, Rule(path=".*", method="svd", rank=2)),))
    optimizer = OPTIMIZERS["adam"]
    params, state, _ = train(optimizer, params, optimizer.init(params), range(2))
    small = tdjax.factorize_params(params, plan)
    carried = carry_optimizer_state(optimizer, state, params, small)
    same_types(carried, optimizer.init(small))
    assert carried[0].mu["head"]["kernel"].value is state[0].mu["head"]["kernel"].value


def test_inside_jit_and_from_shapes():
    optimizer, params = OPTIMIZERS["adam"], make_params()
    params, state, _ = train(optimizer, params, optimizer.init(params), range(2))
    small = factorised(params)
    shapes = jax.eval_shape(lambda: params)
    carry = jax.jit(lambda state, new: carry_optimizer_state(optimizer, state, shapes, new))
    equal(carry(state, small), carry_optimizer_state(optimizer, state, params, small))


def test_a_state_of_something_else_is_refused():
    params = make_params()
    small = factorised(params)
    adam, sgd = OPTIMIZERS["adam"], OPTIMIZERS["momentum"]
    begin = "the state is not one of this optimiser for the old parameters: "
    with pytest.raises(ValueError, match=rf"{begin}.*\.mu.* is missing; .*; and \d+ more"):
        carry_optimizer_state(adam, sgd.init(params), params, small)
    with pytest.raises(ValueError, match=rf"{begin}.*'conv'.*'kernel'.* is missing"):
        carry_optimizer_state(sgd, sgd.init(small), params, small)
    other = {**params, "head": {"kernel": normal(0, 8, 7), "bias": params["head"]["bias"]}}
    message = rf"{begin}.*\['head'\]\['kernel'\] has shape \(8, 7\), not \(8, 6\)"
    with pytest.raises(ValueError, match=message):
        carry_optimizer_state(sgd, sgd.init(other), params, small)
    more = {**params, "tail": normal(0, 3)}
    with pytest.raises(ValueError, match=rf"{begin}.*\['tail'\] is not expected"):
        carry_optimizer_state(sgd, sgd.init(more), params, small)


def test_fixed_masks_are_refused():
    params = make_params()
    for optimizer in (
        optax.masked(optax.adam(0.1), matrices(params)),
        optax.multi_transform(
            {"matrix": optax.adam(0.1), "vector": optax.sgd(0.1)}, labels(params)
        ),
    ):
        state = optimizer.init(params)
        with pytest.raises(ValueError, match="give masks and labels as functions"):
            carry_optimizer_state(optimizer, state, params, factorised(params))


def test_a_state_that_mixes_parameters_is_refused():
    params = make_params()
    optimizer = optax.flatten(optax.adam(0.1))
    with pytest.raises(
        ValueError, match=r"\.mu mixes all parameters in one array of shape \(358,\)"
    ):
        carry_optimizer_state(optimizer, optimizer.init(params), params, factorised(params))
