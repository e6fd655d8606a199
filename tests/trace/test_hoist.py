import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from plain_models import normal

from tdjax.trace.hoist import split

FIXED = {"a": normal(1, 3, 4), "b": normal(2, 4)}
VARYING = normal(3, 4, 5)
CONSTANT = np.linspace(0, 1, 5, dtype=np.float32)


def products(v, f):
    return jnp.tanh(f["a"] @ f["a"].T @ f["a"] + f["b"]) @ v + CONSTANT


def inside_jit(v, f):
    @jax.jit
    def layer(x, kernel, factor):
        return factor * (x @ x.T) @ x @ kernel

    # Called twice, once on what varies; a literal is an argument.
    return layer(f["a"], f["b"][:, None], 2.0) + layer(f["a"] @ v, v.T, 3.0)


def remat_and_custom_rules(v, f):
    block = jax.checkpoint(lambda x: jax.nn.relu(x @ v) @ v.T)
    return jax.nn.silu(block(block(f["a"]))) + jax.nn.relu(f["a"])


def loops(v, f):
    fixed, _ = lax.scan(lambda carry, x: (carry + jnp.sin(x), None), f["b"], f["a"])
    moved, rows = lax.scan(lambda carry, x: (carry * x, carry @ v), fixed, f["a"])
    return {"rows": rows, "last": lax.cond(fixed[0] > 0, jnp.sin, jnp.cos, moved)}


def random_numbers(v, f):
    noise = jax.random.normal(jax.random.key(0), (3, 4))
    return (f["a"] + noise) @ v, lax.stop_gradient(v)


def nothing_varies(v, f):
    del v
    return f["a"] * 2, f["b"], 1.0


def everything_varies(v, f):
    del f
    return v, jnp.zeros(3), v @ v.T


@pytest.mark.parametrize(
    "function",
    [
        products,
        inside_jit,
        remat_and_custom_rules,
        loops,
        random_numbers,
        nothing_varies,
        everything_varies,
    ],
)
def test_both_parts_together_are_the_function(function):
    before, after = split(function, VARYING, FIXED)
    expected = function(VARYING, FIXED)
    found = jax.jit(after)(VARYING, jax.jit(before)(FIXED))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)
    # The second part serves other values, also many at once.
    many = jnp.stack([VARYING, 2 * VARYING])
    mapped = jax.vmap(after, in_axes=(0, None))(many, before(FIXED))
    for k in range(2):
        expected = function(many[k], FIXED)
        jax.tree.map(
            lambda a, b, k=k: np.testing.assert_allclose(a[k], b, rtol=1e-4, atol=1e-6),
            mapped,
            expected,
        )


def test_no_product_without_the_varying_argument_is_left(count_macs):
    before, after = split(products, VARYING, FIXED)
    found = before(FIXED)
    assert count_macs(before, FIXED) == 2 * 3 * 3 * 4
    assert count_macs(after, VARYING, found) == 3 * 4 * 5
    before, after = split(inside_jit, VARYING, FIXED)
    assert count_macs(before, FIXED) == 2 * 3 * 3 * 4 + 3 * 4
    assert count_macs(after, VARYING, before(FIXED)) == 2 * 3 * 4 * 5 + 2 * 3 * 3 * 5


def test_only_what_is_needed_is_kept():
    def function(v, f):
        unused = f["a"] @ f["a"].T
        del unused
        wide = jnp.broadcast_to(f["b"][:, None], (4, 1000))
        return v.T @ wide + jnp.arange(1000.0)

    before, _ = split(function, VARYING, FIXED)
    assert [found.shape for found in before(FIXED)] == [(4,)]


def test_shapes_are_enough():
    shapes = jax.eval_shape(lambda: (VARYING, FIXED))
    before, after = split(products, *shapes)
    np.testing.assert_allclose(after(VARYING, before(FIXED)), products(VARYING, FIXED), rtol=1e-5)
