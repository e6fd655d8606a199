import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tdjax.functions.sides import Side
from tdjax.trace.views import passed_on, view_of


def shapes_of(rng, size):
    """A shape with so many entries, of factors in any order, some of them 1."""
    factors = [2] * int(np.log2(size))
    shape = [1] * int(rng.integers(1, 5))
    for factor in factors:
        shape[int(rng.integers(len(shape)))] *= factor
    return tuple(shape)


def views(rng, shape):
    """Functions that lay an array out anew, one after the other."""
    for _ in range(5):
        if rng.integers(2):
            order = tuple(map(int, rng.permutation(len(shape))))
            yield lambda x, order=order: jax.lax.transpose(x, order)
            shape = tuple(shape[axis] for axis in order)
        else:
            shape = shapes_of(rng, int(np.prod(shape)))
            yield lambda x, shape=shape: jax.lax.reshape(x, shape)


@pytest.mark.parametrize("seed", range(2))
def test_parts_say_what_every_entry_of_a_view_is(seed):
    rng, seen = np.random.default_rng(seed), 0
    for _ in range(6):
        shape = shapes_of(rng, 32)
        array = jnp.arange(32).reshape(shape)
        value, x = view_of(0, shape), array
        for function in views(rng, shape):
            for eqn in jax.make_jaxpr(function)(x).eqns:
                (value,) = passed_on(eqn, [value])
            x = function(x)
            side = Side(value.parts)
            assert side.whole
            np.testing.assert_array_equal(side.spread(array.reshape(-1)), x)
            np.testing.assert_array_equal(side.merged(x), array.reshape(-1))
            seen += 1
    assert seen > 15
