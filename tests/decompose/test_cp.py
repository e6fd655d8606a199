import functools
import itertools
import math
import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import parafac

from tdjax.decompose import cp_als
from tdjax.decompose.cp import _cp_als, pairwise_sum, split_point
from tdjax.decompose.cp_starts import drawn_start, initial_factors
from tdjax.decompose.formats import CP
from tdjax.decompose.normal_equations import EXACT_UP_TO, conjugate_gradients, solve_normal

KERNEL = (3, 3, 16, 16)
SWEEPS = 20
STARTS = ("random", "normal", "hosvd")


def outer_products(factors):
    modes = string.ascii_lowercase[: len(factors)]
    subscripts = ",".join(f"{mode}z" for mode in modes)
    return np.einsum(
        f"{subscripts}->{modes}", *(np.asarray(f, np.float64) for f in factors), optimize=True
    )


def gaussian(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def exact(shape, rank, decades=0, seed=0):
    """A sum of `rank` outer products, their sizes falling over the decades."""
    rng = np.random.default_rng(seed)
    factors = [rng.standard_normal((n, rank)) for n in shape]
    factors[0] *= np.logspace(0, -decades, rank)
    return outer_products(factors).astype(np.float32)


def relative(x, approximation):
    x = np.asarray(x, np.float64)
    return np.linalg.norm(x - np.asarray(approximation, np.float64)) / np.linalg.norm(x)


def draw_start(shape, rank, kind="uniform"):
    rng = np.random.default_rng(100)
    draw = rng.random if kind == "uniform" else rng.standard_normal
    return [draw((n, rank)).astype(np.float32) for n in shape]


@functools.cache
def kernel_run(rank):
    """One kernel, one uniform start: the result and its Info."""
    start = CP(tuple(map(jnp.asarray, draw_start(KERNEL, rank))))
    return cp_als(gaussian(KERNEL), rank, init=start, max_iters=SWEEPS, tol=0.0)


def by_tensorly(x, start, sweeps):
    weights = np.ones(start[0].shape[1], np.float32)
    _, factors = parafac(
        x, len(weights), n_iter_max=sweeps, init=(weights, [f.copy() for f in start]), tol=0
    )
    return relative(x, outer_products(factors))


# Below and above the size of the largest mode, and in the realm of both solvers.
RANKS = (10, 60, 100)
assert RANKS[0] < 16 < RANKS[1] <= EXACT_UP_TO < RANKS[2]


@pytest.mark.parametrize("rank", RANKS)
def test_error_is_at_most_tensorlys_on_a_kernel(rank):
    x = gaussian(KERNEL)
    cp, info = kernel_run(rank)
    error = relative(x, outer_products(cp.factors))
    np.testing.assert_allclose(info.error, error, rtol=1e-3)
    assert error <= 1.01 * by_tensorly(x, draw_start(KERNEL, rank), SWEEPS)


@pytest.mark.parametrize("decades", [None, 1, 3])
@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_sweeps_are_those_of_tensorly_where_solved_exactly(decades, kind):
    shape, rank = (12, 10, 8), 20
    x = gaussian(shape) if decades is None else exact(shape, 30, decades)
    start = draw_start(shape, rank, kind)
    init = CP(tuple(map(jnp.asarray, start)))
    _, info = cp_als(x, rank, init=init, max_iters=SWEEPS, tol=0.0)
    for sweeps in (1, 5, SWEEPS):
        np.testing.assert_allclose(
            info.errors[sweeps - 1], by_tensorly(x, start, sweeps), rtol=1e-2
        )


@pytest.mark.parametrize("rank", RANKS)
def test_recorded_errors_fall_to_the_measured_one(rank):
    _, info = kernel_run(rank)
    errors = np.asarray(info.errors)
    assert int(info.iterations) == SWEEPS
    assert not bool(info.converged)
    assert np.isfinite(errors).all()
    assert (np.diff(errors) <= 1e-5).all()
    np.testing.assert_allclose(info.error, errors[-1], rtol=1e-3)


@pytest.mark.parametrize("rank", RANKS)
def test_numpy_makes_the_same_sweeps_without_a_program(rank):
    x, (_, same) = gaussian(KERNEL), kernel_run(rank)
    start = draw_start(KERNEL, rank)
    given = {"init": CP(tuple(map(jnp.asarray, start))), "max_iters": SWEEPS, "pad": True}
    programs, most = _cp_als._cache_size(), 1.01 * by_tensorly(x, start, SWEEPS)
    for scale in (1.0, 2.0**60):
        cp, info = cp_als(scale * x, rank, tol=0.0, **given)
        error = relative(x, outer_products(cp.factors) / scale)
        np.testing.assert_allclose(info.error, error, rtol=1e-4)
        assert error <= most
        if rank <= EXACT_UP_TO:
            # Of such a start the steps in place of solutions are mostly rounding.
            np.testing.assert_allclose(info.errors, same.errors, rtol=1e-4)
    nothing, info = cp_als(0 * x, rank, **given)
    assert not np.any(nothing.to_tensor())
    assert float(info.error) == 0
    assert _cp_als._cache_size() == programs


@pytest.mark.parametrize("init", ["random", "normal"])
def test_numpy_starts_where_programs_do(init):
    x, key = jnp.asarray(gaussian((6, 5, 40))), jax.random.key(1)
    for rank in (30, 150):
        pair = (drawn_start(x, key, rank, init, on_host=on_host) for on_host in (False, True))
        for program, numpy in zip(*(own.factors for own in pair), strict=True):
            np.testing.assert_array_equal(program, numpy)


SMALL = (9, 8, 7)


@jax.jit
def from_many_starts(x):
    keys = jax.random.split(jax.random.key(0), 16)
    return jax.vmap(lambda key: cp_als(x, 4, key=key, init="normal", max_iters=300, tol=0.0))(keys)


def test_exact_recovery_from_a_few_starts():
    for seed in range(3):
        _, info = from_many_starts(jnp.asarray(exact(SMALL, 4, seed=seed)))
        assert np.mean(np.asarray(info.error) < 1e-5) > 0.5


def test_exact_recovery_by_conjugate_gradients():
    shape, rank = (24, 24, 24), EXACT_UP_TO + 16
    x = exact(shape, rank)
    errors = jax.vmap(
        lambda key: cp_als(x, rank, key=key, init="normal", max_iters=150, tol=0.0)[1].error
    )(jax.random.split(jax.random.key(0), 3))
    assert min(errors) < 1e-5


def test_rank_above_need_is_harmless():
    """Four terms sought where two suffice: every factor is rank-deficient."""
    cps, info = from_many_starts(jnp.asarray(exact(SMALL, 2)))
    assert float(jnp.median(info.error)) < 1e-4
    assert float(info.error.max()) < 1e-2
    assert all(bool(jnp.isfinite(factors).all()) for factors in cps.factors)


def test_collapsed_columns_stay_bounded():
    """Starts that merge two columns make the normal equations singular for good."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        bases = [np.linalg.qr(rng.standard_normal((n, 4)))[0] for n in SMALL]
        bases[0] = bases[0] * np.logspace(0, -3, 4)
        _, info = from_many_starts(jnp.asarray(outer_products(bases), jnp.float32))
        # The first term alone leaves a relative error of 0.1.
        assert float(info.error.max()) < 0.1
        assert float(jnp.diff(info.errors, axis=1).max()) < 0.02


def test_full_rank_reproduces():
    x = gaussian((3, 4, 5))
    cp, _ = cp_als(x, 12, key=jax.random.key(0), init="normal", max_iters=400)
    assert relative(x, cp.to_tensor()) < 1e-3


def test_error_falls_with_rank():
    errors = [float(kernel_run(rank)[1].error) for rank in RANKS]
    assert all(low < high for high, low in itertools.pairwise(errors))


def test_tolerance_ends_the_sweeps():
    x = gaussian((6, 5, 4))
    key = jax.random.key(1)
    _, loose = cp_als(x, 2, key=key, tol=1e-2)
    cp, tight = cp_als(x, 2, key=key, tol=1e-5)
    assert 1 < int(loose.iterations) < int(tight.iterations) < 100
    for info, tol in ((loose, 1e-2), (tight, 1e-5)):
        made = int(info.iterations)
        steps = np.abs(np.diff(np.asarray(info.errors)[:made]))
        assert bool(info.converged)
        assert (steps[:-1] >= tol).all()
        assert steps[-1] < tol
        assert np.isnan(np.asarray(info.errors)[made:]).all()
    np.testing.assert_allclose(tight.error, relative(x, cp.to_tensor()), rtol=1e-4)


def test_norms_are_spread_over_the_factors():
    cp, _ = kernel_run(10)
    norms = np.stack([np.linalg.norm(factor, axis=0) for factor in cp.factors])
    np.testing.assert_allclose(norms, np.broadcast_to(norms[0], norms.shape), rtol=1e-4)


def test_starts():
    x = gaussian((6, 5, 4))
    key = jax.random.key(1)
    results = {}
    for init in ("random", "hosvd"):
        first, again = (cp_als(x, 2, key=key, init=init)[0].to_tensor() for _ in range(2))
        np.testing.assert_array_equal(first, again)
        results[init] = first
    np.testing.assert_array_equal(cp_als(x, 2, key=key)[0].to_tensor(), results["random"])
    # The singular vectors need no key while every mode has enough of them.
    np.testing.assert_array_equal(cp_als(x, 2, init="hosvd")[0].to_tensor(), results["hosvd"])


def test_initial_factors():
    x, key = jnp.asarray(gaussian((6, 5, 40))), jax.random.key(1)
    start = jax.jit(initial_factors, static_argnums=(1, 3))
    uniform, normal, hosvd = (start(x, 30, key, init) for init in STARTS)
    for factors in (uniform, normal, hosvd):
        assert [factor.shape for factor in factors] == [(6, 30), (5, 30), (40, 30)]
    drawn = np.concatenate(uniform)
    assert 0 <= drawn.min() < 0.05
    assert 0.95 < drawn.max() < 1
    drawn = np.concatenate(normal)
    assert abs(drawn.mean()) < 0.1
    assert abs(drawn.std() - 1) < 0.1
    for mode, factor in enumerate(hosvd):
        matrix = np.moveaxis(np.asarray(x), mode, 0).reshape(x.shape[mode], -1)
        known = min(30, *matrix.shape)
        expected = np.linalg.svd(matrix)[0][:, :known]
        basis = np.asarray(factor)[:, :known]
        np.testing.assert_allclose(basis @ basis.T, expected @ expected.T, atol=1e-4)
        np.testing.assert_array_equal(factor[:, known:], normal[mode][:, known:])


def test_a_result_is_a_start():
    x = gaussian((6, 5, 4))
    cp, before = cp_als(x, 2, key=jax.random.key(1), tol=1e-3)
    _, after = cp_als(x, 2, init=cp, tol=1e-3)
    assert float(after.errors[0]) <= float(before.error) + 1e-6


def test_scale_of_a_start_does_not_matter():
    x = gaussian((6, 5, 4))
    start = draw_start((6, 5, 4), 2)
    errors = [
        cp_als(x, 2, init=CP(tuple(jnp.asarray(c * f) for f in start)), tol=0.0)[1].errors
        for c in (1.0, 1e-4, 1e4)
    ]
    for other in errors[1:]:
        np.testing.assert_allclose(other, errors[0], rtol=1e-3)


def spd(rank, condition, seed=0):
    """Symmetric positive definite with unit diagonal."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((rank, rank)))[0]
    matrix = (basis * np.geomspace(1, 1 / condition, rank)) @ basis.T
    scale = np.sqrt(np.diag(matrix))
    return matrix / scale / scale[:, None]


@pytest.mark.parametrize("rank", [1, 6])
def test_conjugate_gradients_solve_in_as_many_steps_as_unknowns(rank):
    normal, product = spd(rank, 10), gaussian((5, rank))
    expected = np.linalg.solve(normal, product.T.astype(np.float64)).T
    found = conjugate_gradients(
        jnp.asarray(normal, jnp.float32), jnp.asarray(product), jnp.zeros((5, rank)), rank
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_each_conjugate_gradient_step_lowers_the_energy_of_every_row():
    normal, product, start = spd(12, 1e4), gaussian((5, 12)), gaussian((5, 12), 1)

    def energy(rows):
        rows = np.asarray(rows, np.float64)
        return np.sum(rows * (rows @ normal), axis=1) - 2 * np.sum(rows * product, axis=1)

    arguments = jnp.asarray(normal, jnp.float32), jnp.asarray(product), jnp.asarray(start)
    energies = [energy(conjugate_gradients(*arguments, steps)) for steps in (0, 1, 3, 5)]
    for before, after in itertools.pairwise(energies):
        assert (after < before).all()


def test_conjugate_gradients_rest_at_the_solution_and_at_zero():
    identity, rows = jnp.eye(4), jnp.asarray(gaussian((3, 4)))
    np.testing.assert_array_equal(conjugate_gradients(identity, rows, rows, 5), rows)
    zeros = jnp.zeros((3, 4))
    np.testing.assert_array_equal(conjugate_gradients(0 * identity, zeros, zeros, 5), zeros)


@pytest.mark.parametrize("condition", [10, 1e4])
def test_solve_normal_up_to_the_exact_rank(condition):
    normal, product = spd(12, condition), gaussian((5, 12))
    solution, _ = solve_normal(
        jnp.asarray(normal, jnp.float32), jnp.asarray(product), jnp.zeros((5, 12))
    )
    expected = np.linalg.solve(normal, product.T.astype(np.float64)).T
    tolerance = 1e-6 * np.linalg.cond(normal)
    assert np.linalg.norm(solution - expected) < tolerance * np.linalg.norm(expected)


def test_solve_normal_of_singular_equations():
    """Two equal columns: the fit is exact, and the solution no longer than need be."""
    unit = gaussian((12, 5))
    unit /= np.linalg.norm(unit, axis=0)
    unit = np.concatenate([unit, unit[:, :1]], axis=1)
    wanted = gaussian((4, 6), 1)
    normal = jnp.asarray(unit.T @ unit)
    product = jnp.asarray(wanted @ unit.T @ unit)
    for limit in (EXACT_UP_TO, 0):
        solution, _ = solve_normal(normal, product, jnp.zeros((4, 6)), exact_up_to=limit)
        if limit:
            assert relative(wanted @ unit.T, solution @ unit.T) < 1e-3
        assert np.linalg.norm(solution) < 2 * np.linalg.norm(wanted)


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=2, max_size=5))
def test_split_point_has_the_least_sum(shape):
    sums = [math.prod(shape[:k]) + math.prod(shape[k:]) for k in range(1, len(shape))]
    assert sums[split_point(shape) - 1] == min(sums)


