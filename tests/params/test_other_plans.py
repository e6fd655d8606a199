import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_models import normal

import tdjax
from tdjax import Form, Layer, Plan, PlannedLayer

CONV = Layer("conv", "conv", (3, 3, 4, 8))
# Ranks by which all low-rank forms, and all chains of three or four, are as alike as they can be.
FORMS = (
    Form("svd", (2,)),
    Form("svd", (2,), fold="rows"),
    Form("svd", (2,), fold="columns"),
    Form("svd", (2,), fold="window"),
    Form("svd", (2,), splits=2),
    Form("svd", (3,)),
    Form("svd", (2,), nonzeros=5),
    Form("cp", (2,)),
    Form("cp", (2,), spatial="merged"),
    Form("tucker", (2, 2)),
    Form("tt", (2, 2, 2)),
)


def plan_of(form):
    return Plan((PlannedLayer(CONV, form),))


@pytest.fixture(scope="module")
def factors():
    found = []
    for form in FORMS:
        (entry,) = plan_of(form).factorised
        own = {stage.name: {"kernel": normal(0, *stage.kernel_shape)} for stage in entry.stages}
        variables = {"params": {"conv": own}}
        if form.nonzeros:
            own["sparse"] = {"values": normal(1, form.nonzeros)}
            indices = jnp.arange(form.nonzeros)
            variables["sparsity"] = {"conv": {"sparse": {"indices": indices}}}
        found.append(variables)
    return found


def test_factors_are_multiplied_out_by_their_own_plan_alone(factors):
    for (k, own), (m, form) in itertools.product(enumerate(factors), enumerate(FORMS)):
        if k == m:
            kernel = tdjax.reconstruct_params(own, plan_of(form))["params"]["conv"]["kernel"]
            assert kernel.shape == CONV.kernel_shape
        else:
            with pytest.raises((KeyError, ValueError), match="layer 'conv'"):
                tdjax.reconstruct_params(own, plan_of(form))


def test_other_shapes_are_named(factors):
    message = r"expected factor input of shape \(1, 3, 4, 2\), found \(3, 1, 4, 2\): pass the plan"
    with pytest.raises(ValueError, match=message):
        tdjax.reconstruct_params(factors[1], plan_of(FORMS[2]))


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.complex64, jnp.float8_e4m3fn])
def test_kernels_that_would_be_rounded_are_refused(dtype):
    params = {"conv": {"kernel": jnp.ones(CONV.kernel_shape).astype(dtype)}}
    with pytest.raises(ValueError, match=f"layer 'conv': the kernel is {jnp.dtype(dtype).name}"):
        tdjax.factorize_params(params, plan_of(FORMS[0]))


class Normalised(nn.Module):
    """A stack of layers with vectors, which the stack makes matrices."""

    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                x = nn.RMSNorm()(nn.LayerNorm()(x))
                return nn.Dense(16, name="dense")(x), None

        stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return stack(name="stack")(x, None)[0]


def test_stacked_vectors_are_no_weights_when_parameters_are_saved(tmp_path):
    model, x = Normalised(), normal(0, 2, 16)
    variables = model.init(jax.random.key(0), x)
    rules = [tdjax.Rule(path=".*", method="svd", rank=2)]
    plan = tdjax.make_plan(model, variables, rules, x)
    assert [entry.layer.path for entry in plan.layers] == ["stack/dense"]
    params = tdjax.factorize_params(variables["params"], plan)
    tdjax.save_factorised(tmp_path / "saved", params, plan)
    loaded, _ = tdjax.load_factorised(tmp_path / "saved")
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
