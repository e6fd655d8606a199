import jax.numpy as jnp
import numpy as np
import pytest
from plain_moments import (
    alternate,
    kernel,
    matrix,
    patch_moment,
    weighted_error,
    with_ridge,
)

from tdjax.decompose import hosvd, truncated_svd, tucker_als
from tdjax.decompose.moment import compress, fit_rest, image_of, lay_out
from tdjax.decompose.norms import Covariance, Kronecker

SHAPE = (3, 3, 6, 8)
S = with_ridge(patch_moment(6))
NORM = Covariance(jnp.asarray(patch_moment(6), jnp.float32))
X = kernel(*SHAPE)


def dense_oracle(x, ranks, s, g=None, sweeps=100):
    """From the Frobenius solution, each factor in turn by its normal equations."""
    start = hosvd(jnp.asarray(x), ranks)
    modes = "abcd"
    letters = [mode.upper() if rank else mode for mode, rank in zip(modes, ranks, strict=True)]
    pairs = [mode + mode.upper() for mode, rank in zip(modes, ranks, strict=True) if rank]
    equation = f"{','.join([''.join(letters), *pairs])}->{modes}"
    factors = [start.core, *(f for f in start.factors if f is not None)]
    order = [*range(1, len(factors)), 0]
    return alternate(equation, factors, order, x, s, g, sweeps)[1]


@pytest.mark.parametrize(
    "ranks",
    [(None, None, 3, 4), (None, None, 3, None), (None, None, None, 4), (2, None, 3, 4)],
)
def test_error_is_at_most_that_of_exact_solves(ranks):
    for seed in (1, 2):
        x = kernel(*SHAPE, seed=seed)
        tucker, info = tucker_als(jnp.asarray(x), ranks, norm=NORM)
        errors = dense_oracle(x, ranks, S)
        error = weighted_error(x, tucker.to_tensor(), S)
        np.testing.assert_allclose(info.error, error, rtol=1e-4)
        assert tucker.ranks == tuple(rank for rank in ranks if rank)
        assert error <= 1.001 * errors[-1]


def test_kronecker_error_is_at_most_that_of_exact_solves():
    root = np.random.default_rng(5).standard_normal((8, 8)) * np.geomspace(1, 0.1, 8)
    g = with_ridge(root @ root.T)
    norm = Kronecker(NORM.second_moment, jnp.asarray(root @ root.T, jnp.float32))
    tucker, info = tucker_als(jnp.asarray(X), (None, None, 3, 4), norm=norm)
    error = weighted_error(X, tucker.to_tensor(), S, g)
    np.testing.assert_allclose(info.error, error, rtol=1e-3)
    assert error <= 1.001 * dense_oracle(X, (None, None, 3, 4), S, g)[-1]


@pytest.mark.parametrize("rank", [2, 7])
def test_tail_eigenvalues_bound_the_error_from_below(rank):
    """Any Tucker of output rank r is a matrix of rank r, whose least error is known."""
    values = np.linalg.eigvalsh(matrix(X).T @ S @ matrix(X))
    bound = np.sqrt(values[:-rank].sum() / values.sum())
    for input_rank in (2, 5):
        tucker, _ = tucker_als(jnp.asarray(X), (None, None, input_rank, rank), norm=NORM)
        assert weighted_error(X, tucker.to_tensor(), S) >= bound * (1 - 1e-5)
    attained, info = tucker_als(jnp.asarray(X), (None, None, None, rank), norm=NORM)
    assert (int(info.iterations), bool(info.converged)) == (0, True)
    np.testing.assert_allclose(weighted_error(X, attained.to_tensor(), S), bound, rtol=1e-4)


def test_a_matrix_is_low_rank():
    rank, x = 2, jnp.asarray(X.reshape(-1, 8))
    best = weighted_error(x, truncated_svd(x, rank, norm=NORM).to_tensor(), S)
    tucker, _ = tucker_als(x, (rank, rank), norm=NORM)
    np.testing.assert_allclose(weighted_error(x, tucker.to_tensor(), S), best, rtol=1e-3)


def test_full_ranks_reproduce():
    tucker, info = tucker_als(jnp.asarray(X), (None, None, 6, 8), norm=NORM)
    np.testing.assert_allclose(tucker.to_tensor(), X, rtol=0, atol=1e-2)
    assert float(info.error) < 1e-4


def test_exact_recovery():
    """A kernel of these ranks, from inputs that reach all directions."""
    rng = np.random.default_rng(0)
    x = np.einsum(
        "abrs,cr,ts->abct", *(rng.standard_normal(n) for n in [(3, 3, 2, 3), (6, 2), (8, 3)])
    )
    _, info = tucker_als(jnp.asarray(x, jnp.float32), (None, None, 2, 3), norm=NORM)
    assert float(info.error) < 1e-4


