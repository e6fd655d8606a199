import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_moments import alternate, kernel, patch_moment, weighted_error, with_ridge

from tdjax.decompose import cp_als, weighted_cp_on_host
from tdjax.decompose import weighted_cp as module
from tdjax.decompose.formats import CP
from tdjax.decompose.norms import Covariance, Kronecker
from tdjax.decompose.weighted_cp import weighted_cp

SHAPE = (3, 3, 6, 8)
S = with_ridge(patch_moment(6))
NORM = Covariance(jnp.asarray(patch_moment(6), jnp.float32))
KEY = jax.random.key(0)
EQUATION = "ar,br,cr,dr->abcd"
X = kernel(*SHAPE)
# With padding NumPy does the same without a program.
BY = pytest.mark.parametrize("pad", [False, True], ids=["program", "numpy"])


def frobenius_start(x, rank):
    return cp_als(jnp.asarray(x), rank, key=KEY, tol=1e-5)[0]


@BY
@pytest.mark.parametrize("rank", [1, 5, 12])
def test_error_is_at_most_that_of_exact_solves(rank, pad):
    start = frobenius_start(X, rank)
    cp, info = cp_als(jnp.asarray(X), rank, init=start, tol=0.0, norm=NORM, pad=pad)
    error = weighted_error(X, cp.to_tensor(), S)
    np.testing.assert_allclose(info.error, error, rtol=1e-4)
    _, errors = alternate(EQUATION, start.factors, (2, 0, 1, 3), X, S)
    assert error <= 1.001 * errors[-1]
    assert errors[-1] < weighted_error(X, start.to_tensor(), S)


@BY
@pytest.mark.parametrize(
    ("shape", "equation", "order"),
    [
        ((9, 6, 8), "ar,br,cr->abc", (1, 0, 2)),
        ((54, 8), "ar,br->ab", (0, 1)),
    ],
)
def test_other_numbers_of_modes(shape, equation, order, pad):
    x = X.reshape(shape)
    start = frobenius_start(x, 4)
    cp, _ = cp_als(jnp.asarray(x), 4, init=start, norm=NORM, pad=pad)
    _, errors = alternate(equation, start.factors, order, x, S)
    assert weighted_error(x, cp.to_tensor(), S) <= 1.001 * errors[-1]


@BY
def test_kronecker_error_is_at_most_that_of_exact_solves(pad):
    root = np.random.default_rng(5).standard_normal((8, 8)) * np.geomspace(1, 0.1, 8)
    g = with_ridge(root @ root.T)
    norm = Kronecker(NORM.second_moment, jnp.asarray(root @ root.T, jnp.float32))
    start = frobenius_start(X, 4)
    cp, info = cp_als(jnp.asarray(X), 4, init=start, norm=norm, max_iters=200, pad=pad)
    error = weighted_error(X, cp.to_tensor(), S, g)
    np.testing.assert_allclose(info.error, error, rtol=1e-3)
    _, errors = alternate(EQUATION, start.factors, (2, 0, 1, 3), X, S, g)
    assert error <= 1.01 * errors[-1]
    norms = np.stack([np.linalg.norm(factor, axis=0) for factor in cp.factors])
    np.testing.assert_allclose(norms, np.broadcast_to(norms[0], norms.shape), rtol=1e-3)


# From here on sweeps are as many as above, for which there are programs.
@BY
def test_a_given_start_is_not_lost(pad):
    cp, before = cp_als(jnp.asarray(X), 5, key=KEY, norm=NORM, pad=pad)
    _, after = cp_als(jnp.asarray(X), 5, init=cp, norm=NORM, pad=pad)
    assert float(after.errors[0]) <= float(before.error) + 1e-6


@BY
def test_a_start_is_moved_into_the_norm(pad):
    g = jnp.asarray(np.diag(np.geomspace(1, 1e-3, 8)), jnp.float32)
    norm = Kronecker(NORM.second_moment, g)
    cp, before = cp_als(jnp.asarray(X), 4, key=KEY, max_iters=200, norm=norm, pad=pad)
    _, after = cp_als(jnp.asarray(X), 4, init=cp, max_iters=200, norm=norm, pad=pad)
    assert float(after.errors[0]) <= float(before.error) + 1e-5


