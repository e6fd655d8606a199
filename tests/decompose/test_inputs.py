"""What holds for every decomposition: the arrays that it takes, and `jit` and `vmap`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdjax.decompose import cp_als, hosvd, truncated_svd, tt_svd, tucker_als
from tdjax.decompose.inputs import as_float, check_ranks

SHAPE = (6, 5, 4)
KEY = jax.random.key(0)

METHODS = {
    "svd": lambda x: truncated_svd(x.reshape(6, 20), 3),
    "cp": lambda x: cp_als(x, 2, key=KEY, tol=1e-5)[0],
    "hosvd": lambda x: hosvd(x, (2, None, 3)),
    "tucker": lambda x: tucker_als(x, (2, None, 3), max_iters=15)[0],
    "tt": lambda x: tt_svd(x, (3, 2)),
}
JITTED = {name: jax.jit(decompose) for name, decompose in METHODS.items()}
EVERY = pytest.mark.parametrize("name", METHODS)


def tensor(seed=0, shape=SHAPE):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def dense(result):
    return np.asarray(result.to_tensor()).reshape(SHAPE)


def dtypes(result):
    return {leaf.dtype for leaf in jax.tree.leaves(result)}


def relative(x, result):
    return np.linalg.norm(x - dense(result)) / np.linalg.norm(x)


@EVERY
def test_jit_equals_eager(name):
    x = tensor()
    np.testing.assert_allclose(dense(JITTED[name](x)), dense(METHODS[name](x)), atol=1e-4)


def test_jit_equals_op_by_op():
    decompose, x = METHODS["tt"], tensor()
    expected = dense(decompose(x))
    with jax.disable_jit():
        np.testing.assert_allclose(dense(decompose(x)), expected, atol=1e-4)


@EVERY
def test_vmap_over_tensors_is_a_loop(name):
    decompose = METHODS[name]
    several = jnp.stack([tensor(seed) for seed in range(3)])
    together = jax.vmap(decompose)(several)
    assert type(together) is type(decompose(several[0]))
    for k, x in enumerate(several):
        one = jax.tree.map(lambda leaf, k=k: leaf[k], together)
        np.testing.assert_allclose(dense(one), dense(decompose(x)), atol=1e-4)


def test_vmap_over_keys_is_a_loop():
    x = tensor()

    def decompose(key):
        return cp_als(x, 2, key=key, tol=1e-5)

    keys = jax.random.split(KEY, 3)
    together, infos = jax.vmap(decompose)(keys)
    for k, key in enumerate(keys):
        alone, info = decompose(key)
        one = jax.tree.map(lambda leaf, k=k: leaf[k], together)
        np.testing.assert_allclose(dense(one), dense(alone), atol=1e-3)
        np.testing.assert_allclose(infos.errors[k], info.errors, atol=1e-4)
    assert len(set(np.asarray(infos.error).tolist())) == 3


def test_vmap_stops_each_by_itself():
    x = tensor()
    several = jnp.stack([x, jnp.zeros_like(x), tensor(1)])

    def decompose(y):
        return tucker_als(y, (2, None, 3), max_iters=15, tol=1e-4)[1]

    together = jax.vmap(decompose)(several)
    for k, y in enumerate(several):
        alone = decompose(y)
        assert int(together.iterations[k]) == int(alone.iterations)
        np.testing.assert_allclose(together.errors[k], alone.errors, atol=1e-5)


@EVERY
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_worked_on_in_float32(name, dtype):
    x = tensor().astype(dtype)
    result = METHODS[name](x)
    assert dtypes(result) == {jnp.dtype(jnp.float32)}
    np.testing.assert_array_equal(dense(result), dense(METHODS[name](x.astype(jnp.float32))))


@EVERY
def test_float64_where_the_caller_enables_it(name, float64):
    x = tensor()
    result = METHODS[name](x)
    single, error = dense(result), relative(x, result)
    with float64():
        wide = jnp.asarray(np.asarray(x), jnp.float64)
        result = METHODS[name](wide)
        assert dtypes(result) == {jnp.dtype(jnp.float64)}
        if name == "tucker":  # Another precision ends HOOI after another number of sweeps.
            assert relative(wide, result) == pytest.approx(error, abs=1e-3)
        elif name != "cp":  # Its start is drawn in another precision.
            np.testing.assert_allclose(dense(result), single, atol=1e-4)
        if name in ("svd", "tt"):
            assert dtypes(METHODS[name](x)) == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", ["svd", "hosvd", "tt"])
def test_float64_is_exact_to_float64(name, float64):
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal((n, 2)) for n in SHAPE)
    with float64():
        x = jnp.asarray(np.einsum("ar,br,cr->abc", a, b, c))
        assert relative(x, METHODS[name](x)) < 1e-12


@EVERY
def test_integers_and_lists_are_taken(name):
    x = np.arange(120).reshape(SHAPE)
    expected = dense(METHODS[name](x.astype(np.float32)))
    np.testing.assert_array_equal(dense(METHODS[name](x)), expected)


@EVERY
@settings(max_examples=8, deadline=None)
@given(exponent=st.floats(-9, 9))
def test_scale_does_not_matter(name, exponent):
    x, scale = tensor(), np.float32(10.0**exponent)
    np.testing.assert_allclose(
        relative(x * scale, METHODS[name](x * scale)), relative(x, METHODS[name](x)), rtol=1e-3
    )


@EVERY
def test_zero_tensor(name):
    result = METHODS[name](jnp.zeros(SHAPE))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(result))
    np.testing.assert_array_equal(dense(result), np.zeros(SHAPE))


def test_information_on_a_zero_tensor():
    x = jnp.zeros(SHAPE)
    for _, info in (
        cp_als(x, 2, key=KEY),
        tucker_als(x, (2, None, 3), max_iters=15),
    ):
        assert float(info.error) == 0
        assert bool(info.converged)
    assert tt_svd(x, eps=0.1).ranks == (1, 1)


@EVERY
def test_arrays_that_are_refused(name):
    decompose = METHODS[name]
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="holds NaN or Inf"):
            decompose(tensor().at[1, 2, 3].set(bad))
    with pytest.raises(TypeError, match="complex arrays are not supported, got complex64"):
        decompose(tensor().astype(jnp.complex64))


@EVERY
def test_values_are_not_looked_at_under_jit(name):
    result = JITTED[name](tensor().at[0, 0, 0].set(np.nan))
    assert np.isnan(dense(result)).any()


def test_shapes_that_are_refused():
    for decompose in (
        lambda x: cp_als(x, 1, key=KEY),
        lambda x: tucker_als(x, (1,) * x.ndim),
        lambda x: tt_svd(x, (1,) * (x.ndim - 1)),
    ):
        for shape in ((), (5,), (3, 0, 2)):
            with pytest.raises(ValueError, match="non-empty array of two modes or more, got shape"):
                decompose(jnp.zeros(shape))
    with pytest.raises(ValueError, match="expected a non-empty array"):
        truncated_svd(jnp.zeros((0, 3)), 1)


def test_as_float():
    assert as_float(np.ones((2, 2), np.int32)).dtype == jnp.float32
    assert as_float([[1.0, 2.0]]).shape == (1, 2)
    x = tensor()
    assert as_float(x) is x or np.array_equal(as_float(x), x)
    with pytest.raises(ValueError, match=r"expected an array of 2 modes, got shape \(6, 5, 4\)"):
        as_float(x, ndim=2)


def test_check_ranks():
    assert check_ranks([2, 3], (2, 3), "it") == (2, 3)
    with pytest.raises(ValueError, match=r"it: 2 ranks are needed, got \(1,\)"):
        check_ranks([1], (2, 3), "it")
    for ranks in ((0, 3), (3, 3)):
        with pytest.raises(
            ValueError,
            match=rf"it: rank {ranks[0]} of .* between 1 and 2; full ranks are \(2, 3\)",
        ):
            check_ranks(ranks, (2, 3), "it")
