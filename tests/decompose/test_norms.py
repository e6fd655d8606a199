import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdjax.decompose import cp_als, hosvd, truncated_svd, tt_svd, tucker_als
from tdjax.decompose.coordinates import Norm, check_known, coordinates_of
from tdjax.decompose.norms import Covariance, Frobenius, Kronecker, ModeWeighted
from tdjax.decompose.second_moment import regularised, roots

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
    x = jnp.asarray(tensor(*SHAPE))
    norm = weighted(*ROOTS)
    space = norm.coordinates(x)
    moved = space.of_array(x)
    np.testing.assert_allclose(moved, multiply(x, ROOTS), rtol=0, atol=1e-5)
    exact = tt_svd(moved, (6, 4))
    np.testing.assert_allclose(space.back(exact).to_tensor(), x, rtol=0, atol=1e-4)
    again = space.of_format(space.back(exact)).to_tensor()
    np.testing.assert_allclose(again, moved, rtol=0, atol=1e-4)


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


def test_coordinates_with_and_without_a_norm():
    x = jnp.asarray(tensor(4, 3))
    roots = (2 * np.eye(4), None)
    for norm, expected in ((None, x), (weighted(*roots), 2 * x)):
        space = coordinates_of(norm, x)
        assert space.row_weight is None
        moved = space.of_array(x)
        np.testing.assert_allclose(moved, expected, rtol=1e-6)
        result = space.back(truncated_svd(moved, 3))
        np.testing.assert_allclose(result.to_tensor(), x, rtol=0, atol=1e-5)


def test_one_root_for_each_mode():
    with pytest.raises(ValueError, match="1 matrices for an array of 2 modes"):
        truncated_svd(tensor(4, 3), 1, norm=weighted(np.eye(4)))


D, T = 30, 4


def semidefinite(size, rank, seed=0):
    half = np.random.default_rng(seed).standard_normal((size, rank))
    return (half @ half.T / rank).astype(np.float32)


def full(moment, ridge=1e-6):
    """The matrix of a moment, its ridge on the diagonal."""
    matrix = np.diag(moment) if np.ndim(moment) == 1 else np.asarray(moment, np.float64)
    return matrix + ridge * np.trace(matrix) / len(matrix) * np.eye(len(matrix))


S, G = semidefinite(D, 40), semidefinite(T, 6, seed=1)
NORMS = {
    "frobenius": (Frobenius(), np.eye(D), np.eye(T)),
    "full": (Covariance(jnp.asarray(S)), full(S), np.eye(T)),
    "diagonal": (Covariance(jnp.asarray(np.diag(S))), full(np.diag(S)), np.eye(T)),
    "ridge": (Covariance(jnp.asarray(S), ridge=0.5), full(S, 0.5), np.eye(T)),
    "kronecker": (Kronecker(jnp.asarray(S), jnp.asarray(G)), full(S), full(G)),
    "diagonals": (
        Kronecker(jnp.asarray(np.diag(S)), jnp.asarray(np.diag(G))),
        full(np.diag(S)),
        full(np.diag(G)),
    ),
    "arrays of numpy": (Kronecker(S, G), full(S), full(G)),
    "zeros": (Covariance(jnp.zeros((D, D))), np.eye(D), np.eye(T)),
}


@pytest.mark.parametrize("name", NORMS)
def test_diagonals_are_those_of_the_operator(name):
    norm, s, g = NORMS[name]
    x = jnp.zeros((6, 5, T))
    expected = np.outer(np.diag(s), np.diag(g)).reshape(x.shape)
    np.testing.assert_allclose(norm.diagonal(x), expected, rtol=1e-4)
    # Whatever shorter way a norm has, it follows from the coordinates too.
    np.testing.assert_allclose(Norm.diagonal(norm, x), expected, rtol=1e-3)


