"""Arrays and norms of any unit: what is found and said is what it is at scale 1."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_moments import kernel, matrix, patch_moment, weighted_error

import tdjax
from tdjax.decompose import scale, weighted_als
from tdjax.decompose.sparse import Operator, alternate, scattered
from tdjax.evaluate.errors import data_errors

SHAPE = (2, 3, 5, 6)
X = kernel(*SHAPE)
D = 30
S = patch_moment(5)[:D, :D].astype(np.float32)
KEY = jax.random.key(0)
RANDOM = np.random.default_rng(11)
SCALES = (1e-35, 1e-20, 1e18, 1e35)


def rows(x):
    return x.reshape(-1, x.shape[-1])


PLAIN = {
    "svd": lambda x: (tdjax.truncated_svd(rows(x), 3), None),
    "grouped": lambda x: tdjax.grouped_svd(rows(x), 2, 3),
    "cp": lambda x: tdjax.cp_als(x, 4, key=KEY, max_iters=20),
    "tucker": lambda x: tdjax.tucker_als(x, (None, None, 3, 4), max_iters=20),
    "tt_svd": lambda x: (tdjax.tt_svd(x, (2, 4, 4)), None),
    "tt": lambda x: tdjax.tt_als(x, (2, 4, 4), max_iters=10),
}
WEIGHTED = {
    "svd": lambda x, norm: (tdjax.truncated_svd(rows(x), 3, norm=norm), None),
    "tucker": lambda x, norm: tdjax.tucker_als(x, (None, None, 3, 4), max_iters=5, norm=norm),
    "tt": lambda x, norm: tdjax.tt_als(x, (2, 4, 4), max_iters=5, norm=norm),
}


def at(x, unit):
    """The array in another unit, in float32; a few of its smallest entries may be lost."""
    return jnp.asarray((np.float64(x) * unit).astype(np.float32))


def in_units(found, unit):
    """What a format stands for, in float64 and in units of `unit`."""
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found))
    return (np.asarray(found.to_tensor(), np.float64) / unit).reshape(SHAPE)


def relative(x, approximation):
    x = np.float64(x)
    return np.linalg.norm(x - approximation) / np.linalg.norm(x)


@pytest.mark.parametrize("name", PLAIN)
def test_decompositions_do_not_depend_on_the_unit(name):
    run = jax.jit(PLAIN[name])
    expected = relative(X, in_units(run(at(X, 1.0))[0], 1.0))
    for unit in (*SCALES, *10.0 ** RANDOM.uniform(-35, 35, 3)):
        found, info = run(at(X, unit))
        assert relative(X, in_units(found, unit)) == pytest.approx(expected, rel=1e-3)
        if info is not None:
            assert float(info.error) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted_decompositions_depend_on_neither_unit(name):
    run = jax.jit(lambda x, s: WEIGHTED[name](x, tdjax.Covariance(s)))
    expected = weighted_error(X, in_units(run(at(X, 1.0), at(S, 1.0))[0], 1.0), S)
    for unit, other in (*zip(SCALES, RANDOM.permutation(SCALES), strict=True), (1e-33, 1e-33)):
        found, info = run(at(X, unit), at(S, other))
        assert weighted_error(X, in_units(found, unit), S) == pytest.approx(expected, rel=1e-2)
        if info is not None:
            assert float(info.error) == pytest.approx(expected, rel=1e-2)


def test_ordinary_units_change_no_bit():
    """Powers of two whose roots are powers of two scale every factor exactly."""
    unit = 2.0**scale.STEP
    for name in ("svd", "cp", "tucker", "tt"):
        run = jax.jit(PLAIN[name])
        one, other = (run(at(X, u))[0].to_tensor() for u in (1.0, unit))
        np.testing.assert_array_equal(np.asarray(one) * unit, other)
    plain, _ = jax.jit(PLAIN["tucker"])(at(X, 1e-3))
    for factor in plain.factors[2:]:
        np.testing.assert_allclose(factor.T @ factor, np.eye(factor.shape[1]), atol=1e-5)


def test_units_of_a_batch():
    units = np.array([1e-30, 1.0, 1e30])
    stack = jnp.stack([at(rows(X), unit) for unit in units])
    found = jax.vmap(lambda x: tdjax.truncated_svd(x, 3).to_tensor())(stack)
    one = np.asarray(tdjax.truncated_svd(rows(X), 3).to_tensor(), np.float64)
    for unit, own in zip(units, np.asarray(found, np.float64), strict=True):
        np.testing.assert_allclose(own / unit, one, rtol=0, atol=1e-4)


def test_norms_and_errors_in_every_unit():
    near = X + np.float32(0.1) * kernel(*SHAPE, seed=3)
    g = np.diag(np.geomspace(1, 0.1, 6)).astype(np.float32)
    for unit, other in ((1.0, 1.0), *zip(SCALES, RANDOM.permutation(SCALES), strict=True)):
        x, y = at(X, unit), at(near, unit)
        plain = relative(X, near)
        errors = tdjax.weight_errors(x, y)
        absolute = np.linalg.norm(np.float64(X) - near)
        assert float(errors["relative"]) == pytest.approx(plain, rel=1e-3)
        assert float(errors["absolute"]) / unit == pytest.approx(absolute, rel=1e-3)
        assert float(errors["scaled"]) / unit == pytest.approx(absolute / X.size, rel=1e-3)
        assert float(tdjax.Frobenius().relative_error(x, y)) == pytest.approx(plain, rel=1e-3)
        s, weights = at(S, other), weighted_error(X, near, S)
        norm = tdjax.Covariance(s, ridge=0.0)
        assert float(norm.relative_error(x, y)) == pytest.approx(weights, rel=1e-3)
        both = weighted_error(X, near, S, g)
        found = data_errors(x, y, s[None], jnp.asarray(g)[None])
        assert float(found["relative"]) == pytest.approx(both, rel=1e-3)
        kron = tdjax.Kronecker(s, jnp.asarray(g), ridge=0.0)
        assert float(kron.relative_error(x, y)) == pytest.approx(both, rel=1e-3)
    # What the dtype holds, and what it does not.
    assert float(tdjax.weight_errors(at(X, 1e37), at(-X, 1e37))["relative"]) == pytest.approx(2.0)
    huge = jnp.full((2, 3), 3e38)
    assert float(tdjax.weight_errors(huge, -huge)["relative"]) == pytest.approx(2.0)
    assert float(tdjax.weight_errors(huge, -huge)["absolute"]) == np.inf
    assert float(tdjax.Covariance(at(S, 1e-20)).inner(at(X, 1e28), at(X, 1e-8))) == pytest.approx(
        np.sum(matrix(X) * (S @ matrix(X))), rel=1e-3
    )


def test_small_errors_of_small_arrays_and_of_half_precision():
    x = rows(X)
    ways = (lambda x, y: tdjax.weight_errors(x, y)["relative"], tdjax.Frobenius().relative_error)
    for unit, size in ((1e-36, 1e-5), (1e-34, 1e-3), (1e30, 1e-5)):
        one, other = at(x, unit), at(x * (1 + size * RANDOM.standard_normal(x.shape)), unit)
        expected = relative(np.float64(one) / unit, np.float64(other) / unit)
        for error in ways:
            assert float(error(one, other)) == pytest.approx(expected, rel=1e-3)
    # The squares of these are beyond half precision, as are sums of them.
    half = jnp.asarray(300 * x, jnp.float16)
    other = half * jnp.float16(1.01)
    norm = tdjax.Covariance(jnp.eye(D))
    expected = relative(half, np.float64(other))
    for error in (*ways, norm.relative_error):
        assert float(error(half, other)) == pytest.approx(expected, rel=1e-4)
    squared = np.sum(np.float64(half) ** 2)
    for found in (norm.inner(half, half), jnp.vdot(half, norm.weigh(half))):
        assert float(found) == pytest.approx(squared, rel=1e-4)


def test_errors_against_zeros():
    zero, one = jnp.zeros((4, 3)), jnp.full((4, 3), 1e-30)
    norms = (
        tdjax.Frobenius(),
        tdjax.Covariance(jnp.eye(4)),
        tdjax.Kronecker(jnp.eye(4), jnp.eye(3)),
    )
    assert all(np.isnan(norm.relative_error(zero, zero.at[0].set(jnp.nan))) for norm in norms)
    ways = [norm.relative_error for norm in norms]
    ways += [
        lambda x, y: tdjax.weight_errors(x, y)["relative"],
        lambda x, y: data_errors(x, y, jnp.eye(4)[None])["relative"],
    ]
    for error in ways:
        assert [float(error(x, y)) for x, y in ((zero, zero), (zero, one), (one, zero))] == [
            0.0,
            np.inf,
            1.0,
        ]
    blind = jnp.diag(jnp.array([1.0, 0.0, 0.0, 0.0]))
    unseen = one.at[0].set(0.0)
    assert float(data_errors(unseen, zero, blind[None])["relative"]) == 0.0
    assert float(data_errors(unseen, one, blind[None])["relative"]) == np.inf


@functools.cache
def corrected():
    @jax.jit
    def run(x, s):
        norm = tdjax.Covariance(s)
        return alternate(
            x,
            10,
            lambda rest, _: tdjax.truncated_svd(rest, 2, norm=norm),
            tdjax.LowRank.to_tensor,
            tdjax.LowRank(jnp.zeros((D, 2)), jnp.zeros((2, 6))),
            operator=Operator(norm.weigh, norm.diagonal(x)),
            rounds=5,
        )

    return run


def test_corrections_and_any_format_in_every_unit():
    x, run = rows(X), corrected()
    start = tdjax.truncated_svd(x, 2)
    for unit, other in ((1e-25, 1e20), (1e25, 1e-20)):
        found = run(at(x, unit), at(S, other))
        whole = found.part.to_tensor() + scattered(found.values, found.indices, x.shape)
        error = weighted_error(x, np.asarray(whole, np.float64) / unit, S)
        expected = run(at(x, 1.0), at(S, 1.0)).errors
        assert error == pytest.approx(float(jnp.nanmin(expected)), rel=1e-2)
        first = start.scaled(round(np.log2(unit)))
        weigh = functools.partial(jnp.matmul, at(S, other))
        generic, info = jax.jit(
            lambda x, first, weigh=weigh: weighted_als(x, first, weigh, max_iters=5)
        )(at(x, unit), first)
        error = weighted_error(x, np.asarray(generic.to_tensor(), np.float64) / unit, S)
        assert float(info.error) == pytest.approx(error, rel=1e-2)
        assert error <= weighted_error(x, start.to_tensor(), S)


@pytest.mark.parametrize("exponent", [-110, 7, 119])
def test_formats_are_scaled_exactly_and_within_their_range(exponent):
    formats = (
        tdjax.truncated_svd(rows(X), 3),
        tdjax.tucker_als(X, (None, None, 3, 4), max_iters=1)[0],
        tdjax.tt_svd(X, (2, 4, 4)),
        tdjax.CP(tuple(jnp.ones((n, 2)) for n in SHAPE)),
    )
    for found in formats:
        scaled = found.scaled(exponent)
        largest = [float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(scaled)]
        assert 2.0**-80 < min(largest) <= max(largest) < 2.0**80
        np.testing.assert_allclose(
            np.ldexp(np.float64(scaled.to_tensor()), -exponent), found.to_tensor(), rtol=1e-5,
            atol=1e-6,
        )  # fmt: skip


def test_powers_of_two_are_exact():
    exponents = np.arange(-126, 128)
    np.testing.assert_array_equal(
        scale.power_of_two(jnp.asarray(exponents), jnp.dtype("float32")), np.ldexp(1.0, exponents)
    )
    for unit in (2.0**-126, 1e-30, 2.0**-14, 1.0, 1023.0, 1024.0, 3e38):
        one, exponent = scale.unit(jnp.float32([0.0, -unit]))
        assert 2.0**-14 <= float(-one[1]) < 2.0**10
        np.testing.assert_array_equal(
            np.ldexp(np.float64(one), int(exponent))[1], np.float32(-unit)
        )
    assert int(scale.exponent_of(jnp.zeros(3))) == 0
