import jax.numpy as jnp
import numpy as np
import pytest
from plain_moments import alternate, kernel, matrix, patch_moment, weighted_error, with_ridge

from tdjax.decompose import truncated_svd, tt_als, tt_svd
from tdjax.decompose.norms import Covariance, Kronecker, ModeWeighted

SHAPE = (6, 3, 3, 8)
RANKS = (3, 5, 4)
MOMENT = patch_moment(6).reshape(3, 3, 6, 3, 3, 6).transpose(2, 0, 1, 5, 3, 4).reshape(54, 54)
S = with_ridge(MOMENT)
NORM = Covariance(jnp.asarray(MOMENT, jnp.float32))
X = kernel(*SHAPE)
# With padding NumPy does the same without a program.
BY = pytest.mark.parametrize("pad", [False, True], ids=["program", "numpy"])


def exact_solves(x, start, s, g=None, sweeps=100):
    """Core after core from left to right; the outer ranks of 1 are left out."""
    first, *middle, last = (np.asarray(core, np.float64) for core in start.cores)
    factors = [first[0], *middle, last[:, :, 0]]
    equation = {4: "ap,pbq,qcr,rd->abcd", 3: "ap,pbq,qc->abc"}[x.ndim]
    return alternate(equation, factors, range(x.ndim), x, s, g, sweeps)[1]


@BY
@pytest.mark.parametrize("ranks", [(1, 1, 1), RANKS, (6, 12, 6), (2, 6, 8)])
def test_error_is_at_most_that_of_exact_solves(ranks, pad):
    tt, info = tt_als(jnp.asarray(X), ranks, norm=NORM, pad=pad)
    assert tt.ranks == ranks
    error = weighted_error(X, tt.to_tensor(), S)
    np.testing.assert_allclose(info.error, error, rtol=1e-4)
    errors = exact_solves(X, tt_svd(jnp.asarray(X), ranks), S)
    assert error <= 1.001 * errors[-1]


@pytest.mark.parametrize("ranks", [(1, 1, 1), RANKS, (6, 12, 6)])
def test_frobenius_is_at_least_as_good_as_tt_svd(ranks):
    for seed in (1, 2):
        x = kernel(*SHAPE, seed=seed)
        start = tt_svd(jnp.asarray(x), ranks)
        tt, info = tt_als(jnp.asarray(x), ranks)
        identity = np.eye(54)
        error = weighted_error(x, tt.to_tensor(), identity)
        np.testing.assert_allclose(info.error, error, rtol=1e-4)
        assert error <= weighted_error(x, start.to_tensor(), identity) * (1 + 1e-6)
        assert error <= 1.001 * exact_solves(x, start, identity)[-1]
        made = int(info.iterations)
        assert (np.diff(np.asarray(info.errors)[:made]) <= 0).all()


def test_frobenius_improves_where_tt_svd_is_not_optimal():
    start = tt_svd(jnp.asarray(X), RANKS).to_tensor()
    found = tt_als(jnp.asarray(X), RANKS)[0].to_tensor()
    assert np.linalg.norm(X - found) < 0.999 * np.linalg.norm(X - start)


@BY
def test_kronecker_error_is_at_most_that_of_exact_solves(pad):
    root = np.random.default_rng(5).standard_normal((8, 8)) * np.geomspace(1, 0.1, 8)
    g = with_ridge(root @ root.T)
    norm = Kronecker(NORM.second_moment, jnp.asarray(root @ root.T, jnp.float32))
    tt, info = tt_als(jnp.asarray(X), RANKS, norm=norm, pad=pad)
    error = weighted_error(X, tt.to_tensor(), S, g)
    np.testing.assert_allclose(info.error, error, rtol=1e-3)
    assert error <= 1.005 * exact_solves(X, tt_svd(jnp.asarray(X), RANKS), S, g)[-1]


def test_weighted_tt_svd():
    """A start that knows the moment, with no sweep: better than one that does not."""
    aware = tt_svd(jnp.asarray(X), RANKS, norm=NORM)
    assert aware.ranks == RANKS
    error = weighted_error(X, aware.to_tensor(), S)
    assert error < 0.9 * weighted_error(X, tt_svd(jnp.asarray(X), RANKS).to_tensor(), S)
    assert weighted_error(X, tt_als(jnp.asarray(X), RANKS, norm=NORM)[0].to_tensor(), S) < error
    *cores, _, _ = aware.cores
    for core in cores:
        flat = np.asarray(core).reshape(-1, core.shape[2])
        np.testing.assert_allclose(flat.T @ flat, np.eye(flat.shape[1]), atol=1e-5)


