import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tdjax.decompose import cp_als, grouped_svd, truncated_svd, tt_als, tt_svd, tucker_als
from tdjax.decompose.cp import _cp_als, _padded_rank
from tdjax.decompose.grouped import _coupled, _uncoupled
from tdjax.decompose.norms import Covariance, Kronecker, ModeWeighted
from tdjax.decompose.padding import rounded_up
from tdjax.decompose.scale import relative_error
from tdjax.decompose.svd import leading_subspace
from tdjax.decompose.tucker import _tucker
from tdjax.decompose.weighted_cp import weighted_cp
from tdjax.decompose.weighted_tt import weighted_tt

C, T = 24, 20
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((3, C, T)), jnp.float32)


def moment(size):
    rows = RNG.standard_normal((4 * size, size)) * np.geomspace(1, 0.1, size)
    return jnp.asarray(rows.T @ rows / len(rows), jnp.float32)


NORMS = {
    "frobenius": None,
    "covariance": Covariance(moment(3 * C)),
    "kronecker": Kronecker(moment(3 * C), moment(T)),
}


@pytest.mark.parametrize("name", NORMS)
def test_padding_changes_no_tucker_decomposition(name):
    norm = NORMS[name]
    plain, info = tucker_als(X, (None, 5, 7), norm=norm, max_iters=10)
    padded, same = tucker_als(X, (None, 5, 7), norm=norm, max_iters=10, pad=True)
    assert padded.ranks == plain.ranks == (5, 7)
    assert padded.core.shape == plain.core.shape == (3, 5, 7)
    np.testing.assert_allclose(same.error, info.error, rtol=1e-4)
    np.testing.assert_allclose(padded.to_tensor(), plain.to_tensor(), atol=2e-3)
    for factor in padded.factors[1:]:
        np.testing.assert_allclose(factor.T @ factor, np.eye(factor.shape[1]), atol=1e-5)


def test_padding_serves_a_mode_that_is_compressed_alone():
    plain, _ = tucker_als(X, (None, None, 7), norm=NORMS["covariance"])
    padded, _ = tucker_als(X, (None, None, 7), norm=NORMS["covariance"], pad=True)
    np.testing.assert_allclose(padded.to_tensor(), plain.to_tensor(), atol=1e-4)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("shape", [(3 * C, T), (T, 3 * C)])
def test_padding_changes_no_low_rank(name, shape):
    norm = NORMS[name] if shape[1] == T else None
    x = X.reshape(-1, T).reshape(shape)
    for rank in (1, 6, min(shape)):
        plain, padded = (truncated_svd(x, rank, norm=norm, pad=pad) for pad in (False, True))
        assert (padded.left.shape, padded.right.shape) == (plain.left.shape, plain.right.shape)
        np.testing.assert_allclose(padded.to_tensor(), plain.to_tensor(), atol=1e-4)


def test_padding_in_weighted_modes():
    norm = ModeWeighted((None, jnp.diag(jnp.linspace(1, 2, C)), None))
    plain, padded = (
        tucker_als(X, (None, 5, 7), norm=norm, max_iters=10, pad=pad)[0] for pad in (False, True)
    )
    np.testing.assert_allclose(padded.to_tensor(), plain.to_tensor(), atol=1e-3)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
@pytest.mark.parametrize("accurate", [True, False])
def test_columns_behind_those_kept_are_zero(shape, accurate):
    x = jnp.asarray(RNG.standard_normal(shape), jnp.float32)
    basis = leading_subspace(x, shape[0], accurate=accurate, kept=3)
    assert basis.shape == (shape[0], shape[0])
    assert not basis[:, 3:].any()
    plain = leading_subspace(x, 3, accurate=accurate)
    np.testing.assert_allclose(basis @ basis.T, plain @ plain.T, atol=1e-5)


def test_many_ranks_share_a_program():
    tucker_als(X, (None, 2, 3), pad=True)
    programs = _tucker._cache_size()
    for ranks in ((None, 7, 14), (None, 12, 5)):
        tucker_als(X, ranks, pad=True)
    assert _tucker._cache_size() == programs


@pytest.mark.parametrize(
    ("rank", "size", "expected"),
    [(1, 8, 8), (8, 8, 8), (17, 20, 20), (1, 128, 64), (1, 64, 64), (65, 512, 128), (1, 513, 65)],
)
def test_ranks_are_rounded_up(rank, size, expected):
    assert rounded_up(rank, size) == expected


