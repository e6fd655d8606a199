"""What holds for every decomposition in the norm of a second moment."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_moments import kernel, patch_moment, weighted_error, with_ridge

from tdjax.decompose import cp_als, hosvd, truncated_svd, tt_als, tt_svd, tucker_als, weighted_als
from tdjax.decompose.formats import CP, TT, LowRank, Tucker
from tdjax.decompose.norms import Covariance, Frobenius, Kronecker, ModeWeighted
from tdjax.decompose.weighted import conjugate_gradients, robust_cholesky

SHAPE = (2, 3, 5, 6)
D, T = 30, 6
KEY = jax.random.key(0)

METHODS = {
    "svd": lambda x, norm: (truncated_svd(x.reshape(-1, x.shape[-1]), 3, norm=norm), None),
    "cp": lambda x, norm: cp_als(x, 4, key=KEY, max_iters=30, tol=0.0, norm=norm),
    "hosvd": lambda x, norm: (hosvd(x, (None, None, 3, 4), norm=norm), None),
    "tucker": lambda x, norm: tucker_als(x, (None, None, 3, 4), max_iters=30, norm=norm),
    "tt_svd": lambda x, norm: (tt_svd(x, (2, 4, 4), norm=norm), None),
    "tt": lambda x, norm: tt_als(x, (2, 4, 4), max_iters=30, norm=norm),
}
ITERATED = ("cp", "tucker", "tt")
EVERY = pytest.mark.parametrize("name", METHODS)


@functools.cache
def compiled(name):
    return jax.jit(METHODS[name])


def moment(kind="full"):
    whole = patch_moment(5)[: 2 * 15, : 2 * 15]
    if kind == "diagonal":
        return np.diag(whole)
    if kind == "singular":
        values, vectors = np.linalg.eigh(whole)
        return (vectors * np.where(values > np.median(values), values, 0)) @ vectors.T
    return whole


def gradient_moment():
    root = np.random.default_rng(7).standard_normal((T, T)) * np.geomspace(1, 0.1, T)
    return root @ root.T


def covariance(s, **kwargs):
    return Covariance(jnp.asarray(s, jnp.float32), **kwargs)


def run(name, x, norm):
    result, info = compiled(name)(jnp.asarray(x), norm)
    return np.asarray(result.to_tensor()).reshape(x.shape), info


X = kernel(*SHAPE)


@EVERY
def test_better_than_without_the_norm(name):
    s = with_ridge(moment())
    ours, info = run(name, X, covariance(moment()))
    plain, _ = run(name, X, None)
    error = weighted_error(X, ours, s)
    assert error < 0.97 * weighted_error(X, plain, s)
    if info is not None:
        np.testing.assert_allclose(info.error, error, rtol=1e-4)


@pytest.mark.parametrize("name", ITERATED)
@pytest.mark.parametrize("kind", ["full", "singular", "diagonal"])
def test_errors_only_fall(name, kind):
    _, info = run(name, X, covariance(moment(kind)))
    made = int(info.iterations)
    errors = np.asarray(info.errors)
    assert made >= 1
    assert np.isfinite(errors[:made]).all()
    assert np.isnan(errors[made:]).all()
    assert (np.diff(errors[:made]) <= 0).all()
    np.testing.assert_allclose(errors[made - 1], info.error, rtol=1e-3)


@EVERY
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_an_identity_is_the_frobenius_norm(name, scale):
    identity = np.linalg.norm(X - run(name, X, covariance(scale * np.eye(D)))[0])
    plain = np.linalg.norm(X - run(name, X, None)[0])
    # Without a moment the sweeps of CP and the truncations of TT are others.
    tolerance = 0.02 if name in ("cp", "tt_svd") else 1e-4
    assert identity <= (1 + tolerance) * plain
    if name not in ("cp", "tt_svd", "hosvd"):
        np.testing.assert_allclose(identity, plain, rtol=1e-4)


@pytest.mark.parametrize("name", ["svd", "tt_svd"])
def test_frobenius_is_no_norm(name):
    plain, _ = run(name, X, None)
    for norm in (Frobenius(), ModeWeighted((None,) * (2 if name == "svd" else 4))):
        np.testing.assert_array_equal(run(name, X, norm)[0], plain)


@EVERY
def test_a_diagonal_is_its_matrix(name):
    diagonal = moment("diagonal")
    short, whole = (run(name, X, covariance(s))[0] for s in (diagonal, np.diag(diagonal)))
    np.testing.assert_allclose(short, whole, rtol=0, atol=1e-2)
    errors = [weighted_error(X, found, np.diag(diagonal)) for found in (short, whole)]
    np.testing.assert_allclose(*errors, rtol=1e-4)


@EVERY
def test_zeros_count_as_the_identity(name):
    for s in (np.zeros((D, D)), np.zeros(D)):
        found, info = run(name, X, covariance(s))
        expected, _ = run(name, X, covariance(np.eye(D)))
        # Where errors are flat, two sweeps more move single numbers.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-2)
        errors = [np.linalg.norm(X - result) for result in (found, expected)]
        np.testing.assert_allclose(*errors, rtol=1e-6)
        if info is not None:
            assert np.isfinite(info.error)


@pytest.mark.parametrize("rank", [1, 10])
@pytest.mark.parametrize(
    ("name", "ridge"), [*((name, 1e-6) for name in METHODS), ("svd", 0.0), ("tucker", 0.0)]
)
def test_singular_moments(name, rank, ridge):
    """Directions that no input takes cost nothing, so fewer than D terms are to be approximated."""
    root = np.random.default_rng(3).standard_normal((D, rank))
    s = root @ root.T / rank
    found, info = run(name, X, covariance(s, ridge=ridge))
    assert np.isfinite(found).all()
    error = weighted_error(X, found, s)
    plain = weighted_error(X, run(name, X, None)[0], s)
    assert error < plain
    if rank == 1:
        assert error < 1e-2
    if info is not None:
        with_it = weighted_error(X, found, with_ridge(s, ridge))
        np.testing.assert_allclose(info.error, with_it, rtol=1e-2, atol=5e-4)
    assert np.abs(found).max() < 1e3


@EVERY
def test_an_array_of_zeros(name):
    found, info = run(name, np.zeros_like(X), covariance(moment()))
    np.testing.assert_array_equal(found, 0)
    if info is not None:
        assert float(info.error) == 0


@settings(max_examples=10, deadline=None)
@given(
    name=st.sampled_from(["svd", "tucker", "tt", "cp"]),
    exponent=st.floats(-8, 8),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_scale_of_a_moment_does_not_matter(name, exponent, seed):
    s = with_ridge(moment())
    x = kernel(*SHAPE, seed=seed)
    found = [
        weighted_error(x, run(name, x, covariance(scale * moment()))[0], s)
        for scale in (1.0, 10**exponent)
    ]
    np.testing.assert_allclose(*found, rtol=1e-2)


@EVERY
@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_kronecker_is_one_sided_after_a_root_of_the_gradients(name, kind):
    s, g = moment(), gradient_moment()
    if kind == "diagonal":
        s, g = np.diag(s), np.diag(g)
    norm = Kronecker(jnp.asarray(s, jnp.float32), jnp.asarray(g, jnp.float32))
    found, info = run(name, X, norm)
    s, g = (m if m.ndim == 2 else np.diag(m) for m in (s, g))
    s, g = with_ridge(s), with_ridge(g)
    error = weighted_error(X, found, s, g)
    # CP ends in another optimum after another root.
    moved = (X @ np.linalg.cholesky(g)).astype(np.float32)
    one_sided, _ = run(name, moved, covariance(s))
    np.testing.assert_allclose(error, weighted_error(moved, one_sided, s), rtol=1e-3)
    assert error < weighted_error(X, run(name, X, covariance(s))[0], s, g)
    if info is not None:
        np.testing.assert_allclose(info.error, error, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "gradient"),
    [("svd", False), ("svd", True), ("cp", False), ("tucker", False), ("tt", False)],
)
def test_vmap_and_jit_equal_a_loop(name, gradient):
    xs = jnp.asarray(np.stack([kernel(*SHAPE, seed=seed) for seed in (1, 2)]))
    moments = jnp.asarray(np.stack([moment(), moment("singular")]), jnp.float32)
    g = jnp.asarray(gradient_moment(), jnp.float32)

    def dense(x, s):
        norm = Kronecker(s, g) if gradient else Covariance(s)
        return METHODS[name](x, norm)[0].to_tensor()

    batched = jax.jit(jax.vmap(dense))(xs, moments)
    for x, s, together in zip(xs, moments, batched, strict=True):
        s64 = with_ridge(np.asarray(s, np.float64))
        g64 = with_ridge(np.asarray(g, np.float64)) if gradient else np.eye(T)
        alone, _ = run(name, x, Kronecker(s, g) if gradient else Covariance(s))
        reference = weighted_error(x, alone, s64, g64)
        for found in (together, *([dense(x, s)] if name == "svd" else [])):
            # One sweep more or fewer where the last ones change nothing but rounding.
            error = weighted_error(x, np.reshape(found, SHAPE), s64, g64)
            np.testing.assert_allclose(error, reference, rtol=2e-3)


def test_norms_can_be_stacked():
    norms = [covariance(moment()), covariance(moment("singular"))]
    stacked = jax.tree.map(lambda *s: jnp.stack(s), *norms)
    batched = jax.vmap(lambda norm: METHODS["svd"](jnp.asarray(X), norm)[0].to_tensor())(stacked)
    for norm, found in zip(norms, batched, strict=True):
        np.testing.assert_allclose(found.reshape(SHAPE), run("svd", X, norm)[0], atol=1e-3)


def test_float64_stays(float64):
    with float64():
        x = jnp.asarray(X, jnp.float64)
        norm = Covariance(jnp.asarray(moment()))
        for name in ("svd", "tucker"):
            result, info = METHODS[name](x, norm)
            assert {leaf.dtype for leaf in jax.tree.leaves(result)} == {np.dtype("float64")}
            assert info is None or info.errors.dtype == np.float64


@EVERY
def test_a_moment_of_another_size(name):
    for s in (np.eye(D + 1), np.ones(T)):
        with pytest.raises(ValueError, match=rf"second_moment of shape .* {D} rows are needed"):
            METHODS[name](jnp.asarray(X), covariance(s))
    norm = Kronecker(jnp.eye(D), jnp.eye(T + 1))
    with pytest.raises(ValueError, match=f"gradient_moment of shape .* {T} rows are needed"):
        METHODS[name](jnp.asarray(X), norm)


STARTS = {
    "low rank": lambda x: LowRank(*_gaussians((D, 3), (3, T))),
    "cp": lambda x: CP(_gaussians((2, 4), (3, 4), (5, 4), (T, 4))),
    "tucker": lambda x: Tucker(
        _gaussians((2, 3, 3, 4))[0], (None, None, *_gaussians((5, 3), (T, 4)))
    ),
    "tt": lambda x: TT(_gaussians((1, 2, 2), (2, 3, 4), (4, 5, 4), (4, T, 1))),
}


def _gaussians(*shapes):
    return tuple(jnp.asarray(kernel(*shape, seed=k)) for k, shape in enumerate(shapes))


@pytest.mark.parametrize(
    ("start", "name"), [("low rank", "svd"), ("cp", "cp"), ("tucker", "tucker"), ("tt", "tt")]
)
def test_the_generic_engine_agrees(start, name):
    """From random factors and with no thought of the format, to the same error or nearly."""
    norm = Kronecker(
        jnp.asarray(moment(), jnp.float32), jnp.asarray(gradient_moment(), jnp.float32)
    )
    x = jnp.asarray(X).reshape(D, T) if start == "low rank" else jnp.asarray(X)
    first = STARTS[start](x)
    _, info = jax.jit(lambda x, first: weighted_als(x, first, norm.weigh, max_iters=100, steps=20))(
        x, first
    )
    errors = np.asarray(info.errors)[: int(info.iterations)]
    assert (np.diff(errors) <= 0).all()
    found, _ = run(name, X, norm)
    s, g = with_ridge(moment()), with_ridge(gradient_moment())
    # From unlike starts CP ends in unlike optima.
    slack = 1.05 if start == "cp" else 1.01
    np.testing.assert_allclose(info.error, weighted_error(X, found, s, g), rtol=slack - 1)


def test_generic_engine_with_any_operator():
    """Weights of single entries: a mask of what is known, the rest is filled in."""
    exact = np.einsum("ar,br,cr->abc", *(kernel(n, 1, seed=n) for n in (6, 5, 4)))
    mask = np.random.default_rng(0).random(exact.shape) < 0.7
    start = CP(_gaussians((6, 1), (5, 1), (4, 1)))
    x = np.where(mask, exact, 100.0).astype(np.float32)
    cp, info = weighted_als(jnp.asarray(x), start, lambda e: e * mask, max_iters=60)
    assert float(info.error) < 1e-4
    np.testing.assert_allclose(cp.to_tensor(), exact, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match=r"start has shape \(6, 5, 4\), expected \(6, 5\)"):
        weighted_als(jnp.ones((6, 5)), start, operator.pos)


def test_conjugate_gradients():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((6, 6))
    normal = root @ root.T + np.eye(6)
    right = rng.standard_normal(6)
    expected = np.linalg.solve(normal, right)
    a, b = jnp.asarray(normal, jnp.float32), jnp.asarray(right, jnp.float32)
    for precondition, steps in ((lambda y: y, 6), (lambda y: y / jnp.diagonal(a), 6)):
        found = conjugate_gradients(lambda y: a @ y, b, precondition, steps)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    exact = conjugate_gradients(lambda y: a @ y, b, lambda y: jnp.linalg.solve(a, y), 1)
    np.testing.assert_allclose(exact, expected, rtol=0, atol=1e-4)
    for operator_ in (lambda y: 0 * y, lambda y: -y):
        np.testing.assert_array_equal(conjugate_gradients(operator_, b, lambda y: y, 3), 0)


def test_robust_cholesky():
    rng = np.random.default_rng(0)
    for rank in (8, 3, 1):
        root = rng.standard_normal((8, rank)).astype(np.float32)
        matrix = root @ root.T
        factor = np.asarray(robust_cholesky(jnp.asarray(matrix)))
        assert (factor == np.tril(factor)).all()
        np.testing.assert_allclose(factor @ factor.T, matrix, rtol=0, atol=1e-3)
    indefinite = np.diag([1.0, 1.0, -1e-3]).astype(np.float32)
    assert np.isfinite(robust_cholesky(jnp.asarray(indefinite))).all()
    assert np.isfinite(robust_cholesky(jnp.zeros((3, 3)))).all()
