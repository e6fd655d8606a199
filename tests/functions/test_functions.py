import functools
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from plain_functions import (
    FUNCTIONS,
    IDS,
    drawn,
    inputs,
    tokens,
)
from plain_networks import LanguageModel, UNet, VisionTransformer

import tdjax
from tdjax.params.check import factor_shapes
from tdjax.params.leaves import leaf_tree
from tdjax.params.tree import put, remove
from tdjax.plan.form import Form
from tdjax.plan.layers import LEAF
from tdjax.plan.ranks import full_ranks
from tdjax.trace.products import products_of

# By name of a function: rules that between them take every form.
RULES = {
    "images": [
        tdjax.Rule(path="first", method="cp", rank=3),
        tdjax.Rule(path="second", method="svd", rank=2, fold="rows"),
        tdjax.Rule(path="wise", method="tt", rank=1),
        tdjax.Rule(path="up", method="tucker", rank=3),
        tdjax.Rule(path="back", method="tt", rank=2),
        tdjax.Rule(path=".*", method="svd", rank=1, splits=2),
    ],
    "tokens": [
        tdjax.Rule(path="embed|blocks/qkv", method="tt", rank=2),
        tdjax.Rule(path=".*/up", method="svd", rank=2, splits=2),
        tdjax.Rule(path=".*", method="svd", rank=4),
    ],
    "paths": [
        tdjax.Rule(path="2|1/0", method="svd", rank=1, splits=2),
        tdjax.Rule(path=".*", method="svd", rank=2),
    ],
    "perceptron": [tdjax.Rule(path=".*", method="svd", rank=2)],
}
DENSE = {"tokens": ["positions"]}


def macs(function, *args):
    return sum(products_of(jax.make_jaxpr(function)(*args)).values())


def close(found, expected, atol=1e-5):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = max(1.0, float(np.abs(other).max()))
        np.testing.assert_allclose(one / scale, other / scale, rtol=0, atol=atol)


@functools.cache
def factorised(name):
    """A function's plan by its rules, and factors of its shapes."""
    apply, params, x = FUNCTIONS[name]
    plan, tree = tdjax.make_plan(apply, params, RULES[name], x), leaf_tree(params)
    mapping = tree.mapping
    for number, entry in enumerate(plan.factorised):
        key = jax.random.key(number)
        own = {
            stage: {"kernel": jax.random.normal(key, shape) / 3}
            for stage, shape in factor_shapes(entry).items()
        }
        put(mapping, entry.layer.path, own)
        remove(mapping, f"{entry.layer.path}/{LEAF}")
    return plan, tree.filled(mapping, plan)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_all_products_are_layers_and_all_are_counted(name):
    (apply, params, x), (plan, factors) = FUNCTIONS[name], factorised(name)
    assert [e.layer.path for e in plan.layers if e.layer.obstacle] == DENSE.get(name, [])
    assert plan.macs_before * len(x) == macs(apply, params, x)
    assert plan.size_before == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert plan.size == sum(leaf.size for leaf in jax.tree.leaves(factors))
    assert plan.macs * len(x) == macs(tdjax.factorize(apply, plan), factors, x)
    assert tdjax.Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_chain_computes_what_its_reconstruction_does(name):
    (apply, _, x), (plan, factors) = FUNCTIONS[name], factorised(name)
    taken = [entry for entry in plan.layers if entry.layer.obstacle is None]
    assert len(plan.factorised) == len(taken)
    small = tdjax.factorize(apply, plan)

    def with_gradient(function):
        def loss(factors):
            y = function(factors)
            return (y**2).mean(), y

        return jax.grad(loss, has_aux=True)

    @jax.jit
    def both(factors):
        dense = with_gradient(lambda f: apply(tdjax.reconstruct_params(f, plan), x))(factors)
        return with_gradient(lambda f: small(f, x))(factors), dense

    found, expected = both(factors)
    close(found, expected)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    # The rules of `doubled` and `tripled` scale the derivatives of all that is before them.
    if name == "paths":
        assert float(jnp.abs(found[0][0][0]["input"]["kernel"]).max()) > 0