@pytest.mark.parametrize("kind", ["frobenius", "kronecker"])
def test_terms_of_zeros_change_no_cp_and_share_its_program(kind):
    norm = NORMS[kind]
    given = {"key": jax.random.key(1), "init": "normal", "norm": norm, "max_iters": 10}
    _, before = cp_als(X, 7, **given)
    for rank in (7, 5):
        programs = _cp_als._cache_size(), weighted_cp._cache_size()
        padded, info = cp_als(X, rank, **given, pad=True)
        assert padded.ranks == (rank,)
        if rank == 7:
            np.testing.assert_allclose(info.error, before.error, rtol=1e-3)
        dense = padded.to_tensor()
        own = relative_error(X, dense) if norm is None else norm.relative_error(X, dense)
        np.testing.assert_allclose(own, info.error, rtol=1e-3)
    assert (_cp_als._cache_size(), weighted_cp._cache_size()) == programs


def test_padded_ranks_solve_the_same_equations():
    for size in (20, 60, 256):
        for rank in range(1, 300):
            padded = _padded_rank(rank, (3, 3, 8, size))
            assert rank <= padded <= max(rank + 7, 1.13 * rank)
            assert (padded > size) == (rank > size)
            assert [padded > most for most in (24, 64)] == [rank > most for most in (24, 64)]


@pytest.mark.parametrize("kind", ["frobenius", "kronecker"])
def test_padding_changes_no_train_and_ranks_share_a_program(kind):
    x, norm = X.reshape(3, 4, 6, T), NORMS[kind]
    plain, before = tt_als(x, (3, 7, 9), norm=norm, max_iters=5)
    for ranks in ((3, 7, 9), (2, 5, 11)):
        programs = weighted_tt._cache_size()
        padded, info = tt_als(x, ranks, norm=norm, max_iters=5, pad=True)
        assert padded.ranks == ranks
        if ranks == plain.ranks:
            np.testing.assert_allclose(info.error, before.error, rtol=1e-3)
        dense = padded.to_tensor()
        own = relative_error(x, dense) if norm is None else norm.relative_error(x, dense)
        np.testing.assert_allclose(own, info.error, rtol=1e-3)
    assert weighted_tt._cache_size() == programs


@pytest.mark.parametrize("shape", [(6, 3, 3, 8), (40, 2, 2, 3)])
def test_trains_by_numpy_lose_what_programs_do(shape):
    x = jnp.asarray(RNG.standard_normal(shape), jnp.float32)
    for ranks in ((4, 5, 3), (6, 9, 8), (1, 1, 1)):
        found, plain = tt_svd(2.0**70 * x, ranks, pad=True), tt_svd(x, ranks)
        assert found.ranks == plain.ranks
        pair = [relative_error(x, own) for own in (found.to_tensor() / 2.0**70, plain.to_tensor())]
        np.testing.assert_allclose(*pair, rtol=1e-4, atol=1e-5)
        for core in found.cores[:-1]:
            flat = np.asarray(core).reshape(-1, core.shape[2])
            np.testing.assert_allclose(flat.T @ flat, np.eye(core.shape[2]), atol=1e-5)


@pytest.mark.parametrize("name", ["frobenius", "covariance", "kronecker", "diagonal"])
def test_groups_by_numpy_lose_what_programs_do(name):
    x = jnp.asarray(RNG.standard_normal((24, 7)), jnp.float32)
    s, g = moment(24), moment(7)
    norm = {
        "frobenius": None,
        "covariance": Covariance(s),
        "kronecker": Kronecker(s, g),
        "diagonal": Kronecker(jnp.diagonal(s), jnp.diagonal(g)),
    }[name]
    every = ((4, 2), (1, 3), (3, 7), (24, 1))
    for splits, rank in every if norm is None else every[:1]:
        programs = _uncoupled._cache_size(), _coupled._cache_size()
        found, info = grouped_svd(x, rank, splits, pad=True, norm=norm)
        assert (_uncoupled._cache_size(), _coupled._cache_size()) == programs
        plain, before = grouped_svd(x, rank, splits, norm=norm)
        np.testing.assert_allclose(
            found.to_tensor(), plain.to_tensor(), atol=1e-4 if norm is None else 1e-2
        )
        np.testing.assert_allclose(info.error, before.error, rtol=1e-4, atol=1e-5)
        assert info.errors.shape == before.errors.shape
        sizes = [np.linalg.norm(own, axis=(1, 2)) for own in (found.left, found.right)]
        np.testing.assert_allclose(*sizes, rtol=1e-3)
