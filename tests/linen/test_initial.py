import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_models import normal

import tdjax
from tdjax.linen.initial import stage_initializer

DENSE, CONV = nn.Dense(128), nn.Conv(32, (3, 3))
ROWS, IMAGES = normal(0, 64, 128), normal(1, 2, 12, 12, 32)
INITIALISERS = {
    "he": nn.initializers.he_uniform(),
    "fixed": nn.initializers.normal(0.02),
}


def rms(x):
    return float(jnp.sqrt(jnp.mean(jnp.square(x))))


def planned(layer, x, method, **options):
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    rules = [tdjax.Rule(path="", method=method, compression=0.5, **options)]
    return tdjax.make_plan(layer, variables, rules, x)


@pytest.mark.parametrize("name", INITIALISERS)
@pytest.mark.parametrize(
    ("layer", "x", "method", "options"),
    [
        (DENSE, ROWS, "svd", {}),
        (DENSE, ROWS, "tt", {}),
        (CONV, IMAGES, "cp", {}),
        (CONV, IMAGES, "tucker", {}),
        (CONV, IMAGES, "tt", {}),
        (CONV, IMAGES, "svd", {"fold": "rows"}),
        (CONV, IMAGES, "svd", {"splits": 4}),
    ],
)
def test_factors_start_at_the_scale_of_the_kernel(layer, x, method, options, name):
    (entry,) = planned(layer, x, method, **options).factorised
    init, keys = INITIALISERS[name], jax.random.split(jax.random.key(3), len(entry.stages))
    drawn = {
        stage.name: stage_initializer(init, entry, stage)(key, stage.kernel_shape, jnp.float32)
        for stage, key in zip(entry.stages, keys, strict=True)
    }
    kernel = init(jax.random.key(4), entry.layer.kernel_shape, jnp.float32)
    assert 0.8 < rms(entry.chain.reconstruct(drawn)) / rms(kernel) < 1.25


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (DENSE, ROWS),
        (nn.Embed(128, 96), jnp.arange(64)[None]),
    ],
)
def test_outputs_of_a_tt_matrix_start_at_the_scale_of_the_layer(layer, x):
    small = tdjax.factorize(layer, planned(layer, x, "tt"))
    found = [rms(small.apply(jax.jit(small.init)(jax.random.key(k), x), x)) for k in range(2)]
    dense = rms(layer.apply(layer.init(jax.random.key(5), x), x))
    assert 0.75 < np.mean(found) / dense < 1.33


def test_a_kernel_that_starts_at_zero_can_be_learnt():
    layer = nn.Dense(128, kernel_init=nn.initializers.zeros)
    small = tdjax.factorize(layer, planned(layer, ROWS, "svd"))
    variables = small.init(jax.random.key(0), ROWS)
    assert not small.apply(variables, ROWS).any()
    gradient = jax.grad(lambda v: small.apply(v, ROWS).sum())(variables)["params"]
    assert rms(gradient["output"]["kernel"]) > 0


def test_an_initialiser_of_one_shape_alone():
    def waves(key, shape, dtype):
        positions, width = shape
        assert width == 8, "an even number of waves"
        angles = jnp.arange(positions)[:, None] * 2.0 ** -jnp.arange(width // 2)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1).astype(dtype)

    model, ids = nn.Embed(16, 8, embedding_init=waves), jnp.arange(16)
    variables = model.init(jax.random.key(0), ids)
    plan = tdjax.make_plan(model, variables, [tdjax.Rule(path="", method="svd", rank=3)], ids)
    small, params = tdjax.factorize(model, plan), tdjax.factorize_params(variables["params"], plan)
    dense = tdjax.reconstruct_params(params, plan)["embedding"]
    np.testing.assert_allclose(small.apply({"params": params}, ids), dense, atol=1e-5)
    made = tdjax.reconstruct_params(small.init(jax.random.key(1), ids)["params"], plan)
    assert 0.7 < float(jnp.std(made["embedding"]) / jnp.std(dense)) < 1.4