@pytest.mark.parametrize("name", ["tokens", "paths"])
def test_at_full_rank_it_is_the_function(name):
    apply, params, x = FUNCTIONS[name]

    def full(layer):
        if layer.obstacle is not None:
            return tdjax.PlannedLayer(layer)
        *front, columns = layer.group_shape
        shape = (int(np.prod(front)), columns)
        return tdjax.PlannedLayer(layer, Form("svd", full_ranks("svd", shape)))

    plan = tdjax.Plan(tuple(map(full, tdjax.layer_table(apply, params, x))))
    factors = tdjax.factorize_params(params, plan)
    close(tdjax.factorize(apply, plan)(factors, x), jax.jit(apply)(params, x))


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (LanguageModel(), IDS),
        (VisionTransformer(), jnp.ones((2, 8, 8, 3))),
        (UNet(), jnp.ones((2, 8, 8, 3))),
    ],
    ids=["language model", "vision transformer", "U-Net"],
)
def test_a_linen_model_has_the_same_layers_as_a_function(model, x):
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    stats = {name: own for name, own in variables.items() if name != "params"}
    rest = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), stats)

    def apply(params, x):
        return model.apply({"params": params, **rest}, x)

    rules = [tdjax.Rule(path=".*", method="svd", compression=0.5)]
    expected = tdjax.make_plan(model, variables, rules, x)
    found = tdjax.make_plan(apply, variables["params"], rules, x)
    assert (found.size_before, found.macs_before) == (expected.size_before, expected.macs_before)
    assert (found.size, found.macs) == (expected.size, expected.macs)
    by_array = {
        f"{e.layer.path}/{e.layer.storage.name}": (e.layer.kernel_shape, e.layer.macs, e.form)
        for e in expected.factorised
    }
    assert by_array == {
        e.layer.path: (e.layer.kernel_shape, e.layer.macs, e.form) for e in found.factorised
    }


def test_it_is_traced_once_for_equal_shapes():
    calls = []

    def apply(params, x, scale=1.0):
        calls.append(x.shape)
        return scale * (x @ params["w"])

    params, x = drawn(0, w=(8, 8)), inputs(1, 3, 8)
    plan = tdjax.make_plan(apply, params, [tdjax.Rule(path="w", method="svd", rank=2)], x)
    factors, small = tdjax.factorize_params(params, plan), tdjax.factorize(apply, plan)
    assert tdjax.factorize(apply, plan) is small
    calls.clear()
    compiled = jax.jit(small)
    for _ in range(3):
        small(factors, x)
        compiled(factors, x)
    assert calls == [(3, 8)]
    close(small(factors, x, scale=2.0), 2 * small(factors, x))
    close(jax.vmap(small, in_axes=(None, 0))(factors, x[:, None]), small(factors, x)[:, None])
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), factors)
    close(jax.vmap(small, in_axes=(0, None))(many, x)[1], 4 * small(factors, x))


def test_it_is_pickled():
    plan, _ = factorised("tokens")
    small = tdjax.factorize(tokens, plan)
    again = pickle.loads(pickle.dumps(small))
    assert (again.function, again.plan) == (tokens, plan)


# ---------------------------------------------------------------- what stays dense


def _refused(params, x):
    square = params["square"]
    y = x @ params["twice"] + jnp.tanh(x) @ params["twice"].T
    y = y + x @ params["one"] @ params["other"] + x @ (params["left"] @ params["right"])
    y = y + x @ params["part"][:8] + x @ jnp.tanh(params["changed"]) + x @ params["int8"]
    y = lax.fori_loop(0, 2, lambda _, yw: (yw[0] @ yw[1], 0.5 * yw[1]), (y, params["carried"]))[0]
    y = lax.map(lambda row: x @ row, params["split"].reshape(2, 4, 8).swapaxes(1, 2)).sum() + y
    return y @ params["kept"], params["kept"], jnp.sum(square**2) + (y @ square).sum()


REFUSED = {
    "carried": "read otherwise than by a product, by a loop that changes it",
    "changed": "read otherwise than by a product, by tanh",
    "int8": "its array holds int8 numbers",
    "kept": "it is read elsewhere too, as a result",
    "left": "read otherwise than by a product, by dot_general, with another weight",
    "part": "read otherwise than by a product, by dot_general, in part",
    "right": "by dot_general, with another weight",
    "split": "by a loop over a part of an axis",
    "square": "it is read elsewhere too, by (integer_pow|square)",
    "twice": "it is multiplied in several ways",
    "unread": "nothing reads it",
}


def test_what_no_chain_can_stand_for_stays_dense_with_the_reason():
    names = [*REFUSED, "one", "other"]
    params = drawn(0, **dict.fromkeys(names, (8, 8)))
    params |= {"part": inputs(1, 16, 8), "int8": jnp.ones((8, 8), jnp.int8)}
    x = inputs(2, 5, 8)
    rules = [tdjax.Rule(path=".*", method="svd", rank=1)]
    plan = tdjax.make_plan(_refused, params, rules, x)
    assert [entry.layer.path for entry in plan.factorised] == ["one", "other"]
    found = {e.layer.path: e.reason for e in plan.layers if e.reason}
    assert found.keys() == REFUSED.keys()
    for path, reason in REFUSED.items():
        assert re.search(reason, found[path]), found[path]
    assert plan.macs_before * len(x) == macs(_refused, params, x)
    factors, small = tdjax.factorize_params(params, plan), tdjax.factorize(_refused, plan)
    dense = tdjax.reconstruct_params(factors, plan)
    close(small(factors, x), jax.jit(_refused)(dense, x))
