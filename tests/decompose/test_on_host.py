"""What NumPy decomposes, where arrays are at hand, against closed forms in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from plain_moments import alternate, kernel, patch_moment, weighted_error, with_ridge

from tdjax.decompose import truncated_svd, tucker_als
from tdjax.decompose.norms import Covariance, Kronecker, ModeWeighted
from tdjax.decompose.on_host import cholesky
from tdjax.decompose.svd import _low_rank
from tdjax.decompose.tucker import _tucker

RNG = np.random.default_rng(0)
RIDGE = 1e-6


def moment(size, rows=None):
    found = RNG.standard_normal((rows or 3 * size, size)) * np.geomspace(1, 0.03, size)
    return found.T @ found / len(found)


def best_error(x, s, g, rank):
    """Of the best matrix in the norm with its ridges, and the norm of x itself."""
    roots = [np.linalg.cholesky(m + RIDGE * np.trace(m) / len(m) * np.eye(len(m))) for m in (s, g)]
    values = np.linalg.svd(roots[0].T @ x @ roots[1], compute_uv=False)
    return np.sqrt(np.sum(values[rank:] ** 2)), np.sqrt(np.sum(values**2))


def error(e, s, g):
    return np.sqrt(np.trace(g @ e.T @ s @ e))


def norm_of(s, g, kind):
    s, g = jnp.asarray(s, jnp.float32), jnp.asarray(g, jnp.float32)
    given = {
        "frobenius": None,
        "covariance": Covariance(s),
        "kronecker": Kronecker(s, g),
        "diagonal": Kronecker(jnp.diagonal(s), g),
    }
    return given[kind]


@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
@pytest.mark.parametrize("kind", ["frobenius", "covariance", "kronecker", "diagonal"])
def test_low_rank_is_the_best_and_compiles_nothing(kind, shape):
    s, g = moment(shape[0]), moment(shape[1])
    if kind == "diagonal":
        s = np.diag(np.diag(s))
    norm = norm_of(s, g, kind)
    s = np.eye(shape[0]) if kind == "frobenius" else s
    g = g if kind in ("kronecker", "diagonal") else np.eye(shape[1])
    programs = _low_rank._cache_size()
    for scale in (1.0, 2.0**60):
        x = RNG.standard_normal(shape).astype(np.float32)
        found = truncated_svd(scale * x, 4, norm=norm, pad=True)
        assert found.ranks == (4,)
        rest = np.asarray(found.to_tensor(), np.float64) / scale - x
        best, whole = best_error(x, s, g, 4)
        np.testing.assert_allclose(error(rest, s, g), best, rtol=1e-4, atol=1e-5 * whole)
        # As good to train on as what a program gives.
        sizes = [np.linalg.norm(f) for f in (found.left, found.right)]
        np.testing.assert_allclose(*sizes, rtol=1e-3)
    assert _low_rank._cache_size() == programs


def test_nothing_at_full_rank_and_nothing_of_nothing():
    norm = Kronecker(*(jnp.asarray(moment(size, 5), jnp.float32) for size in (30, 12)))
    x = jnp.asarray(RNG.standard_normal((30, 12)), jnp.float32)
    found = truncated_svd(x, 12, norm=norm, pad=True)
    assert float(norm.relative_error(x, found.to_tensor())) < 1e-4
    zeros = truncated_svd(0 * x, 3, norm=norm, pad=True)
    assert not zeros.to_tensor().any()


def test_other_norms_are_left_to_programs():
    x = jnp.asarray(RNG.standard_normal((6, 5)), jnp.float32)
    programs = _low_rank._cache_size()
    weighted = ModeWeighted((jnp.diag(jnp.arange(1.0, 7.0)), None))
    found = truncated_svd(x, 2, norm=weighted, pad=True)
    plain = truncated_svd(x, 2, norm=weighted)
    np.testing.assert_allclose(found.to_tensor(), plain.to_tensor(), atol=1e-5)
    assert _low_rank._cache_size() > programs
    with pytest.raises(ValueError, match="does not fit all modes but the last"):
        truncated_svd(x, 2, norm=Covariance(jnp.eye(5)), pad=True)


def test_cholesky_of_what_rounding_left_indefinite():
    root = RNG.standard_normal((2, 8, 3)).astype(np.float32)
    matrices = root @ root.swapaxes(1, 2)
    for own in (matrices, np.stack([matrices[0], np.diag([1.0] * 7 + [-1e-3]).astype(np.float32)])):
        for solves in (False, True):
            factors = cholesky(own, solves=solves)
            product = factors @ factors.swapaxes(1, 2)
            np.testing.assert_allclose(product, own, rtol=0, atol=2e-2)
            np.testing.assert_allclose(product[0], own[0], rtol=0, atol=1e-4)
            assert (factors == np.tril(factors)).all()


def test_tucker_at_any_scale_of_any_kernel_and_with_few_rows():
    """Its errors are those of programs, see `test_padding`; here is what could break it."""
    g = jnp.asarray(moment(8), jnp.float32)
    norms = [Kronecker(jnp.asarray(moment(54, rows), jnp.float32), g) for rows in (200, 10)]
    x = jnp.asarray(RNG.standard_normal((3, 3, 6, 8)), jnp.float32)
    programs = _tucker._cache_size()
    for norm in norms:
        found, info = tucker_als(x, (None, None, 3, 4), norm=norm, pad=True)
        dense = found.to_tensor()
        np.testing.assert_allclose(info.error, norm.relative_error(x, dense), rtol=1e-3, atol=1e-5)
        assert info.errors.shape == (100,)
        assert int(info.iterations) == np.isfinite(info.errors).sum()
        for factor in found.factors[2:]:
            np.testing.assert_allclose(factor.T @ factor, np.eye(factor.shape[1]), atol=1e-5)
        large, _ = tucker_als(2.0**50 * x, (None, None, 3, 4), norm=norm, pad=True)
        np.testing.assert_allclose(large.to_tensor() / 2.0**50, dense, rtol=1e-4, atol=1e-5)
        _, info = tucker_als(x, (None, None, 6, 8), norm=norm, pad=True)
        assert float(info.error) < 1e-3
        nothing, info = tucker_als(0 * x, (None, None, 3, 4), norm=norm, pad=True)
        assert not nothing.to_tensor().any()
        assert float(info.error) == 0
    diagonal = Kronecker(norms[0].second_moment, jnp.diagonal(g))
    full = Kronecker(norms[0].second_moment, jnp.diag(jnp.diagonal(g)))
    pair = [tucker_als(x, (None, None, 3, 4), norm=n, pad=True)[1].error for n in (diagonal, full)]
    np.testing.assert_allclose(*pair, rtol=1e-4)
    assert _tucker._cache_size() == programs


@pytest.mark.parametrize("kind", ["frobenius", "covariance"])
def test_tucker_whose_error_is_small_leaves_nothing_to_exact_solves(kind):
    """Where single precision shows in the equations, and errors as differences of squares do."""
    x = kernel(3, 3, 10, 12) @ np.diag(np.geomspace(1, 1e-3, 12))
    x = (np.diag(np.geomspace(1, 1e-3, 10)) @ x).astype(np.float32)
    s = with_ridge(patch_moment(10)) if kind == "covariance" else np.eye(90)
    norm = norm_of(patch_moment(10), np.eye(12), kind)
    found, info = tucker_als(x, (None, None, 7, 8), norm=norm, pad=True)
    error = weighted_error(x, found.to_tensor(), s)
    np.testing.assert_allclose(info.error, error, rtol=1e-3)
    assert 1e-4 < error < 1e-2
    factors = [found.core, *found.factors[2:]]
    _, errors = alternate("abCD,cC,dD->abcd", factors, (1, 2, 0), x, s, None, 20)
    assert error <= 1.001 * errors[-1]


@pytest.mark.parametrize("kind", ["frobenius", "kronecker"])
def test_low_rank_of_what_is_left_of_large_numbers(kind):
    """Where nearly nothing is dropped, and where rows of the kernel cancel in the moment."""
    s = (np.ones((40, 40)) + 1e-4 * moment(40)).astype(np.float32).astype(float)
    g, x = moment(16), RNG.standard_normal((40, 16)) @ np.diag(np.geomspace(1, 1e-4, 16))
    x = (x - x.mean(axis=0)).astype(np.float32)
    norm = norm_of(s, g, kind)
    s, g = (s, g) if kind == "kronecker" else (np.eye(40), np.eye(16))
    ridged = [m + RIDGE * np.trace(m) / len(m) * np.eye(len(m)) for m in (s, g)]
    for rank in (3, 9):
        found = truncated_svd(x, rank, norm=norm, pad=True).to_tensor()
        best, whole = best_error(x, s, g, rank)
        lost = error(np.asarray(found, np.float64) - x, *ridged)
        np.testing.assert_allclose(lost, best, rtol=2e-3, atol=3e-6 * whole)
