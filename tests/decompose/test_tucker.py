import itertools
import math

import jax
import numpy as np
import pytest
import tensorly as tl
from tensorly.decomposition import partial_tucker

from tdjax.decompose import hosvd, tucker_als

SHAPE = (9, 8, 7)
KERNEL = (3, 3, 12, 10)


def gaussian(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def exact(ranks, decades=0, shape=SHAPE):
    """A tensor of these multilinear ranks, singular values of its unfoldings over the decades."""
    rng = np.random.default_rng(1)
    x = np.zeros(ranks)
    diagonal = np.arange(min(ranks))
    x[(diagonal,) * len(ranks)] = np.logspace(0, -decades, min(ranks))
    for mode, (n, r) in enumerate(zip(shape, ranks, strict=True)):
        basis = np.linalg.qr(rng.standard_normal((n, r)))[0]
        x = np.moveaxis(np.tensordot(basis, x, (1, mode)), 0, mode)
    return x.astype(np.float32)


def relative(x, approximation):
    x = np.asarray(x, np.float64)
    return np.linalg.norm(x - np.asarray(approximation, np.float64)) / np.linalg.norm(x)


def tails(x, ranks):
    """Relative norm of what truncating each unfolding by itself loses."""
    lost = []
    for mode, rank in enumerate(ranks):
        if rank is not None:
            matrix = np.moveaxis(np.asarray(x, np.float64), mode, 0).reshape(x.shape[mode], -1)
            lost.append(np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[rank:]))
    return np.array(lost) / np.linalg.norm(x)


CASES = pytest.mark.parametrize(
    ("shape", "ranks"), [(SHAPE, (3, 4, 5)), (KERNEL, (None, None, 5, 4))], ids=["all", "two"]
)


@CASES
def test_error_equals_tensorlys_from_the_same_start(shape, ranks):
    modes = [mode for mode, rank in enumerate(ranks) if rank is not None]
    kept = [ranks[mode] for mode in modes]
    for seed in range(3):
        x = gaussian(seed, shape)
        start = hosvd(x, ranks)
        factors = [np.asarray(start.factors[mode]) for mode in modes]
        (core, factors), _ = partial_tucker(
            x, kept, modes=modes, n_iter_max=30, tol=0, init=(np.asarray(start.core), factors)
        )
        theirs = tl.tenalg.multi_mode_dot(core, factors, modes=modes)
        ours, info = tucker_als(x, ranks, max_iters=30, tol=0.0)
        assert abs(relative(x, ours.to_tensor()) - relative(x, theirs)) < 1e-4
        np.testing.assert_allclose(info.error, relative(x, ours.to_tensor()), rtol=1e-4)


@CASES
def test_hosvd_and_hooi_are_within_their_bounds(shape, ranks):
    for seed in range(3):
        x = gaussian(seed, shape)
        start = relative(x, hosvd(x, ranks).to_tensor())
        end = relative(x, tucker_als(x, ranks, max_iters=30, tol=0.0)[0].to_tensor())
        lost = tails(x, ranks)
        assert max(lost) * (1 - 1e-4) <= end <= start <= np.linalg.norm(lost) * (1 + 1e-4)
        assert start <= math.sqrt(len(lost)) * end


@CASES
def test_recorded_errors_fall(shape, ranks):
    x = gaussian(3, shape)
    _, info = tucker_als(x, ranks, max_iters=30, tol=0.0)
    made = int(info.iterations)
    errors = np.asarray(info.errors)
    assert errors.shape == (30,)
    assert np.isfinite(errors[:made]).all()
    assert np.isnan(errors[made:]).all()
    assert (np.diff(errors[:made]) <= 0).all()
    np.testing.assert_allclose(info.error, errors[made - 1], rtol=1e-4)
    assert errors[0] <= relative(x, hosvd(x, ranks).to_tensor()) * (1 + 1e-5)


def test_tolerance_ends_the_sweeps():
    x = gaussian()
    _, loose = tucker_als(x, (3, 4, 5), max_iters=30, tol=1e-2)
    _, tight = tucker_als(x, (3, 4, 5), max_iters=30, tol=1e-6)
    assert 1 <= int(loose.iterations) < int(tight.iterations) < 30
    assert bool(loose.converged)
    assert bool(tight.converged)
    errors = np.asarray(loose.errors)[: int(loose.iterations)]
    steps = np.abs(np.diff(errors))
    assert (steps[:-1] >= 1e-2).all()


