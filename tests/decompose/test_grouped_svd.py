"""Low rank by groups of rows, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_moments import alternate, kernel, patch_moment, weighted_error, with_ridge

from tdjax import Covariance, Kronecker, ModeWeighted, grouped_svd, truncated_svd

SPLITS, RANK = 3, 2
W = kernel(18, 8)
# (window 3 x 3, 2 channels): neighbouring rows are strongly correlated.
S = patch_moment(2).astype(np.float32)
G = (lambda a: a.T @ a / len(a))(np.random.default_rng(3).standard_normal((30, 8)) * np.arange(8))
G = G.astype(np.float32)


def best_blocks(x, splits, rank):
    found = []
    for block in np.split(np.asarray(x, np.float64), splits):
        u, s, vt = np.linalg.svd(block, full_matrices=False)
        found.append((u[:, :rank] * s[:rank]) @ vt[:rank])
    return np.concatenate(found)


@pytest.mark.parametrize(("shape", "splits"), [((18, 8), 3), ((8, 12), 4), ((12, 5), 1)])
def test_each_block_is_a_truncated_svd(shape, splits):
    x = kernel(*shape)
    found, info = grouped_svd(x, 2, splits)
    expected = best_blocks(x, splits, 2)
    assert (found.shape, found.ranks) == (shape, (2,))
    assert found.size == 2 * (shape[0] + splits * shape[1])
    np.testing.assert_allclose(found.to_tensor(), expected, atol=1e-5)
    error = np.linalg.norm(x - expected) / np.linalg.norm(x)
    np.testing.assert_allclose(info.error, error, atol=1e-5)
    assert (int(info.iterations), bool(info.converged)) == (0, True)


@pytest.mark.parametrize("norm", [None, Covariance(S), Kronecker(S, G)], ids=lambda n: type(n))
def test_one_block_is_the_plain_svd(norm):
    found, _ = grouped_svd(W, 4, 1, norm=norm)
    expected = truncated_svd(W, 4, norm=norm)
    np.testing.assert_allclose(found.to_tensor(), expected.to_tensor(), atol=1e-4)


@pytest.mark.parametrize("gradient", [None, G], ids=["covariance", "kronecker"])
def test_no_worse_than_exact_alternating_solves(gradient):
    norm = Covariance(S) if gradient is None else Kronecker(S, gradient)
    s = with_ridge(np.asarray(S, np.float64))
    g = None if gradient is None else with_ridge(np.asarray(gradient, np.float64))
    start, first = grouped_svd(W, RANK, SPLITS, norm=norm, max_iters=0)
    found, info = grouped_svd(W, RANK, SPLITS, norm=norm)
    error = weighted_error(W, found.to_tensor(), s, g)
    np.testing.assert_allclose(info.error, error, rtol=1e-3)
    errors = np.concatenate([[first.error], info.errors[: int(info.iterations)]])
    assert (np.diff(errors) <= 0).all()
    # Blocks by themselves leave what they share to be found.
    assert error < 0.9 * first.error

    def alternated(begin, sweeps):
        factors = [np.asarray(begin.left), np.asarray(begin.right)]
        _, errors = alternate("kmr,krt->kmt", factors, (0, 1), W, s, g, sweeps)
        return errors[-1]

    assert error < 1.001 * alternated(start, 100)
    # Exact solves find next to nothing more.
    assert error < 1.01 * alternated(found, 20)


def test_a_diagonal_moment_needs_no_sweeps():
    weights = np.diag(S)
    found, info = grouped_svd(W, RANK, SPLITS, norm=Covariance(weights))
    root = np.sqrt(with_ridge(np.diag(np.asarray(weights, np.float64))).diagonal())[:, None]
    np.testing.assert_allclose(
        found.to_tensor(), best_blocks(root * W, SPLITS, RANK) / root, atol=1e-4
    )
    assert int(info.iterations) == 0


def test_roots_of_modes_are_moments():
    rows, columns = jnp.asarray(kernel(18, 18, seed=4)), jnp.asarray(kernel(8, 8, seed=5))
    found, info = grouped_svd(W, RANK, SPLITS, norm=ModeWeighted((rows, columns)))
    moments = Kronecker(rows.T @ rows, columns.T @ columns, ridge=0.0)
    _, expected = grouped_svd(W, RANK, SPLITS, norm=moments)
    np.testing.assert_allclose(info.error, expected.error, rtol=1e-2)
    by_norm = ModeWeighted((rows, columns)).relative_error(jnp.asarray(W), found.to_tensor())
    np.testing.assert_allclose(info.error, by_norm, rtol=1e-3)
    only, _ = grouped_svd(W, RANK, SPLITS, norm=ModeWeighted((None, columns)))
    moved = best_blocks(W @ columns.T, SPLITS, RANK) @ np.linalg.inv(columns.T)
    np.testing.assert_allclose(only.to_tensor(), moved, atol=1e-3)


def test_under_jit_and_vmap():
    stack, moments = np.stack([W, -W, kernel(18, 8, seed=7)]), np.stack([S, S, np.eye(18)])

    @jax.jit
    @jax.vmap
    def both(w, s):
        plain, _ = grouped_svd(w, RANK, SPLITS)
        weighed, info = grouped_svd(w, RANK, SPLITS, norm=Covariance(s), max_iters=5)
        return plain.to_tensor(), weighed.to_tensor(), info.error

    plain, weighed, errors = both(stack, moments.astype(np.float32))
    np.testing.assert_allclose(plain[1], -plain[0], atol=1e-5)
    np.testing.assert_allclose(errors[0], errors[1], rtol=1e-4)
    # The identity couples nothing.
    np.testing.assert_allclose(plain[2], weighed[2], atol=1e-4)


def test_what_is_refused():
    with pytest.raises(ValueError, match="4 splits do not divide 18 rows"):
        grouped_svd(W, 2, 4)
    with pytest.raises(ValueError, match="0 splits do not divide 18 rows"):
        grouped_svd(W, 2, 0)
    with pytest.raises(ValueError, match=r"rank 4 of .* is not between 1 and 3"):
        grouped_svd(W, 4, 6)
    with pytest.raises(ValueError, match="NaN or Inf"):
        grouped_svd(np.full((4, 4), np.nan), 1, 2)
