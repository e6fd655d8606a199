"""Networks as people write them, factorised as a whole."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_models import normal, random_variables
from plain_networks import (
    Classifier,
    LanguageModel,
    NnxLanguageModel,
    NnxVisionTransformer,
    ResidualNetwork,
    UNet,
    VisionTransformer,
)

import tdjax
from tdjax import Rule
from tdjax.nnx import reconstruct

IMAGES = normal(1, 2, 16, 16, 3)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 24, (2, 6)))
RULES = (
    Rule(path=".*(conv|Conv|down|pool|merge|up)[^/]*", method="tucker", compression=0.5),
    Rule(path=".*(attention/.*|Dense_0)", method="tt", compression=0.4),
    Rule(path=".*", method="svd", compression=0.4),
)
# Model, input, layers that are kept dense with a word of the reason.
LINEN = {
    "classifier": (Classifier(), IMAGES, {}),
    "vision transformer": (VisionTransformer(), IMAGES, {"": "it holds modules beside its own"}),
    "language model": (LanguageModel(), TOKENS, {}),
    "u-net": (UNet(), IMAGES, {}),
    "residual network": (ResidualNetwork(), IMAGES, {}),
}
NNX = {
    "vision transformer": (NnxVisionTransformer, IMAGES),
    "language model": (NnxLanguageModel, TOKENS),
}


def close(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()


def rules_for(table):
    """The rules that match a layer; a dead one is refused."""

    def first(layer):
        return next(rule for rule in RULES if re.fullmatch(rule.path, layer.path))

    used = {first(layer) for layer in table}
    return [rule for rule in RULES if rule in used or rule is RULES[-1]]


@pytest.mark.parametrize("name", LINEN)
def test_linen(name):
    model, sample, dense = LINEN[name]
    variables = random_variables(model, sample)
    # Running variances that are variances.
    variables = jax.tree.map(jnp.abs, variables) if "batch_stats" in variables else variables
    plan = tdjax.make_plan(
        model, variables, rules_for(tdjax.layer_table(model, variables, sample)), sample
    )
    obstacles = {e.layer.path: e.layer.obstacle for e in plan.layers if e.layer.obstacle}
    assert obstacles.keys() == dense.keys()
    for path, reason in dense.items():
        assert reason in obstacles[path]
    assert plan.size < 0.8 * plan.size_before
    small = tdjax.factorize(model, plan)
    params = random_variables(small, sample)["params"]
    traces = []

    @jax.jit
    def both(params):
        traces.append(params)
        whole = tdjax.reconstruct_params(params, plan)
        return (
            small.apply({**variables, "params": params}, sample),
            model.apply({**variables, "params": whole}, sample),
        )

    close(*both(params))
    close(*both(jax.tree.map(lambda leaf: 0.9 * leaf, params)))
    assert len(traces) == 1
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == plan.size


@pytest.mark.parametrize("name", NNX)
def test_nnx(name):
    make, sample = NNX[name]
    model = make(nnx.Rngs(0))
    plan = tdjax.make_plan(model, rules_for(tdjax.layer_table(model, sample)), sample)
    assert [e.layer.path for e in plan.layers if e.layer.obstacle] == []
    assert plan.size < 0.8 * plan.size_before
    small = tdjax.factorize(model, plan)
    outputs = nnx.jit(lambda *models: [m(sample) for m in models])(small, reconstruct(small, plan))
    close(*outputs)
    params = jax.tree.leaves(nnx.state(small, nnx.Param))
    assert sum(leaf.size for leaf in params) == plan.size
