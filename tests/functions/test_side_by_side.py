"""Kernels that lie side by side in one product, as those of a cell's gates."""

import jax
import jax.numpy as jnp
import numpy as np

import tdjax
from tdjax.trace.products import products_of


def gates(params, x):
    def turn(state, x):
        inner = jnp.concatenate([params["ii"], params["if"]], axis=1).astype(x.dtype)
        # Outputs first, and from the left.
        outer = jnp.concatenate([params["hi"].T, params["hf"].T])
        one, other = jnp.split(x @ inner + (outer @ state.T).T, 2, axis=-1)
        return jnp.tanh(one) * jax.nn.sigmoid(other), None

    start = jnp.zeros((x.shape[1], 6))
    state, _ = jax.lax.scan(turn, start, x)
    # Above each other they are one kernel of what is summed over.
    return jnp.concatenate([state, state], 1) @ jnp.concatenate([params["one"], params["two"]])


def apply(params, x):
    return gates(params, x.swapaxes(0, 1))


def test_each_is_multiplied_alone():
    shapes = {"ii": (4, 6), "if": (4, 6), "hi": (6, 6), "hf": (6, 6), "one": (6, 3), "two": (6, 3)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    params = {
        name: jax.random.normal(key, shape) / 2
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    x = jax.random.normal(jax.random.key(1), (16, 5, 4))
    plan = tdjax.make_plan(apply, params, [tdjax.Rule(path=".*", method="svd", rank=1)], x)
    assert {entry.layer.path for entry in plan.factorised} == {"ii", "if", "hi", "hf"}
    assert plan["one"].reason == "it is read otherwise than by a product, by concatenate"
    factors, small = tdjax.factorize_params(params, plan), tdjax.factorize(apply, plan)
    dense = tdjax.reconstruct_params(factors, plan)
    np.testing.assert_allclose(small(factors, x), apply(dense, x), atol=1e-6)
    for function, own, macs in ((apply, params, plan.macs_before), (small, factors, plan.macs)):
        assert macs * 16 == sum(products_of(jax.make_jaxpr(function)(own, x)).values())
    moments = tdjax.collect_moments(apply, params, [x], loss_fn=lambda y, _: (y**2).sum(axis=1))
    rows = np.asarray(x, np.float64).reshape(-1, 4)
    np.testing.assert_allclose(moments["if"].inputs[0], rows.T @ rows / len(rows), atol=1e-5)