@pytest.mark.parametrize("name", NORMS)
def test_norms_are_traces(name):
    norm, s, g = NORMS[name]
    x, y = tensor(6, 5, T), tensor(6, 5, T, seed=1)
    a, b = (np.float64(z).reshape(D, T) for z in (x, y))
    np.testing.assert_allclose(
        norm.weigh(jnp.asarray(x)), (s @ a @ g).reshape(x.shape), rtol=0, atol=1e-3
    )
    scale = np.trace(g @ a.T @ s @ a)
    np.testing.assert_allclose(
        norm.inner(jnp.asarray(x), jnp.asarray(y)), np.trace(g @ a.T @ s @ b), atol=1e-4 * scale
    )
    expected = np.sqrt(np.trace(g @ (a - b).T @ s @ (a - b)) / scale)
    found = norm.relative_error(jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert float(norm.relative_error(jnp.asarray(x), jnp.asarray(x))) == 0
    assert float(norm.relative_error(jnp.zeros(x.shape), jnp.zeros(x.shape))) == 0


def test_weights_of_the_modes_are_a_norm():
    x = jnp.asarray(tensor(*SHAPE))
    norm = weighted(*ROOTS)
    moved = multiply(x, ROOTS)
    np.testing.assert_allclose(norm.inner(x, x), np.sum(moved**2), rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rank=st.integers(1, 12), scale=st.floats(-6, 6))
def test_weighing_is_symmetric_and_never_negative(seed, rank, scale):
    moments = semidefinite(6, rank, seed) * np.float32(10**scale), semidefinite(3, rank, seed + 1)
    norm = Kronecker(*map(jnp.asarray, moments))
    x, y = (jnp.asarray(tensor(2, 3, 3, seed=[seed, k])) for k in (0, 1))
    size = np.prod([np.linalg.norm(m) for m in (x, y, *moments)])
    np.testing.assert_allclose(norm.inner(x, y), norm.inner(y, x), atol=1e-5 * size)
    assert float(norm.inner(x, x)) >= 0


def test_roots():
    for moment in (S, np.diag(S), semidefinite(5, 2), np.ones((4, 4), np.float32)):
        ridge = regularised(jnp.asarray(moment), 1e-6)
        root, inverse = (np.asarray(m, np.float64) for m in roots(ridge))
        np.testing.assert_allclose(root.T @ root, full(moment), rtol=0, atol=1e-4 * np.max(moment))
        np.testing.assert_allclose(root @ inverse, np.eye(len(moment)), rtol=0, atol=1e-2)


BAD = {
    "no moment at all": (np.ones((2, 3, 3)), "a square matrix or the vector"),
    "not square": (np.ones((3, 4)), "a square matrix or the vector"),
    "empty": (np.ones((0, 0)), "a square matrix or the vector"),
    "NaN": (np.array([1.0, np.nan]), "holds NaN or Inf"),
    "Inf": (np.diag([1.0, np.inf]), "holds NaN or Inf"),
    "not symmetric": (np.array([[1.0, 0.5], [0.0, 1.0]]), "differs from its transpose by 0.5"),
    "negative diagonal": (np.array([1.0, -0.5]), "not positive semi-definite"),
    "indefinite": (np.array([[1.0, 2.0], [2.0, 1.0]]), "not positive semi-definite"),
    "negative": (-np.eye(3), "not positive semi-definite"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_moment(name):
    values, message = BAD[name]
    bad = jnp.asarray(values, jnp.float32)
    with pytest.raises(ValueError, match=f"second_moment.*{message}"):
        Covariance(bad)
    with pytest.raises(ValueError, match=f"second_moment.*{message}"):
        Kronecker(bad, jnp.eye(2))
    with pytest.raises(ValueError, match=f"gradient_moment.*{message}"):
        Kronecker(jnp.eye(2), bad)


def test_moments_need_not_be_perfect():
    """Rounding leaves a sum of products a little off symmetric and semi-definite."""
    noise = 1e-5 * tensor(D, D)
    assert np.linalg.eigvalsh(semidefinite(D, 3) + (noise + noise.T) / 2).min() < 0
    found = truncated_svd(tensor(D, T), 2, norm=Covariance(jnp.asarray(semidefinite(D, 3) + noise)))
    assert np.isfinite(found.to_tensor()).all()


@pytest.mark.parametrize("ridge", [-1e-6, float("nan"), float("inf")])
def test_ridges(ridge):
    with pytest.raises(ValueError, match="ridge must be a number of at least 0"):
        Covariance(jnp.eye(3), ridge=ridge)


def test_values_are_not_asked_for_under_a_transformation():
    bad = jnp.asarray(-np.eye(D), jnp.float32)
    inner = jax.jit(lambda s: Covariance(s).inner(jnp.ones((D, T)), jnp.ones((D, T))))(bad)
    assert np.isfinite(inner)
    with pytest.raises(ValueError, match="a square matrix or the vector"):
        jax.jit(lambda s: Covariance(s).ridge)(jnp.ones((2, 3)))


def test_ridge_is_part_of_the_structure():
    leaves, structure = jax.tree.flatten(Covariance(jnp.eye(3), ridge=0.25))
    assert len(leaves) == 1
    assert jax.tree.unflatten(structure, leaves).ridge == 0.25
    assert structure != jax.tree.structure(Covariance(jnp.eye(3)))


@pytest.mark.parametrize("shape", [(D, T), (T, D), (D, D)])
def test_weighted_low_rank_is_the_closed_form(shape):
    """Eckart and Young for S^(1/2) X G^(1/2), by NumPy."""
    rows, columns = shape
    x, s, g = tensor(*shape), semidefinite(rows, rows + 3), semidefinite(columns, columns + 2)
    s_root, g_root = (
        (vectors * np.sqrt(values)) @ vectors.T
        for values, vectors in (np.linalg.eigh(full(m)) for m in (s, g))
    )
    rank = 2
    for norm, right in (
        (Covariance(jnp.asarray(s)), np.eye(columns)),
        (Kronecker(jnp.asarray(s), jnp.asarray(g)), g_root),
    ):
        u, values, vt = np.linalg.svd(s_root @ x @ right, full_matrices=False)
        error = np.linalg.norm(values[rank:]) / np.linalg.norm(values)
        best = np.linalg.solve(s_root, (u[:, :rank] * values[:rank]) @ vt[:rank]) @ np.linalg.inv(
            right
        )
        lowrank = truncated_svd(x, rank, norm=norm)
        found = s_root @ (x - lowrank.to_tensor()) @ right
        np.testing.assert_allclose(np.linalg.norm(found) / np.linalg.norm(values), error, rtol=1e-4)
        np.testing.assert_allclose(lowrank.to_tensor(), best, rtol=0, atol=2e-2 * abs(best).max())


def test_norms_that_a_decomposition_does_not_know():
    class Unknown(Norm):
        pass

    with pytest.raises(TypeError, match="abstract class Unknown"):
        Unknown()
    with pytest.raises(TypeError, match=r"a tdjax\.Norm is needed, got 'frobenius'"):
        check_known("frobenius")
    with pytest.raises(ValueError, match="eps needs a norm of the modes"):
        tt_svd(tensor(*SHAPE), eps=0.1, norm=Covariance(jnp.eye(30)))
