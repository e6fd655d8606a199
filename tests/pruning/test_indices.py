import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

import tdjax

SIZES = st.floats(-2, 2, width=32).map(lambda x: 0.0 if abs(x) < 1e-3 else x)
WEIGHTS = arrays(np.float32, 12, elements=SIZES).filter(np.any)


def norm(w, q):
    w = np.abs(np.asarray(w, np.float64))
    return np.sum(w[w > 0] ** q) ** (1 / q)


@settings(deadline=None, max_examples=40)
@given(WEIGHTS, st.floats(0.1, 0.95))
def test_indices_of_any_neuron(w, q):
    ratio = norm(w, 1) / norm(w, q)
    np.testing.assert_allclose(tdjax.lq_norm(w, q), norm(w, q), rtol=2e-4)
    np.testing.assert_allclose(tdjax.sparsity_index(w, q), ratio, rtol=2e-4)
    number = tdjax.effective_number(w, q)
    np.testing.assert_allclose(number, ratio ** (-q / (1 - q)), rtol=1e-3)
    assert 0.999 <= number <= np.count_nonzero(w) * 1.001


@settings(deadline=None, max_examples=40)
@given(WEIGHTS, st.floats(0.2, 0.8), st.floats(1.0, 2.0), st.floats(0.01, 100))
def test_the_pq_index(w, p, q, scale):
    index = 1 - 12 ** (1 / q - 1 / p) * norm(w, p) / norm(w, q)
    np.testing.assert_allclose(tdjax.pq_index(w, p, q), index, atol=1e-4)
    np.testing.assert_allclose(tdjax.pq_index(np.float32(scale) * w, p, q), index, atol=1e-4)
    number = 12 * (1 - index) ** (p * q / (q - p))
    np.testing.assert_allclose(tdjax.effective_number(w, p, q), number, rtol=1e-3)


@pytest.mark.parametrize("q", [1e-3, 0.3, 0.9])
def test_equal_weights_and_a_spike(q):
    equal = jnp.zeros(50).at[:8].set(-3.0)
    spike = jnp.zeros(50).at[7].set(1e-30)
    np.testing.assert_allclose(tdjax.effective_number(equal, q), 8, rtol=1e-4)
    np.testing.assert_allclose(tdjax.effective_number(spike, q), 1, rtol=1e-5)
    np.testing.assert_allclose(tdjax.sparsity_index(spike, q), 1, rtol=1e-4)
    np.testing.assert_allclose(
        tdjax.sparsity_index(equal, q), np.float32(8.0 ** (1 - 1 / q)), rtol=1e-2
    )
    assert tdjax.pq_index(jnp.ones(50), 0.5, 1.0) == pytest.approx(0, abs=1e-6)


def test_neurons_are_the_axes_at_the_end():
    w = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    for outputs, matrix in ((1, w.reshape(12, 5)), (2, w.reshape(3, 20)), (0, w.reshape(60, 1))):
        expected = [norm(column, 0.5) for column in matrix.T]
        got = tdjax.lq_norm(w, 0.5, outputs=outputs)
        assert got.shape == w.shape[3 - outputs :]
        np.testing.assert_allclose(got.ravel(), expected, rtol=1e-5)
    np.testing.assert_array_equal(tdjax.lq_norm(w, 0.5), tdjax.lq_norm(w, 0.5, outputs=1))


def test_neurons_of_zeros_and_gradients():
    w = jnp.array([[0.0, 1.0], [0.0, 0.0], [0.0, -2.0]])
    assert tdjax.lq_norm(w, 0.5)[0] == 0
    assert tdjax.effective_number(w, 0.5)[0] == 0
    assert tdjax.sparsity_index(w, 0.5)[0] == 1
    assert tdjax.pq_index(w)[0] == pytest.approx(1 - 1 / 3)
    for index in (tdjax.lq_norm, tdjax.sparsity_index, tdjax.pq_index, tdjax.effective_number):
        gradient = jax.grad(lambda w, index=index: index(w, 0.5).sum())(w)
        np.testing.assert_array_equal(gradient[:, 0], 0)
        assert np.isfinite(gradient).all()
        step = np.array([[0, 1e-2], [0, 0], [0, 0]], np.float32)
        change = index(w + step, 0.5) - index(w - step, 0.5)
        np.testing.assert_allclose(gradient[0, 1], change.sum() / 2e-2, rtol=1e-2)


def test_one_program_for_all_exponents():
    traced = []

    @jax.jit
    def index(w, q):
        traced.append(q)
        return tdjax.sparsity_index(w, q), tdjax.pq_index(w, q / 2, q), tdjax.lq_norm(w, q)

    for q in (0.2, 0.7):
        assert index(jnp.arange(1.0, 5), q)[0] == pytest.approx(
            float(tdjax.sparsity_index(jnp.arange(1.0, 5), q)), rel=1e-5
        )
    assert len(traced) == 1


@settings(deadline=None, max_examples=40)
@given(WEIGHTS, st.integers(1, 12), st.floats(0.2, 0.9), st.floats(0.1, 10))
def test_the_bound_holds(w, kept, q, bound):
    tail = np.sort(np.abs(w))[: 12 - kept].astype(np.float64).sum() * bound
    limit = bound * (q**q * (1 - q) ** (1 - q)) ** (1 / q) * norm(w, q) * kept ** (1 - 1 / q)
    got = tdjax.pruning_error_bound(w, kept, q, bound)
    np.testing.assert_allclose(got, limit, rtol=1e-3)
    assert tail <= got * (1 + 1e-4)


@settings(deadline=None, max_examples=40)
@given(arrays(np.float32, 9, elements=st.integers(0, 4).map(float)), st.integers(0, 30))
def test_the_least_tail_within_an_error(w, tolerance):
    sums = [np.sort(w)[::-1][m:].sum() for m in range(10)]
    assert tdjax.tail_size(w, tolerance, 2.0) == min(
        m for m in range(10) if 2 * sums[m] <= tolerance
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tdjax.lq_norm(jnp.ones(3), 0), r"q must lie in \(0, inf\), got 0"),
        (lambda: tdjax.lq_norm(jnp.array([1, jnp.nan]), 0.5), "NaN or Inf"),
        (lambda: tdjax.lq_norm(jnp.ones((0, 3)), 0.5), "non-empty"),
        (lambda: tdjax.lq_norm(jnp.ones(3), 0.5, outputs=1), "outputs is 1"),
        (lambda: tdjax.sparsity_index(jnp.ones(3), 1.0), r"q must lie in \(0, 1\)"),
        (lambda: tdjax.pq_index(jnp.ones(3), 1.0, 0.5), r"p must lie in \(0, 0.5\)"),
        (lambda: tdjax.effective_number(jnp.ones(3), jnp.nan), "p must lie in"),
        (lambda: tdjax.pruning_error_bound(jnp.ones(3), -1, 0.5), "kept must lie in"),
        (lambda: tdjax.tail_size(jnp.ones(3), -0.1), "tolerance must lie in"),
        (lambda: tdjax.tail_size(jnp.ones(3), 0.1, 0.0), "bound must lie in"),
    ],
)
def test_what_indices_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()
