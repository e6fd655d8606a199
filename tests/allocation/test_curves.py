import jax.numpy as jnp
import numpy as np
import pytest
from plain_moments import patch_moment

from tdjax.allocation.curves import low_rank_losses, singular_values, tucker_losses
from tdjax.decompose import truncated_svd, tucker_als
from tdjax.decompose.norms import Kronecker

PARTS, WINDOW, C, T = 2, (3, 3), 5, 7
D = 9 * C


def kernels(seed=0):
    return np.random.default_rng(seed).standard_normal((PARTS, *WINDOW, C, T)).astype(np.float32)


def moments(size, seed):
    root = np.random.default_rng(seed).standard_normal((PARTS, size, size)) * np.geomspace(
        1, 0.05, size
    )
    return (root @ root.swapaxes(1, 2)).astype(np.float32)


X, G = kernels(), moments(T, 2)
S = np.stack([patch_moment(C, seed=seed) for seed in range(PARTS)]).astype(np.float32)


def lost(part, approximation):
    e = np.asarray(X[part] - approximation, np.float64).reshape(D, T)
    return np.trace(G[part] @ e.T @ S[part] @ e)


@pytest.mark.parametrize("splits", [1, 5])
def test_singular_values_of_groups_of_channels(splits):
    size = C // splits
    apart = X.reshape(PARTS, -1, splits, size, T).swapaxes(1, 2)
    found = singular_values(apart.reshape(PARTS, splits, -1, T))
    for part in range(PARTS):
        for k in range(splits):
            matrix = X[part, :, :, k * size : (k + 1) * size].reshape(-1, T)
            expected = np.linalg.svd(matrix, compute_uv=False)
            np.testing.assert_allclose(found[part, k], expected, rtol=1e-3)


@pytest.mark.parametrize("diagonal", [False, True])
def test_every_rank_of_a_matrix(diagonal):
    s, g = (np.stack([np.diag(np.diag(m)) for m in both]) if diagonal else both for both in (S, G))
    given = [np.diagonal(m, axis1=1, axis2=2) if diagonal else m for m in (s, g)]
    found = low_rank_losses(X, *given)
    assert found.shape == (PARTS, T + 1)
    for part in range(PARTS):
        norm = Kronecker(jnp.asarray(s[part]), jnp.asarray(g[part]))
        for rank in (1, 4):
            best = truncated_svd(X[part].reshape(D, T), rank, norm=norm).to_tensor()
            e = np.asarray(X[part].reshape(D, T) - best, np.float64)
            expected = np.trace(g[part] @ e.T @ s[part] @ e)
            np.testing.assert_allclose(found[part, rank], expected, rtol=1e-3)
    np.testing.assert_array_equal(found[:, -1], 0)


def test_without_moments_it_is_the_weights():
    found = low_rank_losses(X)
    np.testing.assert_allclose(found[:, 0], np.sum(X**2, axis=(1, 2, 3, 4)), rtol=1e-4)
    surface = tucker_losses(X, (2, C))
    # All channels kept, Tucker is low rank.
    np.testing.assert_allclose(surface[:, 1], found, rtol=1e-3, atol=1e-3)


def test_every_pair_of_tucker_ranks():
    """Near what alternating least squares end with: they start from the same basis or nearly."""
    grid = (1, 3, C)
    found = tucker_losses(X, grid, S, G)
    assert found.shape == (PARTS, len(grid), T + 1)
    assert (np.diff(found, axis=1) <= 1e-3 * found[:, :1]).all()
    assert (np.diff(found, axis=2) <= 0).all()
    for part in range(PARTS):
        norm = Kronecker(jnp.asarray(S[part]), jnp.asarray(G[part]))
        for place, r in enumerate(grid):
            tucker, _ = tucker_als(X[part], (None, None, r, 4), norm=norm)
            expected = lost(part, tucker.to_tensor())
            assert 0.999 * expected <= found[part, place, 4] <= 1.2 * expected
    exact = low_rank_losses(X, S, G)
    np.testing.assert_allclose(found[:, -1], exact, rtol=2e-3, atol=1e-4 * float(exact.max()))


def test_where_the_moment_is_a_product_the_basis_is_the_best():
    channels, window = moments(C, 3)[0].astype(np.float64), moments(9, 4)[0].astype(np.float64)
    s = np.kron(window, channels)[None].astype(np.float32)
    found = tucker_losses(X[:1], (2,), s)[0, 0, T]
    roots = [np.linalg.cholesky(moment) for moment in (window, channels)]
    whitened = np.einsum("kl,cd,kct->dlt", *roots, X[0].reshape(9, C, T), optimize=True)
    tail = np.linalg.svd(whitened.reshape(C, -1), compute_uv=False)[2:]
    np.testing.assert_allclose(found, np.sum(tail**2), rtol=5e-3)


def test_curves_at_any_scale_and_of_singular_moments():
    """Squares of such entries leave the range of single precision; so do moments of few rows."""
    few = np.random.default_rng(5).standard_normal((PARTS, 6, D)).astype(np.float32)
    singular = few.swapaxes(1, 2) @ few
    for losses in (low_rank_losses, lambda x, *own: tucker_losses(x, (1, 3, C), *own)):
        plain = losses(X, singular, G)
        assert np.isfinite(plain).all()
        scaled = losses(X * np.float32(2.0**70), singular * np.float32(2.0**-40), G)
        np.testing.assert_allclose(scaled, 2.0**100 * plain, rtol=1e-6)
        nothing = losses(0 * X, 0 * S, 0 * G)
        assert not nothing.any()