def test_a_large_window_is_solved_by_gradients(monkeypatch):
    start = frobenius_start(X, 5)
    weight = jnp.asarray(S, jnp.float32)
    _, direct = weighted_cp(jnp.asarray(X), weight, start, 0.0, max_iters=100)
    monkeypatch.setattr(module, "DIRECT_UP_TO", 1)
    # Traced anew.
    solve = jax.jit(lambda *args: weighted_cp.__wrapped__(*args, max_iters=100))
    _, gradients = solve(jnp.asarray(X), weight, start, 0.0)
    assert not np.array_equal(gradients.errors, direct.errors)
    np.testing.assert_allclose(gradients.error, direct.error, rtol=1e-2)
    made = int(gradients.iterations)
    assert (np.diff(np.asarray(gradients.errors)[:made]) <= 0).all()


def test_numpy_solves_a_large_window_by_gradients(monkeypatch):
    given = {"key": KEY, "norm": NORM, "tol": 0.0, "pad": True}
    programs = weighted_cp._cache_size()
    _, direct = cp_als(jnp.asarray(X), 5, **given)
    monkeypatch.setattr(weighted_cp_on_host, "DIRECT_UP_TO", 1)
    _, gradients = cp_als(jnp.asarray(X), 5, **given)
    assert not np.array_equal(gradients.errors, direct.errors)
    np.testing.assert_allclose(gradients.error, direct.error, rtol=1e-2)
    assert weighted_cp._cache_size() == programs


@pytest.mark.parametrize("weights", ["diagonal", "in full"])
def test_numpy_makes_the_same_sweeps(weights):
    moment = jnp.diagonal(NORM.second_moment) if weights == "diagonal" else NORM.second_moment
    root = np.random.default_rng(5).standard_normal((8, 8)).astype(np.float32)
    norm = Kronecker(moment, jnp.asarray(root @ root.T))
    start = {"init": frobenius_start(X, 5), "norm": norm, "max_iters": 8, "tol": 0.0}
    for scale in (1.0, 2.0**40):
        (cp, info), (same, known) = (
            cp_als(scale * jnp.asarray(X), 5, pad=pad, **start) for pad in (True, False)
        )
        np.testing.assert_allclose(info.errors, known.errors, rtol=1e-4)
        np.testing.assert_allclose(info.error, known.error, rtol=1e-4)
        np.testing.assert_allclose(cp.to_tensor(), same.to_tensor(), rtol=0, atol=1e-2 * scale)


@BY
def test_modes_of_one_position(pad):
    x = kernel(1, 1, 54, 8)
    _, info = cp_als(jnp.asarray(x), 4, key=KEY, norm=NORM, max_iters=100, pad=pad)
    values = np.linalg.eigvalsh(x.reshape(54, 8).astype(np.float64).T @ S @ x.reshape(54, 8))
    best = np.sqrt(values[:-4].sum() / values.sum())
    assert best * (1 - 1e-5) <= float(info.error) <= 1.001 * best


@BY
def test_terms_that_cancel_stay_bounded(pad):
    """An array of border rank two: better and better fits have terms without bound."""
    a, b, c = (np.eye(n)[:2] for n in (9, 6, 8))
    x = sum(
        np.einsum("a,b,c->abc", p, q, r)
        for p, q, r in ((a[1], b[0], c[0]), (a[0], b[1], c[0]), (a[0], b[0], c[1]))
    ).astype(np.float32)
    given = {"key": KEY, "init": "normal", "max_iters": 300, "tol": 0.0}
    cp, info = cp_als(jnp.asarray(x), 2, norm=NORM, pad=pad, **given)
    assert np.isfinite(info.error)
    assert max(float(jnp.abs(factor).max()) for factor in cp.factors) < 1e3


@BY
def test_more_terms_than_needed(pad):
    rng = np.random.default_rng(0)
    factors = [rng.standard_normal((n, 2)) for n in SHAPE]
    x = np.einsum(EQUATION, *factors).astype(np.float32)
    cp, info = cp_als(jnp.asarray(x), 5, key=KEY, init="normal", norm=NORM, pad=pad)
    assert float(info.error) < 1e-2
    assert all(np.isfinite(factor).all() for factor in cp.factors)


@BY
def test_dead_terms_do_no_harm(pad):
    start = frobenius_start(X, 5)
    dead = CP(tuple(factor.at[:, 0].set(0.0) for factor in start.factors))
    cp, info = cp_als(jnp.asarray(X), 5, init=dead, norm=NORM, pad=pad)
    assert np.isfinite(info.error)
    assert all(np.isfinite(factor).all() for factor in cp.factors)
    assert float(info.error) < weighted_error(X, start.to_tensor(), S) * 1.1
