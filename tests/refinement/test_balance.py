"""Factors of equal norms that stand for the same kernels."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_models import Scanned, normal, random_variables

import tdjax

IMAGES = normal(0, 2, 5, 5, 12)
CASES = {
    "tucker": (nn.Conv(10, (3, 3)), IMAGES, {"method": "tucker", "rank": (4, 5)}),
    "tt": (nn.Conv(10, (3, 3)), IMAGES, {"method": "tt", "rank": (4, 5, 4)}),
    "cp in groups": (
        nn.Conv(12, (3, 3), feature_group_count=3), IMAGES, {"method": "cp", "rank": 4},
    ),
    "low rank in splits": (
        nn.Conv(10, (3, 3)), IMAGES, {"method": "svd", "rank": 3, "splits": 2},
    ),
    "low rank in rows": (nn.Conv(10, (3, 3)), IMAGES, {"method": "svd", "rank": 3, "fold": "rows"}),
    "matrix": (nn.Dense(24), normal(1, 2, 16), {"method": "tt", "rank": (3, 3)}),
    "stack": (Scanned(), normal(1, 2, 8), {"method": "svd", "rank": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_norms_are_equal_and_kernels_the_same(name):
    model, x, form = CASES[name]
    variables = random_variables(model, x)
    plan = tdjax.make_plan(model, variables, [tdjax.Rule(path="|stack/dense", **form)], x)
    (entry,) = plan.factorised
    factors = tdjax.factorize_params(variables["params"], plan, key=jax.random.key(0))
    # Out of balance in every feature of the first stage.
    layer = factors
    for part in filter(None, entry.layer.path.split("/")):
        layer = layer[part]
    first = layer[entry.stages[0].name]
    first["kernel"] = first["kernel"] * jnp.exp(normal(2, first["kernel"].shape[-1]))
    found = tdjax.balance_factors(factors, plan)
    before, after = (tdjax.reconstruct_params(x, plan) for x in (factors, found))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max()), before, after
    )
    layer = found
    for part in filter(None, entry.layer.path.split("/")):
        layer = layer[part]
    copies = entry.layer.storage.stack is not None
    kernels = [np.asarray(layer[stage.name]["kernel"]) for stage in entry.stages]
    norms = [np.sqrt((k**2).sum(axis=tuple(range(copies, k.ndim)))) for k in kernels]
    np.testing.assert_allclose(norms, np.broadcast_to(norms[0], np.shape(norms)), rtol=1e-3)


def test_low_rank_of_an_nnx_model():
    model, x = nnx.Linear(8, 8, rngs=nnx.Rngs(0)), normal(3, 2, 8)
    plan = tdjax.make_plan(model, [tdjax.Rule(path="", method="svd", rank=3)], x)
    small = tdjax.factorize(model, plan)
    expected = small(x)
    small.input.kernel[...] *= 8
    small.output.kernel[...] /= 8
    found = tdjax.balance_factors(small, plan)
    np.testing.assert_allclose(found(x), expected, rtol=1e-5, atol=1e-6)
    left, right = (np.asarray(part.kernel[...]) for part in (found.input, found.output))
    np.testing.assert_allclose((left**2).sum(axis=0), (right**2).sum(axis=1), rtol=1e-5)
    with pytest.raises(ValueError, match=r"is not factorised, but an nnx\.Linear"):
        tdjax.balance_factors(model, plan)
    small.input.kernel[...] *= jnp.nan
    with pytest.raises(ValueError, match="the factor input holds NaN or Inf"):
        tdjax.balance_factors(small, plan)