def test_factors_are_orthonormal():
    tucker, _ = tucker_als(jnp.asarray(X), (2, None, 3, 4), norm=NORM)
    for factor in (f for f in tucker.factors if f is not None):
        np.testing.assert_allclose(factor.T @ factor, np.eye(factor.shape[1]), atol=1e-5)


def test_sweeps_improve_on_the_start():
    ranks = (None, None, 3, 4)
    start = weighted_error(X, hosvd(jnp.asarray(X), ranks, norm=NORM).to_tensor(), S)
    unaware = weighted_error(X, hosvd(jnp.asarray(X), ranks).to_tensor(), S)
    assert start < unaware
    errors = [
        weighted_error(
            X, tucker_als(jnp.asarray(X), ranks, max_iters=n, norm=NORM)[0].to_tensor(), S
        )
        for n in (1, 100)
    ]
    assert errors[1] < errors[0] < start


def test_tolerance_ends_the_sweeps():
    _, info = tucker_als(jnp.asarray(X), (None, None, 3, 4), tol=1e-4, norm=NORM)
    made = int(info.iterations)
    steps = np.abs(np.diff(np.asarray(info.errors)[:made]))
    assert 1 < made < 100
    assert bool(info.converged)
    assert steps[-1] < 1e-4 <= steps[:-1].min(initial=1.0)


def test_image_and_compression_are_products_with_the_whole_moment():
    c, k = 6, 9
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((c, 2))
    whole = S.reshape(k, c, k, c).transpose(1, 0, 3, 2).reshape(c * k, c * k)
    array = whole.reshape(c, k, c, k).transpose(0, 1, 3, 2)
    moment = lay_out(jnp.asarray(array, jnp.float32))
    spread = np.kron(factor, np.eye(k))
    image = image_of(moment, jnp.asarray(factor, jnp.float32))
    expected = (whole @ spread).reshape(c, k, 2, k).transpose(0, 1, 3, 2)
    np.testing.assert_allclose(image, expected, rtol=0, atol=1e-3)
    small = compress(jnp.asarray(factor, jnp.float32), image)
    expected = (spread.T @ whole @ spread).reshape(2, k, 2, k).transpose(0, 1, 3, 2)
    np.testing.assert_allclose(small, expected, rtol=0, atol=1e-2)


def test_kronecker_moments_are_their_own_approximation():
    rng = np.random.default_rng(0)
    roots = [rng.standard_normal((n, n)) for n in (9, 6)]
    window, channels = (root @ root.T for root in roots)
    window /= np.mean(np.diag(window))
    array = np.einsum("kl,cd->ckld", window, channels)
    moment = lay_out(jnp.asarray(array, jnp.float32))
    np.testing.assert_allclose(moment.window, window, rtol=0, atol=1e-2)
    factor = np.asarray(moment.channels, np.float64)
    np.testing.assert_allclose(factor @ factor.T, channels, rtol=0, atol=1e-2)


def test_the_rest_is_jointly_optimal():
    """No other core and output factor of that rank do better: 1000 perturbations."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((54, 10)))[0]
    small, product = basis.T @ S @ basis, basis.T @ S @ matrix(X)
    core, output = (
        np.asarray(a, np.float64)
        for a in fit_rest(jnp.asarray(small, jnp.float32), jnp.asarray(product, jnp.float32), 3)
    )
    np.testing.assert_allclose(output.T @ output, np.eye(3), atol=1e-5)
    best = weighted_error(X, (basis @ core @ output.T).reshape(SHAPE), S)
    for _ in range(1000):
        size = 10 ** rng.uniform(-4, 0)
        others = (a + size * rng.standard_normal(a.shape) for a in (core, output))
        approximation = basis @ next(others) @ next(others).T
        assert weighted_error(X, approximation.reshape(SHAPE), S) >= best * (1 - 1e-5)


def test_more_than_two_window_modes_and_one():
    for shape, ranks in (((3, 6, 8), (None, 3, 4)), ((2, 2, 2, 6, 8), (None,) * 3 + (3, 4))):
        s = with_ridge(patch_moment(6))[: np.prod(shape[:-1]), : np.prod(shape[:-1])]
        x = kernel(*shape)
        tucker, _ = tucker_als(jnp.asarray(x), ranks, norm=Covariance(jnp.asarray(s, jnp.float32)))
        start = hosvd(jnp.asarray(x), ranks)
        equation = {3: "aCD,cC,dD->acd", 5: "abeCD,cC,dD->abecd"}[len(shape)]
        factors = [start.core, *(f for f in start.factors if f is not None)]
        _, errors = alternate(equation, factors, (1, 2, 0), x, s)
        assert weighted_error(x, tucker.to_tensor(), s) <= 1.001 * errors[-1]