def test_no_sweeps_is_the_hosvd():
    x = gaussian()
    start = hosvd(x, (3, 4, 5))
    tucker, info = tucker_als(x, (3, 4, 5), max_iters=0)
    np.testing.assert_array_equal(tucker.to_tensor(), start.to_tensor())
    assert int(info.iterations) == 0
    assert info.errors.shape == (0,)
    assert not bool(info.converged)
    np.testing.assert_allclose(info.error, relative(x, start.to_tensor()), rtol=1e-5)


@pytest.mark.parametrize("decades", [0, 1, 3])
def test_exact_recovery(decades):
    ranks = (4, 4, 4)
    x = exact(ranks, decades)
    assert relative(x, hosvd(x, ranks).to_tensor()) < 1e-5
    tucker, info = tucker_als(x, ranks, max_iters=30, tol=0.0)
    assert relative(x, tucker.to_tensor()) < 1e-5
    recorded = np.asarray(info.errors)[: int(info.iterations)]
    assert (recorded < 1e-5).all()


def test_small_errors_are_recorded_as_they_are():
    x = exact((4, 4, 4)) + 1e-4 / 20 * gaussian()
    tucker, info = tucker_als(x, (4, 4, 4), max_iters=30, tol=0.0)
    recorded = np.asarray(info.errors)[: int(info.iterations)]
    np.testing.assert_allclose(recorded[-1], relative(x, tucker.to_tensor()), rtol=1e-2)


def test_full_rank_reproduces():
    x = gaussian()
    assert relative(x, hosvd(x, SHAPE).to_tensor()) < 1e-5
    # A rank that the other modes cannot fill is still the rank of the result.
    assert relative(x, tucker_als(x, (None, 8, None), max_iters=2)[0].to_tensor()) < 1e-5


def test_error_falls_with_rank():
    x = gaussian()
    ladder = [(1, 1, 1), (2, 3, 3), (4, 4, 4), (6, 7, 5)]
    errors = [relative(x, hosvd(x, ranks).to_tensor()) for ranks in ladder]
    assert all(low < high for high, low in itertools.pairwise(errors))


@CASES
def test_orthonormal_factors_and_projected_core(shape, ranks):
    x = gaussian(4, shape)
    tucker, _ = tucker_als(x, ranks, max_iters=30, tol=0.0)
    assert tucker.ranks == tuple(rank for rank in ranks if rank is not None)
    expected = np.asarray(x, np.float64)
    for mode, factor in enumerate(tucker.factors):
        if ranks[mode] is None:
            assert factor is None
            continue
        factor = np.asarray(factor)
        assert factor.shape == (shape[mode], ranks[mode])
        np.testing.assert_allclose(factor.T @ factor, np.eye(ranks[mode]), atol=1e-5)
        expected = np.moveaxis(np.tensordot(factor.T, expected, (1, mode)), 0, mode)
    np.testing.assert_allclose(tucker.core, expected, atol=1e-4)


@pytest.mark.parametrize("ranks", [(5, 1, 1), (1, 1, 4)])
def test_ranks_that_the_other_modes_cannot_fill(ranks):
    """Columns beyond the product of the other ranks are orthonormal and unused."""
    x = gaussian()
    tucker, info = tucker_als(x, ranks, max_iters=10, tol=0.0)
    assert tucker.ranks == ranks
    for factor, rank in zip(tucker.factors, ranks, strict=True):
        np.testing.assert_allclose(factor.T @ factor, np.eye(rank), atol=1e-5)
    np.testing.assert_allclose(info.error, relative(x, tucker.to_tensor()), rtol=1e-4)
    spectral = [
        np.linalg.svd(np.moveaxis(x, m, 0).reshape(n, -1), compute_uv=False)[0]
        for m, n in enumerate(SHAPE)
    ]
    least = math.sqrt(1 - (min(spectral) / np.linalg.norm(x)) ** 2)
    assert least <= float(info.error) < 1


def test_errors():
    x = gaussian()
    with pytest.raises(ValueError, match=r"3 modes, but ranks \(2, 2\)"):
        tucker_als(x, (2, 2))
    with pytest.raises(ValueError, match="every rank is None"):
        hosvd(x, (None, None, None))
    for ranks, wrong, most in (((2, 0, 2), 0, 8), ((2, 9, 2), 9, 8), ((-1, None, 2), -1, 9)):
        with pytest.raises(ValueError, match=rf"rank {wrong} of .* not between 1 and {most}"):
            tucker_als(x, ranks)
    with pytest.raises(ValueError, match="not between 1 and 6"):
        hosvd(gaussian(shape=(9, 2, 3)), (7, 2, 3))
    with pytest.raises(ValueError, match="rank 9 of"):
        jax.jit(lambda y: hosvd(y, (2, 9, 2)))(x)
