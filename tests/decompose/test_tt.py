import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorly as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import tensor_train

from tdjax.decompose import tt_svd
from tdjax.decompose.tt import clip_ranks

SHAPE = (8, 3, 4, 7)


def gaussian(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def train(ranks, decades=0, shape=SHAPE):
    """A tensor with these ranks exactly; the singular values of every cut span the decades."""
    rng = np.random.default_rng(1)
    padded = (1, *ranks, 1)
    x = np.ones((1, 1))
    for r, n, s in zip(padded[:-1], shape, padded[1:], strict=True):
        core = np.linalg.qr(rng.standard_normal((r * n, s)))[0]
        x = ((x * np.logspace(0, -decades, r)) @ core.reshape(r, -1)).reshape(-1, s)
    return x.reshape(shape).astype(np.float32)


def unfolding(x, k):
    return np.asarray(x, np.float64).reshape(math.prod(x.shape[:k]), -1)


def tails(x, ranks):
    """What truncating each unfolding by itself loses."""
    return [
        np.linalg.norm(np.linalg.svd(unfolding(x, k + 1), compute_uv=False)[rank:])
        for k, rank in enumerate(ranks)
    ]


def relative(x, approximation):
    x = np.asarray(x, np.float64)
    return np.linalg.norm(x - np.asarray(approximation, np.float64)) / np.linalg.norm(x)


@pytest.mark.parametrize("ranks", [(1, 1, 1), (4, 5, 3), (8, 12, 7)])
def test_error_equals_tensorlys(ranks):
    for x in (gaussian(), train((8, 10, 6), decades=2)):
        theirs = tl.tt_to_tensor(tensor_train(x, [1, *ranks, 1]))
        ours = tt_svd(x, ranks)
        assert ours.ranks == ranks
        np.testing.assert_allclose(
            relative(x, ours.to_tensor()), relative(x, theirs), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("ranks", [(1, 1, 1), (4, 5, 3), (7, 11, 6)])
def test_error_is_within_its_bounds(ranks):
    for seed in range(3):
        x = gaussian(seed)
        error = relative(x, tt_svd(x, ranks).to_tensor()) * np.linalg.norm(x)
        lost = tails(x, ranks)
        assert max(lost) * (1 - 1e-4) <= error <= np.linalg.norm(lost) * (1 + 1e-4)


@pytest.mark.parametrize("decades", [0, 1, 3])
def test_exact_recovery(decades):
    ranks = (3, 4, 2)
    x = train(ranks, decades)
    assert relative(x, tt_svd(x, ranks).to_tensor()) < 1e-5
    if decades < 3:
        assert tt_svd(x, eps=1e-4).ranks == ranks


def test_full_rank_reproduces():
    x = gaussian()
    assert relative(x, tt_svd(x, (8, 24, 7)).to_tensor()) < 1e-5


def test_error_falls_with_rank():
    x = gaussian()
    ladder = [(1, 1, 1), (4, 5, 3), (7, 11, 6), (8, 12, 7)]
    errors = [relative(x, tt_svd(x, ranks).to_tensor()) for ranks in ladder]
    assert all(low < high for high, low in itertools.pairwise(errors))


def test_all_but_the_last_core_are_orthonormal():
    *cores, last = tt_svd(gaussian(), (4, 5, 3)).cores
    assert last.shape == (3, 7, 1)
    for core in cores:
        matrix = np.asarray(core).reshape(-1, core.shape[2])
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(core.shape[2]), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-4, 1e-2, 0.3, 0.9, 1.0, 2.0]))
def test_relative_error_stays_within_eps(seed, eps):
    x = gaussian(seed, (4, 3, 5))
    tt = tt_svd(x, eps=eps)
    assert relative(x, tt.to_tensor()) <= eps + 1e-5
    assert all(1 <= r <= full for r, full in zip(tt.ranks, (4, 5), strict=True))
    if eps == 2.0:
        assert tt.ranks == (1, 1)


def test_eps_drops_what_it_may():
    """A step that keeps one rank fewer would exceed its share eps^2 / (N - 1) of the energy."""
    x = gaussian()
    eps = 0.5
    tt = tt_svd(x, eps=eps)
    first = tails(x, (tt.ranks[0] - 1,))[0]
    assert first > eps * np.linalg.norm(x) / math.sqrt(x.ndim - 1)


def test_ranks_are_clipped_to_what_an_unfolding_has():
    x = gaussian()
    tt = tt_svd(x, (100, 100, 100))
    assert tt.ranks == clip_ranks(SHAPE, (100, 100, 100)) == (8, 24, 7)
    assert clip_ranks(SHAPE, (1, 100, 100)) == (1, 3, 7)
    assert tt.size == sum(core.size for core in tt.cores)


def test_two_modes_are_a_truncated_svd():
    x = gaussian(shape=(12, 20))
    error = relative(x, tt_svd(x, (5,)).to_tensor())
    np.testing.assert_allclose(error, tails(x, (5,))[0] / np.linalg.norm(x), rtol=1e-4)


def test_errors():
    x = gaussian()
    for given_ranks, eps in ((None, None), ((1, 1, 1), 0.1)):
        with pytest.raises(ValueError, match="exactly one of ranks and eps"):
            tt_svd(x, given_ranks, eps=eps)
    for wrong in ((), (1, 1), (1, 1, 1, 1)):
        with pytest.raises(ValueError, match="3 interior ranks are needed, got"):
            tt_svd(x, wrong)
    with pytest.raises(ValueError, match=r"rank 0 of \(2, 0, 2\) is below 1"):
        tt_svd(x, (2, 0, 2))
    for eps in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="eps must not be negative"):
            tt_svd(x, eps=eps)
    with pytest.raises(jax.errors.TracerArrayConversionError):
        jax.jit(lambda y: tt_svd(y, eps=0.1))(jnp.asarray(x))