@BY
@pytest.mark.parametrize("norm", [None, NORM])
def test_full_ranks_reproduce(norm, pad):
    tt, info = tt_als(jnp.asarray(X), (100, 100, 100), norm=norm, pad=pad)
    assert tt.ranks == (6, 18, 8)
    np.testing.assert_allclose(tt.to_tensor(), X, rtol=0, atol=1e-2)
    assert float(info.error) < 1e-4


@BY
@pytest.mark.parametrize("rank", [2, 5])
def test_two_modes_are_low_rank(rank, pad):
    x = jnp.asarray(X.reshape(54, 8))
    best = weighted_error(x, truncated_svd(x, rank, norm=NORM).to_tensor(), S)
    tt, _ = tt_als(x, (rank,), norm=NORM, pad=pad)
    np.testing.assert_allclose(weighted_error(x, tt.to_tensor(), S), best, rtol=1e-4)


@BY
def test_last_rank_bounds_the_error_from_below(pad):
    values = np.linalg.eigvalsh(matrix(X).T @ S @ matrix(X))
    bound = np.sqrt(values[:-4].sum() / values.sum())
    tt, _ = tt_als(jnp.asarray(X), RANKS, norm=NORM, pad=pad)
    assert weighted_error(X, tt.to_tensor(), S) >= bound * (1 - 1e-5)


@pytest.mark.parametrize("norm", ["none", "covariance", "kronecker", "modes"])
def test_a_result_is_a_start(norm):
    weights = jnp.asarray(np.geomspace(1, 1e-2, 8), jnp.float32)
    norm = {
        "none": None,
        "covariance": NORM,
        "kronecker": Kronecker(NORM.second_moment, weights),
        "modes": ModeWeighted((None, None, None, jnp.diag(weights))),
    }[norm]
    tt, before = tt_als(jnp.asarray(X), RANKS, norm=norm, max_iters=20)
    _, after = tt_als(jnp.asarray(X), RANKS, norm=norm, init=tt, max_iters=0)
    np.testing.assert_allclose(after.error, before.error, rtol=1e-3)
    assert float(after.error) <= float(before.error) + 1e-5


@pytest.mark.parametrize("weights", ["diagonal", "in full"])
def test_numpy_makes_the_same_sweeps(weights):
    moment = jnp.diagonal(NORM.second_moment) if weights == "diagonal" else NORM.second_moment
    root = np.random.default_rng(5).standard_normal((8, 8)).astype(np.float32)
    norm = Kronecker(moment, jnp.asarray(root @ root.T))
    for scale in (1.0, 2.0**40):
        (tt, info), (same, known) = (
            tt_als(scale * jnp.asarray(X), RANKS, norm=norm, max_iters=5, tol=0.0, pad=pad)
            for pad in (True, False)
        )
        np.testing.assert_allclose(info.errors, known.errors, rtol=1e-4)
        np.testing.assert_allclose(info.error, known.error, rtol=1e-4)
        np.testing.assert_allclose(tt.to_tensor(), same.to_tensor(), rtol=0, atol=1e-2 * scale)
        *_, last = tt.cores
        np.testing.assert_allclose(last[..., 0] @ last[..., 0].T, np.eye(4), atol=1e-5)


def test_errors():
    x = jnp.asarray(X)
    with pytest.raises(ValueError, match="eps needs a norm of the modes; give ranks"):
        tt_svd(x, eps=0.1, norm=NORM)
    with pytest.raises(
        ValueError, match=r"init has shape .* ranks \(2, 5, 4\), expected .*3, 5, 4"
    ):
        tt_als(x, RANKS, init=tt_svd(x, (2, 5, 4)))
    with pytest.raises(ValueError, match=r"init has shape \(6, 3, 24\)"):
        tt_als(x, RANKS, init=tt_svd(x.reshape(6, 3, 24), (3, 5)))
    with pytest.raises(ValueError, match="3 interior ranks are needed"):
        tt_als(x, (3, 5))
    with pytest.raises(ValueError, match="holds NaN or Inf"):
        tt_als(x.at[0].set(jnp.nan), RANKS)
