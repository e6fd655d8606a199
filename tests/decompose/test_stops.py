"""When sweeps end and what they claim then, against sweeps in NumPy and float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_moments import kernel, weighted_error

import tdjax
from tdjax.decompose.als import Swept, iterate
from tdjax.decompose.normal_equations import conjugate_gradients, gain, solve_normal

TOL = 1e-8


def relative(x, approximation):
    x = np.float64(x)
    return np.linalg.norm(x - np.float64(approximation)) / np.linalg.norm(x)


def unfolded(x, mode):
    return np.moveaxis(x, mode, 0).reshape(x.shape[mode], -1)


def test_a_swamp_is_no_convergence():
    """Exact rank 3; in float64 none of these starts rests above an error of 1e-2."""
    random = np.random.default_rng(1)
    random.standard_normal((2, 6))
    x = np.einsum("ar,br,cr->abc", *(random.standard_normal((6, 3)) for _ in range(3)))
    starts = [np.random.default_rng(100 + seed).random((3, 6, 3)) for seed in range(12)]
    run = jax.jit(
        jax.vmap(
            lambda start: tdjax.cp_als(
                x.astype(np.float32), 3, init=tdjax.CP(tuple(start)), max_iters=400, tol=TOL
            )
        )
    )
    _, info = run(jnp.asarray(np.stack(starts), jnp.float32))
    rests = np.asarray(info.converged)
    assert rests.sum() >= 3
    assert (np.asarray(info.error)[rests] < 1e-5).all()
    assert (np.asarray(info.iterations)[~rests] == 400).all()


RANKS = (2, 3, 3)


def orthogonal_iteration(x):
    """Sweeps of HOOI from the sequentially truncated HOSVD, until the error changes by < TOL."""
    factors, core = [], x
    for mode, rank in enumerate(RANKS):
        factors.append(np.linalg.svd(unfolded(core, mode), full_matrices=False)[0][:, :rank])
        core = np.moveaxis(np.tensordot(factors[mode].T, core, (1, mode)), 0, mode)

    def error():
        core = x
        for mode, factor in enumerate(factors):
            core = np.moveaxis(np.tensordot(factor.T, core, (1, mode)), 0, mode)
        return np.sqrt(1 - np.sum(core**2) / np.sum(x**2))

    last = error()
    for sweep in range(1, 201):
        for mode, rank in enumerate(RANKS):
            seen = x
            for k, factor in enumerate(factors):
                if k != mode:
                    seen = np.moveaxis(np.tensordot(factor.T, seen, (1, k)), 0, k)
            factors[mode] = np.linalg.svd(unfolded(seen, mode), full_matrices=False)[0][:, :rank]
        now = error()
        if abs(last - now) < TOL:
            return sweep, now
        last = now
    return 200, last


def test_tucker_sweeps_as_long_as_in_float64():
    stack = np.stack([kernel(4, 5, 6, seed=seed) for seed in range(6)])
    run = jax.jit(jax.vmap(lambda x: tdjax.tucker_als(x, RANKS, max_iters=200, tol=TOL)))
    found, info = run(stack)
    for k, x in enumerate(stack):
        sweeps, error = orthogonal_iteration(np.float64(x))
        assert abs(int(info.iterations[k]) - sweeps) <= 2
        assert bool(info.converged[k]) == (sweeps < 200)
        own = jax.tree.map(lambda leaf, k=k: leaf[k], found)
        assert relative(x, own.to_tensor()) == pytest.approx(error, rel=1e-5)
        errors = np.asarray(info.errors[k])[: int(info.iterations[k])]
        assert (np.diff(errors) <= 0).all()


def test_gain_is_the_fall_of_the_squared_error():
    random = np.random.default_rng(2)
    others, x = random.standard_normal((20, 4)), random.standard_normal((5, 20))
    present = random.standard_normal((5, 4))
    for size in (1.0, 1e-3, 1e-5):
        other = present + size * random.standard_normal((5, 4))
        before, after = (np.sum((x - a @ others.T) ** 2) for a in (present, other))
        arguments = (others.T @ others, x @ others, present, other)
        found = gain(*(jnp.asarray(a, jnp.float32) for a in arguments))
        assert float(found) == pytest.approx(before - after, rel=1e-2)


def test_what_equations_leave_unsolved():
    """Of an eigenvalue below the ridge; nothing where rounding hides none of the solution."""
    turned = np.linalg.qr(np.random.default_rng(4).standard_normal((6, 6)))[0]
    wanted = np.random.default_rng(5).standard_normal((3, 6))
    for least, share in ((1e-7, 0.02), (1e-6, 0.2), (0.3, 0.0)):
        normal = (turned * [1, 1, 1, 0.5, 0.4, least]) @ turned.T
        single = [jnp.asarray(a, jnp.float32) for a in (normal, wanted @ normal, 0 * wanted)]
        found, left = solve_normal(*single)
        short = wanted - np.float64(found)
        remaining = np.sum(short * (short @ normal))
        assert share * remaining <= float(left) <= max(1.1 * remaining, 1e-13)


def test_sweeps_that_leave_their_equations_unsolved_have_not_converged():
    error = jnp.asarray(1e-3)
    for left, converged in ((1e-6, False), (1e-9, True)):
        run = iterate(
            lambda k, left=left: Swept(k, error, jnp.asarray(0.0), jnp.asarray(left)),
            jnp.asarray(0), error, max_iters=3, tol=TOL,
        )  # fmt: skip
        assert int(run[1].iterations) == 1
        assert bool(run[1].converged) == converged


def made(errors, falls=None, tol=TOL, **options):
    """What comes of sweeps with these errors."""
    errors = jnp.asarray(errors)

    def sweep(k):
        return Swept(k + 1, errors[k + 1], None if falls is None else jnp.asarray(falls)[k + 1])

    run = functools.partial(iterate, max_iters=len(errors) - 1, tol=tol, **options)
    state, progress = run(sweep, jnp.asarray(0), errors[0])
    return int(state), int(progress.iterations), bool(progress.converged)


def test_a_change_that_rounding_hides_is_not_claimed():
    assert made([0.6, 0.5, 0.5, 0.4]) == (2, 2, False)
    assert made([0.6, 0.5, 0.5, 0.4], tol=1e-3) == (2, 2, True)
    assert made([6e-3, 5e-3, 5e-3, 4e-3]) == (2, 2, True)
    # Known from the changes themselves, a small fall is one and a larger one is none.
    falls = [0.0, 0.1, 1e-6, 1e-12]
    assert made([0.6, 0.5, 0.5, 0.5, 0.4], [*falls, 0.1]) == (3, 3, True)
    assert made([jnp.inf, 0.5, 0.5], [0.0, 0.0, 1e-12]) == (2, 2, True)


def test_a_sweep_to_nan_or_to_a_worse_state_is_dropped():
    assert made([0.6, 0.5, jnp.nan, 0.1], stop_when_worse=True) == (1, 2, False)
    assert made([0.6, 0.5, 0.7, 0.1], stop_when_worse=True) == (1, 2, False)


def test_cp_keeps_its_best_sweep():
    """2 x 2 x 2 arrays of rank 3 have no best approximation of rank 2: terms grow and cancel."""
    stack = np.random.default_rng(5).standard_normal((24, 2, 2, 2)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), len(stack))
    run = jax.jit(
        jax.vmap(lambda x, key: tdjax.cp_als(x, 2, key=key, init="normal", max_iters=300, tol=0.0))
    )
    found, info = run(stack, keys)
    for k, x in enumerate(stack):
        own = jax.tree.map(lambda leaf, k=k: leaf[k], found)
        error, least = relative(x, own.to_tensor()), np.nanmin(info.errors[k])
        assert error <= 1.001 * least + 1e-4
        assert float(info.error[k]) == pytest.approx(error, rel=1e-2, abs=1e-5)


def test_gradients_stop_where_the_curvature_is_rounding():
    normal = jnp.diag(jnp.array([1.0, -1e-9]))
    product, start = jnp.array([[0.0, 1e-5]]), jnp.array([[2.0, 3.0]])
    found = conjugate_gradients(normal, product.at[0, 0].set(2.0), start, 5)
    assert bool((jnp.abs(found) < 10).all())


def multiplied_out(cores):
    """What the cores hold, free of the rounding of their product."""
    product = functools.reduce(lambda a, b: np.tensordot(a, b, 1), map(np.float64, cores))
    return product[0, ..., 0]


@pytest.mark.parametrize("noise", [1e-6, 1e-5, 1e-3])
def test_tt_als_is_never_worse_than_tt_svd(noise):
    ranks, random = (2, 4, 3), np.random.default_rng(3)
    shapes = ((1, 4, 2), (2, 5, 4), (4, 4, 3), (3, 6, 1))
    run = [jax.jit(lambda x: tdjax.tt_svd(x, ranks)), jax.jit(lambda x: tdjax.tt_als(x, ranks)[0])]
    for _ in range(3):
        cores = tuple(jnp.asarray(random.standard_normal(shape)) for shape in shapes)
        x = np.float64(tdjax.TT(cores).to_tensor())
        x = (x / np.std(x) + noise * random.standard_normal(x.shape)).astype(np.float32)
        svd, als = (relative(x, multiplied_out(f(x).cores)) for f in run)
        assert als <= 1.001 * svd + 5e-8


def test_errors_are_true_in_singular_norms_without_a_ridge():
    ways = [
        jax.jit(lambda x, n: tdjax.tucker_als(x, (None, None, 3, 4), norm=n)),
        jax.jit(lambda x, n: tdjax.cp_als(x, 4, key=jax.random.key(0), norm=n, max_iters=30)),
    ]
    for rank in (1, 12):
        random = np.random.default_rng(0)
        x, half = kernel(2, 3, 5, 6, seed=0), random.standard_normal((30, rank))
        s = half @ half.T
        norm = tdjax.Covariance(jnp.asarray(s, jnp.float32), ridge=0.0)
        for way in ways:
            found, info = way(x, norm)
            dense = np.asarray(found.to_tensor())
            assert np.abs(dense).max() < 1e3
            error = weighted_error(x, dense, s)
            assert float(info.error) == pytest.approx(error, rel=1e-2, abs=2e-3)
