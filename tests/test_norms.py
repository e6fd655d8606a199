import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tdjax.decompose import cp_als, hosvd, truncated_svd, tt_svd, tucker_als
from tdjax.norms import ModeWeighted, in_norm

SHAPE = (6, 5, 4)


def tensor(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def root(size, seed):
    """Far from orthogonal, condition number about 30, and not symmetric."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(2))
    return (left * np.geomspace(1, 1 / 30, size)) @ right


def weighted(*roots):
    return ModeWeighted(tuple(None if r is None else jnp.asarray(r, jnp.float32) for r in roots))


def multiply(x, roots):
    """The modes of x times the roots, in float64."""
    modes = string.ascii_lowercase[: x.ndim]
    y = np.asarray(x, np.float64)
    for mode, matrix in zip(modes, roots, strict=True):
        if matrix is not None:
            y = np.einsum(f"z{mode},{modes}->{modes.replace(mode, 'z')}", matrix, y)
    return y


def inverses(roots):
    return [None if r is None else np.linalg.inv(r) for r in roots]


ROOTS = (root(6, 1), None, root(4, 2))

DECOMPOSITIONS = {
    "cp": lambda x, norm: cp_als(x, 2, key=jax.random.key(0), tol=1e-5, norm=norm)[0],
    "tucker": lambda x, norm: tucker_als(x, (2, None, 3), max_iters=15, norm=norm)[0],
    "hosvd": lambda x, norm: hosvd(x, (2, None, 3), norm=norm),
    "tt": lambda x, norm: tt_svd(x, (3, 2), norm=norm),
    "tt eps": lambda x, norm: tt_svd(x, eps=0.3, norm=norm),
}


@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_weighted_decomposition_is_the_transformed_problem(name):
    decompose = DECOMPOSITIONS[name]
    x = tensor(*SHAPE)
    found = decompose(x, weighted(*ROOTS)).to_tensor()
    moved = multiply(x, ROOTS)
    transformed = decompose(moved.astype(np.float32), None).to_tensor()
    expected = multiply(transformed, inverses(ROOTS))
    # The sweeps may end one apart.
    tolerance = 1e-2 if name in ("cp", "tucker") else 1e-4
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())
    errors = [
        np.linalg.norm(difference)
        for difference in (multiply(x - found, ROOTS), moved - transformed)
    ]
    np.testing.assert_allclose(*errors, rtol=1e-4)


@pytest.mark.parametrize("name", ["cp", "tucker", "tt"])
def test_weighted_decomposition_beats_the_unweighted_in_its_norm(name):
    x = tensor(*SHAPE)

    def error(norm):
        difference = x - DECOMPOSITIONS[name](x, norm).to_tensor()
        return np.linalg.norm(multiply(difference, ROOTS))

    assert error(weighted(*ROOTS)) < 0.9 * error(None)


def test_weighted_svd_is_optimal():
    """Eckart-Young for L1 X L2^T gives the least weighted error of any matrix of that rank."""
    x, roots = tensor(7, 5), (root(7, 3), root(5, 4))
    singular = np.linalg.svd(multiply(x, roots), compute_uv=False)
    for rank in (1, 3):
        lowrank = truncated_svd(x, rank, norm=weighted(*roots))
        error = np.linalg.norm(multiply(x - lowrank.to_tensor(), roots))
        np.testing.assert_allclose(error, np.linalg.norm(singular[rank:]), rtol=1e-4)
        assert np.linalg.matrix_rank(lowrank.to_tensor(), tol=1e-4) == rank


def test_only_the_second_moment_of_a_root_matters():
    x = tensor(7, 5)
    left = root(7, 3)
    rotation = np.linalg.qr(tensor(7, 7, seed=5).astype(np.float64))[0]
    one, other = (
        truncated_svd(x, 2, norm=weighted(r, None)).to_tensor() for r in (left, rotation @ left)
    )
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * np.abs(one).max())


def test_no_roots_is_frobenius():
    x = tensor(7, 5)
    plain = truncated_svd(x, 2)
    for norm in (weighted(None, None), weighted(np.eye(7), 3 * np.eye(5))):
        np.testing.assert_allclose(
            truncated_svd(x, 2, norm=norm).to_tensor(), plain.to_tensor(), rtol=0, atol=1e-5
        )


def test_coordinates_round_trip():
    x = tensor(*SHAPE)
    norm = weighted(*ROOTS)
    moved = norm.to_frobenius(jnp.asarray(x))
    np.testing.assert_allclose(moved, multiply(x, ROOTS), rtol=0, atol=1e-5)
    exact = tt_svd(moved, (6, 4))
    np.testing.assert_allclose(norm.from_frobenius(exact).to_tensor(), x, rtol=0, atol=1e-4)


def test_norm_passes_through_jit_and_vmap():
    x = tensor(7, 5)
    lefts = [root(7, seed) for seed in range(3)]
    norms = [weighted(left, None) for left in lefts]
    stacked = jax.tree.map(lambda *roots: jnp.stack(roots), *norms)

    def run(norm):
        return truncated_svd(x, 2, norm=norm).to_tensor()

    for norm, batched in zip(norms, jax.vmap(run)(stacked), strict=True):
        np.testing.assert_allclose(jax.jit(run)(norm), run(norm), rtol=0, atol=1e-4)
        np.testing.assert_allclose(batched, run(norm), rtol=0, atol=1e-4)


def test_in_norm_hands_the_information_on():
    x = jnp.asarray(tensor(4, 3))
    seen = []

    def decompose(y):
        seen.append(np.asarray(y))
        return truncated_svd(y, 3), "information"

    roots = (2 * np.eye(4), None)
    for norm, expected in ((None, x), (weighted(*roots), 2 * x)):
        result, information = in_norm(norm, decompose, x)
        assert information == "information"
        np.testing.assert_allclose(seen.pop(), expected, rtol=1e-6)
        np.testing.assert_allclose(result.to_tensor(), x, rtol=0, atol=1e-5)


def test_one_root_for_each_mode():
    with pytest.raises(ValueError, match="1 matrices for an array of 2 modes"):
        truncated_svd(tensor(4, 3), 1, norm=weighted(np.eye(4)))
