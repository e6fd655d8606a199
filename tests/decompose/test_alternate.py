"""A decomposition and a sparse array together, against the same alternation in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tdjax import Covariance, Kronecker, truncated_svd
from tdjax.decompose.formats import LowRank
from tdjax.decompose.sparse import Operator, alternate, scattered

RANK, NONZEROS = 3, 60
ROWS, COLUMNS = 40, 30


def low_rank_and_outliers(seed=0):
    random = np.random.default_rng(seed)
    low = random.normal(size=(ROWS, RANK)) @ random.normal(size=(RANK, COLUMNS))
    sparse = np.zeros((ROWS, COLUMNS))
    places = random.choice(sparse.size, NONZEROS, replace=False)
    sparse.flat[places] = 3 * np.abs(low).max() * random.choice([-1.0, 1.0], NONZEROS)
    return low, sparse


def noise(seed=0):
    """A matrix without structure, heavy-tailed."""
    return np.random.default_rng(seed).standard_t(3, size=(ROWS, COLUMNS))


def moments():
    random = np.random.default_rng(7)
    x = random.normal(size=(3 * ROWS, ROWS)) @ (
        np.eye(ROWS) + 0.15 * random.normal(size=(ROWS,) * 2)
    )
    g = random.normal(size=(2 * COLUMNS, COLUMNS)) * random.uniform(0.2, 2, size=COLUMNS)
    return x.T @ x / len(x), g.T @ g / len(g)


def run(matrix, norm=None, **options):
    x = jnp.asarray(matrix, jnp.float32)
    start = LowRank(jnp.zeros((ROWS, RANK)), jnp.zeros((RANK, COLUMNS)))

    @jax.jit
    def found(x):
        operator = None if norm is None else Operator(norm.weigh, norm.diagonal(x))
        return alternate(
            x,
            NONZEROS,
            lambda rest, before: truncated_svd(rest, RANK, norm=norm),
            LowRank.to_tensor,
            start,
            operator=operator,
            **options,
        )

    found = found(x)
    whole = found.part.to_tensor() + scattered(found.values, found.indices, x.shape)
    errors = np.asarray(found.errors)
    return found, np.asarray(whole, np.float64), errors[np.isfinite(errors)]


def truncated(matrix):
    u, values, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :RANK] * values[:RANK]) @ vt[:RANK]


def alternated(matrix, rows, columns, rounds):
    """The same in NumPy, for weights of the rows and columns."""
    left, right = np.sqrt(rows)[:, None], np.sqrt(columns)

    def largest(rest):
        worth = (left * rest * right) ** 2
        kept = worth >= np.sort(worth.ravel())[-NONZEROS]
        return rest * kept

    sparse, errors = largest(matrix), []
    for _ in range(rounds):
        low = truncated(left * (matrix - sparse) * right) / left / right
        sparse = largest(matrix - low)
        left_over = matrix - low - sparse
        errors.append(
            np.linalg.norm(left * left_over * right) / np.linalg.norm(left * matrix * right)
        )
    return low + sparse, errors


def test_low_rank_and_outliers_are_recovered():
    low, sparse = low_rank_and_outliers()
    found, _, errors = run(low + sparse)
    assert set(np.asarray(found.indices)) == set(np.flatnonzero(sparse))
    assert errors[-1] < 1e-5
    scale = np.abs(low).max()
    assert np.abs(np.asarray(found.part.to_tensor()) - low).max() < 1e-4 * scale
    # The truncated SVD of the same matrix, with more parameters, is far off.
    more = RANK + 1 + NONZEROS // (ROWS + COLUMNS)
    values = np.linalg.svd(low + sparse, compute_uv=False)
    assert np.linalg.norm(values[more:]) > 0.3 * np.linalg.norm(values)


@pytest.mark.parametrize("weighed", [False, True])
def test_rounds_are_those_of_numpy(weighed):
    random, matrix = np.random.default_rng(1), noise()
    rows, columns = random.uniform(0.2, 3, ROWS), random.uniform(0.2, 3, COLUMNS)
    if not weighed:
        rows, columns = np.ones(ROWS), np.ones(COLUMNS)
    norm = None
    if weighed:
        norm = Kronecker(jnp.asarray(rows, jnp.float32), jnp.asarray(columns, jnp.float32), 0.0)
    _, whole, errors = run(matrix, norm, rounds=6)
    expected, steps = alternated(matrix, rows, columns, 6)
    np.testing.assert_allclose(errors, steps, rtol=1e-4)
    np.testing.assert_allclose(whole, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["frobenius", "covariance", "kronecker"])
def test_no_round_raises_the_error(kind):
    second, gradient = moments()
    matrix = noise(2)
    norm = {
        "frobenius": None,
        "covariance": Covariance(jnp.asarray(second, jnp.float32)),
        "kronecker": Kronecker(*(jnp.asarray(m, jnp.float32) for m in (second, gradient))),
    }[kind]
    second = np.eye(ROWS) if kind == "frobenius" else second
    gradient = gradient if kind == "kronecker" else np.eye(COLUMNS)

    def error(approximation):
        def squared(x):
            return np.trace(gradient @ x.T @ second @ x)

        return np.sqrt(squared(matrix - approximation) / squared(matrix))

    found, whole, errors = run(matrix, norm)
    assert (np.diff(errors) <= 0).all()
    assert len(errors) > 3
    np.testing.assert_allclose(errors[-1], error(whole), rtol=1e-3)
    assert len(found.indices) == NONZEROS
    assert (np.diff(np.asarray(found.indices)) > 0).all()
    if kind != "frobenius":
        # What is least in the norm of the kernels loses more in this one.
        _, plain, _ = run(matrix)
        assert errors[-1] < 0.9 * error(plain)
    # The largest entries of what one decomposition leaves, unaltered, lose more.
    low = truncated_svd(jnp.asarray(matrix, jnp.float32), RANK, norm=norm)
    rest = matrix - np.asarray(low.to_tensor(), np.float64)
    worth = rest**2 * np.diag(second)[:, None] * np.diag(gradient)
    kept = worth >= np.sort(worth.ravel())[-NONZEROS]
    assert errors[-1] < error(matrix - rest * ~kept)


def test_scattered_is_differentiable_in_its_values():
    indices = jnp.asarray([1, 5, 6], jnp.int32)
    values = jnp.asarray([2.0, -1.0, 3.0])
    array = scattered(values, indices, (2, 4))
    np.testing.assert_array_equal(array, [[0, 2, 0, 0], [0, -1, 3, 0]])
    weights = jnp.arange(8.0).reshape(2, 4)
    slope = jax.grad(lambda v: jnp.sum(weights * scattered(v, indices, (2, 4))))(values)
    np.testing.assert_array_equal(slope, [1.0, 5.0, 6.0])


@pytest.mark.parametrize("nonzeros", [0, ROWS * COLUMNS + 1])
def test_nonzeros_out_of_range_are_refused(nonzeros):
    x = jnp.ones((ROWS, COLUMNS))
    with pytest.raises(ValueError, match=f"{nonzeros} nonzeros are not between 1 and 1200"):
        alternate(x, nonzeros, lambda rest, _: rest, lambda part: part, x)
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        alternate(x, 3, lambda rest, _: rest, lambda part: part, x, rounds=0)
