import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdjax.decompose import truncated_svd
from tdjax.decompose.svd import GRAM_TAIL, leading_subspace

SHAPES = [(12, 20), (20, 12), (12, 12)]


def spectrum(shape, values, seed=0):
    """A matrix with the given singular values."""
    rng = np.random.default_rng(seed)
    k = len(values)
    left, right = (np.linalg.qr(rng.standard_normal((n, k)))[0] for n in shape)
    return ((left * np.asarray(values)) @ right.T).astype(np.float32)


def relative(x, approximation):
    x = np.asarray(x, np.float64)
    return np.linalg.norm(x - np.asarray(approximation, np.float64)) / np.linalg.norm(x)


def best(x, rank):
    """Eckart-Young: relative error of the best approximation, by NumPy in float64."""
    singular = np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)
    return np.linalg.norm(singular[rank:]) / np.linalg.norm(singular)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 4, 11, 12])
def test_eckart_young(shape, rank):
    for decades in (0, 1, 3):
        x = spectrum(shape, np.logspace(0, -decades, 12), seed=decades)
        lowrank = truncated_svd(x, rank)
        assert lowrank.shape == shape
        assert lowrank.ranks == (rank,)
        np.testing.assert_allclose(
            relative(x, lowrank.to_tensor()), best(x, rank), rtol=1e-3, atol=1e-6
        )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decades", [0, 2, 3])
def test_exact_recovery(shape, decades):
    x = spectrum(shape, np.logspace(0, -decades, 4))
    assert relative(x, truncated_svd(x, 4).to_tensor()) < 1e-5


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rank=st.sampled_from([1, 4, 11]),
    decay=st.floats(0, 4),
    shape=st.sampled_from(SHAPES),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_never_worse_than_the_best_and_never_better(seed, rank, decay, shape, scale):
    x = scale * spectrum(shape, np.logspace(0, -decay, 12), seed)
    error = relative(x, truncated_svd(x, rank).to_tensor())
    np.testing.assert_allclose(error, best(x, rank), rtol=1e-3, atol=1e-6)


def test_error_is_right_on_both_sides_of_the_gram_threshold():
    for tail in (0.1 * GRAM_TAIL, 0.9 * GRAM_TAIL, 1.1 * GRAM_TAIL, 10 * GRAM_TAIL):
        x = spectrum((12, 20), [*np.ones(4), *np.full(8, np.sqrt(tail * 4 / 8))])
        error = relative(x, truncated_svd(x, 4).to_tensor())
        np.testing.assert_allclose(error, best(x, 4), rtol=1e-3)


def test_factors_share_the_singular_values():
    values = [4.0, 2.0, 1.0]
    lowrank = truncated_svd(spectrum((12, 20), values), 3)
    expected = np.diag(values)
    np.testing.assert_allclose(lowrank.left.T @ lowrank.left, expected, atol=1e-5)
    np.testing.assert_allclose(lowrank.right @ lowrank.right.T, expected, atol=1e-5)


def test_gradient_reaches_both_factors_alike():
    lowrank = truncated_svd(spectrum((12, 20), [100.0, 0.01]), 2)
    gradient = jax.grad(lambda a: jnp.sum(jnp.square(a.to_tensor())))(lowrank)
    np.testing.assert_allclose(
        jnp.linalg.norm(gradient.left), jnp.linalg.norm(gradient.right), rtol=1e-4
    )


@pytest.mark.parametrize("accurate", [True, False])
@pytest.mark.parametrize(("shape", "rank"), [((8, 30), 3), ((30, 8), 3), ((30, 8), 8)])
def test_leading_subspace_spans_the_leading_vectors(shape, rank, accurate):
    x = spectrum(shape, np.linspace(8, 1, 8))
    basis = np.asarray(leading_subspace(jnp.asarray(x), rank, accurate=accurate))
    assert basis.shape == (shape[0], rank)
    np.testing.assert_allclose(basis.T @ basis, np.eye(rank), atol=1e-5)
    expected = np.linalg.svd(x)[0][:, :rank]
    np.testing.assert_allclose(basis @ basis.T, expected @ expected.T, atol=1e-4)


@pytest.mark.parametrize("rank", [5, 9])
def test_leading_subspace_of_more_than_the_column_space(rank):
    x = spectrum((9, 3), [3.0, 2.0, 1.0])
    basis = np.asarray(leading_subspace(jnp.asarray(x), rank))
    assert basis.shape == (9, rank)
    np.testing.assert_allclose(basis.T @ basis, np.eye(rank), atol=1e-5)
    np.testing.assert_allclose(basis @ (basis.T @ x), x, atol=1e-5)


def test_errors():
    x = np.ones((4, 3), np.float32)
    for rank in (0, -1, 4):
        with pytest.raises(
            ValueError, match=rf"truncated_svd: rank {rank} of .* not between 1 and 3"
        ):
            truncated_svd(x, rank)
    with pytest.raises(ValueError, match=r"expected an array of 2 modes, got shape \(2, 3, 4\)"):
        truncated_svd(np.ones((2, 3, 4)), 1)