@pytest.mark.parametrize(("size", "axis"), [(1, 0), (7, 0), (8, 1), (11, 1)])
def test_pairwise_sum_is_the_sum(size, axis):
    x = gaussian((size, size, 2))
    np.testing.assert_allclose(pairwise_sum(jnp.asarray(x), axis), x.sum(axis), rtol=0, atol=1e-5)


def test_errors():
    x = gaussian((6, 5, 4))
    key = jax.random.key(0)
    for rank in (0, -1, 21):
        with pytest.raises(ValueError, match=rf"cp_als: rank {rank} of .* not between 1 and 20"):
            cp_als(x, rank, key=key)
    for init in ("random", "normal"):
        with pytest.raises(ValueError, match=f"init '{init}' draws random numbers, pass key="):
            cp_als(x, 2, init=init)
    with pytest.raises(ValueError, match="init 'hosvd' draws random numbers, pass key="):
        cp_als(x, 5, init="hosvd")
    with pytest.raises(ValueError, match="init 'svd': known are random, normal, hosvd"):
        cp_als(x, 2, key=key, init="svd")
    with pytest.raises(ValueError, match="max_iters must be at least 1, got 0"):
        cp_als(x, 2, key=key, max_iters=0)
    for shape, rank in (((6, 5, 4), 3), ((6, 4, 5), 2), ((6, 5), 2)):
        start = CP(tuple(map(jnp.asarray, draw_start(shape, rank))))
        with pytest.raises(ValueError, match=r"expected \(6, 5, 4\) and 2"):
            cp_als(x, 2, init=start)
