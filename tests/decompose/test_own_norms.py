"""Norms that a user defines, in every decomposition."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_moments import alternate, kernel, matrix, weighted_error

import tdjax

SHAPE = (3, 3, 6, 8)
D, T = 54, 8
X = kernel(*SHAPE)
WEIGHTS = np.random.default_rng(4).uniform(0.01, 1.0, D) ** 2
S = np.diag(WEIGHTS)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowWeighted(tdjax.Norm):
    """The root of the sum of squares, each row weighed by itself."""

    weights: jax.Array

    def coordinates(self, x):
        return tdjax.Coordinates(row_weight=self.weights)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TwoSided(tdjax.Norm):
    """tr(Y^T S Y) of a matrix Y = L X R^T: all that coordinates may have."""

    left: jax.Array
    weight: jax.Array
    right: jax.Array

    def coordinates(self, x):
        return tdjax.Coordinates((self.left, self.right), self.weight, balanced=True)


NORM = RowWeighted(jnp.asarray(WEIGHTS, jnp.float32))


def two_sided():
    rng = np.random.default_rng(5)
    left, right = (np.eye(n) + 0.3 * rng.standard_normal((n, n)) for n in (6, T))
    half = rng.standard_normal((6, 8))
    return left, half @ half.T / 8, right


def test_the_norm_is_that_of_numpy():
    x, y = (np.float64(kernel(*SHAPE, seed=seed)) for seed in (1, 2))
    weighed = WEIGHTS.reshape(3, 3, 6, 1) * y
    one, other = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    np.testing.assert_allclose(NORM.weigh(other), weighed, rtol=1e-5)
    np.testing.assert_allclose(NORM.inner(one, other), np.sum(x * weighed), rtol=1e-4)
    np.testing.assert_allclose(
        NORM.diagonal(one), np.broadcast_to(WEIGHTS.reshape(3, 3, 6, 1), SHAPE), rtol=1e-5
    )
    np.testing.assert_allclose(NORM.relative_error(one, other), weighted_error(x, y, S), rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 3, 7])
@pytest.mark.parametrize("pad", [False, True])
def test_truncated_svd_is_the_closed_form(rank, pad):
    """Eckart and Young for the rows multiplied by the roots of their weights."""
    root = np.sqrt(WEIGHTS)[:, None]
    u, values, vt = np.linalg.svd(root * matrix(X), full_matrices=False)
    best = (u[:, :rank] * values[:rank]) @ vt[:rank] / root
    found = tdjax.truncated_svd(matrix(X).astype(np.float32), rank, norm=NORM, pad=pad)
    np.testing.assert_allclose(found.to_tensor(), best, rtol=0, atol=1e-3 * abs(best).max())
    expected = math.sqrt(np.sum(values[rank:] ** 2) / np.sum(values**2))
    np.testing.assert_allclose(weighted_error(X, found.to_tensor(), S), expected, rtol=1e-4)


def test_cp_is_at_most_as_far_as_exact_solves():
    start = tdjax.cp_als(X, 4, key=jax.random.key(0), tol=1e-5)[0]
    cp, info = tdjax.cp_als(X, 4, init=start, tol=0.0, norm=NORM)
    _, errors = alternate("ar,br,cr,dr->abcd", start.factors, (2, 0, 1, 3), X, S)
    compare(cp, info, start, errors[-1])


def test_tucker_is_at_most_as_far_as_exact_solves():
    ranks = (None, None, 3, 4)
    start = tdjax.hosvd(X, ranks)
    factors = (start.core, start.factors[2], start.factors[3])
    tucker, info = tdjax.tucker_als(X, ranks, norm=NORM)
    _, errors = alternate("abCD,cC,dD->abcd", factors, (1, 2, 0), X, S)
    compare(tucker, info, start, errors[-1])


def test_tt_is_at_most_as_far_as_exact_solves():
    ranks = (2, 4, 4)
    start = tdjax.tt_svd(X, ranks)
    first, second, third, last = start.cores
    factors = (first[0], second, third, last[:, :, 0])
    tt, info = tdjax.tt_als(X, ranks, norm=NORM)
    _, errors = alternate("ap,pbq,qcr,rd->abcd", factors, range(4), X, S)
    compare(tt, info, start, errors[-1])


def compare(found, info, start, exact):
    """An error as NumPy has it, no larger than after exact solves, and less than unweighted."""
    error = weighted_error(X, found.to_tensor(), S)
    np.testing.assert_allclose(info.error, error, rtol=1e-4)
    assert error <= 1.001 * exact
    assert error < 0.99 * weighted_error(X, start.to_tensor(), S)


def test_under_jit_and_vmap():
    weights = jnp.stack([NORM.weights, NORM.weights[::-1]])

    def dense(w):
        lowrank = tdjax.truncated_svd(X.reshape(D, T), 2, norm=RowWeighted(w))
        tucker, _ = tdjax.tucker_als(X, (None, None, 3, 4), norm=RowWeighted(w), max_iters=5)
        return lowrank.to_tensor(), tucker.to_tensor()

    for w, *found in zip(weights, *jax.jit(jax.vmap(dense))(weights), strict=True):
        for together, alone in zip(found, dense(w), strict=True):
            np.testing.assert_allclose(together, alone, rtol=0, atol=1e-3)


def test_roots_and_a_row_weight_together():
    left, weight, right = two_sided()
    norm = TwoSided(*(jnp.asarray(m, jnp.float32) for m in (left, weight, right)))
    x = kernel(6, T, seed=3)
    s, g = left.T @ weight @ left, right.T @ right
    operator = np.kron(s, g)
    one = jnp.asarray(x)
    np.testing.assert_allclose(
        np.ravel(norm.weigh(one)), operator @ x.ravel().astype(np.float64), rtol=0, atol=1e-3
    )
    np.testing.assert_allclose(np.ravel(norm.diagonal(one)), np.diag(operator), rtol=1e-4)
    halves = [np.linalg.cholesky(m).T for m in (s, g)]
    values = np.linalg.svd(halves[0] @ x @ halves[1].T, compute_uv=False)
    best = math.sqrt(np.sum(values[2:] ** 2) / np.sum(values**2))
    for found in (
        tdjax.truncated_svd(x, 2, norm=norm),
        tdjax.grouped_svd(x, 2, 1, norm=norm)[0],
    ):
        np.testing.assert_allclose(weighted_error(x, found.to_tensor(), s, g), best, rtol=1e-3)
    # A root of the rows mixes blocks of them, whose error is that of its square all the same.
    blocks, info = tdjax.grouped_svd(x, 1, 3, norm=norm)
    np.testing.assert_allclose(info.error, weighted_error(x, blocks.to_tensor(), s, g), rtol=1e-3)
    _, expected = tdjax.grouped_svd(
        x, 1, 3, norm=tdjax.Kronecker(np.float32(s), np.float32(g), ridge=0.0)
    )
    np.testing.assert_allclose(info.error, expected.error, rtol=1e-3)


def test_what_is_no_fit():
    with pytest.raises(ValueError, match=r"row_weight of RowWeighted of shape \(5,\) does not fit"):
        tdjax.tucker_als(X, (None, None, 3, 4), norm=RowWeighted(jnp.ones(5)))

    @dataclasses.dataclass(frozen=True)
    class Unregistered(RowWeighted):
        pass

    with pytest.raises(TypeError, match="Unregistered is no pytree; decorate the class"):
        tdjax.truncated_svd(X.reshape(D, T), 2, norm=Unregistered(NORM.weights))
