import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tdjax
from tdjax.decompose import second_moment
from tdjax.decompose.second_moment import is_trusted, roots, trust


def moment_of(kind):
    rows = np.random.default_rng(0).standard_normal((40, 12))
    if kind == "rank one":
        rows = rows[:1]
    if kind == "singular":
        rows = np.concatenate([rows[:, :6], rows[:, :6]], axis=1)
    if kind == "badly scaled":
        rows = rows * np.geomspace(1, 1e-9, 12)
    return 0.0 * rows.T @ rows if kind == "zero" else rows.T @ rows / len(rows)


@pytest.mark.parametrize("kind", ["regular", "rank one", "singular", "badly scaled", "zero"])
@pytest.mark.parametrize("ridge", [0.0, 1e-6])
def test_roots_are_those_of_an_eigendecomposition(kind, ridge):
    moment = moment_of(kind)
    norm = tdjax.Kronecker(jnp.ones(5), jnp.asarray(moment, jnp.float32), ridge=ridge)
    x = jax.random.normal(jax.random.key(0), (5, 12))
    weight, _ = norm.output_weight(x)
    root, inverse = (np.asarray(own, np.float64) for own in roots(weight))
    full = np.asarray(weight, np.float64)
    scale = np.trace(full) / 12
    np.testing.assert_allclose(root.T @ root, full, rtol=0, atol=2e-6 * 12 * scale)
    np.testing.assert_allclose(root @ inverse, np.eye(12), rtol=0, atol=1e-3)
    # The factors lose what the best ones by float64 do.
    values, vectors = np.linalg.eigh(full + 1e-6 * scale * np.eye(12))
    symmetric = vectors * np.sqrt(values) @ vectors.T
    dropped = np.linalg.svd(np.asarray(x, np.float64) @ symmetric, compute_uv=False)
    found = tdjax.truncated_svd(x, 2, norm=norm)
    lost = np.asarray(x - found.to_tensor(), np.float64) @ symmetric
    whole = np.sqrt(np.sum(dropped**2))
    best = np.sqrt(np.sum(dropped[2:] ** 2))
    assert np.linalg.norm(lost) <= best + 2e-3 * whole


def test_trust_is_of_one_array_while_it_lives():
    bad = jnp.asarray([[1.0, 2.0], [2.0, 1.0]])
    trusted = bad + 0.0
    trust(trusted)
    tdjax.Covariance(trusted)
    assert not is_trusted(bad)
    with pytest.raises(ValueError, match="not positive semi-definite"):
        tdjax.Covariance(bad)
    key = id(trusted)
    del trusted
    gc.collect()
    assert key not in second_moment._known
    # What can be written to is looked at each time.
    array = np.eye(2, dtype=np.float32)
    tdjax.Covariance(array)
    array[0, 1] = array[1, 0] = 2.0
    with pytest.raises(ValueError, match="not positive semi-definite"):
        tdjax.Covariance(array)
