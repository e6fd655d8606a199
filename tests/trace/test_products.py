"""The multiply-accumulates of whole networks, those of no layer among them."""

import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from plain_models import normal

import tdjax
from tdjax import Plan, Rule
from tdjax.trace.marks import inside_call
from tdjax.trace.products import OTHER, products_of

RULES = [Rule(path=".*", method="svd", rank=2)]


def products(function, *args):
    return products_of(jax.make_jaxpr(function)(*args))


def test_products_by_call():
    def function(x, w):
        with inside_call(7):
            y = jax.jit(lambda x: x @ w)(x)
        y = jax.lax.cond(y.sum() > 0, lambda y: y @ w @ w, lambda y: y @ w, y)

        def turn(y, _):
            with inside_call(8):
                z = y @ w
            return jnp.tanh(z), y @ y.T

        return jax.lax.scan(turn, y, None, length=5)

    found = products(function, jnp.ones((2, 3)), jnp.ones((3, 3)))
    assert found == {7: 18, 8: 5 * 18, OTHER: 2 * 18 + 5 * 12}


def test_products_of_convolutions():
    x, w = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 2, 6))
    settings = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}

    def plain(x, w):
        return jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", feature_group_count=2, **settings)

    assert products(plain, x, w)[OTHER] == 2 * 4 * 4 * 9 * 2 * 6

    def transposed(x, w):
        return jax.lax.conv_transpose(x, w, (2, 2), "SAME", **settings)

    # Every input is spread over a window.
    assert products(transposed, x, jnp.ones((3, 3, 4, 6)))[OTHER] == 2 * 64 * 9 * 4 * 6


def test_products_of_batched_matrices():
    found = products(lambda x, w: jnp.einsum("bhqd,bhkd->bhqk", x, w), jnp.ones((2, 3, 5, 4)),
                     jnp.ones((2, 3, 7, 4)))  # fmt: skip
    assert found[OTHER] == 2 * 3 * 5 * 7 * 4


class Transformer(nn.Module):
    """Attention, a head that reads the embedding's table, and a product with an own array."""

    @nn.compact
    def __call__(self, ids):
        table = nn.Embed(12, 8)
        x = table(ids)
        x = x + nn.MultiHeadDotProductAttention(2)(x, x)
        x = jnp.einsum("bsd,de->bse", x, self.param("own", nn.initializers.ones, (8, 8)))
        return x @ table.embedding.T


class NnxTransformer(nnx.Module):
    """The same in NNX."""

    def __init__(self, rngs):
        self.table = nnx.Embed(12, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.own = nnx.Param(jnp.ones((8, 8)))

    def __call__(self, ids):
        x = self.table(ids)
        x = jnp.einsum("bsd,de->bse", x + self.attention(x), self.own[...])
        return x @ self.table.embedding[...].T


IDS = jnp.arange(10).reshape(2, 5)
# One example: keys and values met by queries, the head. The own array is a layer, as the four
# kernels of the attention are.
OTHERS = 2 * 5 * 5 * 8 + 5 * 8 * 12


def pure(model):
    """A function of a model's state and input, and the state."""
    graph, state = nnx.split(model)
    return lambda state, x: nnx.merge(graph, state)(x), state


def test_a_whole_network(count_macs):
    model = Transformer()
    variables = model.init(jax.random.key(0), IDS)
    plan = tdjax.make_plan(model, variables, RULES, IDS)
    assert plan.other_macs == OTHERS
    assert plan.macs_before == 5 * 5 * 64 + OTHERS
    assert count_macs(model.apply, variables, IDS) == 2 * plan.macs_before
    factors = {"params": tdjax.factorize_params(variables["params"], plan)}
    assert count_macs(tdjax.factorize(model, plan).apply, factors, IDS) == 2 * plan.macs
    other = NnxTransformer(nnx.Rngs(0))
    nnx_plan = tdjax.make_plan(other, RULES, IDS)
    assert (nnx_plan.macs_before, nnx_plan.macs) == (plan.macs_before, plan.macs)
    small = tdjax.factorize(other, nnx_plan)
    assert count_macs(*pure(other), IDS) == 2 * plan.macs_before
    assert count_macs(*pure(small), IDS) == 2 * plan.macs


def test_a_budget_of_the_whole_network():
    model = Transformer()
    variables = model.init(jax.random.key(0), IDS)
    plan = tdjax.allocate(model, variables, IDS, budget=0.84, cost="macs", methods=("svd",))
    assert plan.other_macs == OTHERS
    assert 0.835 <= plan.macs / plan.macs_before <= 0.84


def test_other_products_in_the_table_and_in_json():
    model = Transformer()
    variables = jax.eval_shape(model.init, jax.random.key(0), IDS)
    plan = tdjax.make_plan(model, variables, RULES, IDS)
    assert f"(other products) {OTHERS:,}" in " ".join(str(plan).split())
    assert Plan.from_json(plan.to_json()) == plan
    raw = json.loads(plan.to_json())
    older = {name: value for name, value in raw.items() if name != "other_macs"} | {"version": 1}
    found = Plan.from_json(json.dumps(older))
    assert found.layers == plan.layers
    assert found.other_macs == 0
    for wrong in (-1, 0.5, True, "1"):
        with pytest.raises(ValueError, match="other_macs"):
            Plan.from_json(json.dumps({**raw, "other_macs": wrong}))
    plain = tdjax.make_plan(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), RULES, normal(0, 2, 4))
    assert "other" not in str(plain)
    assert "other_macs" not in json.loads(plain.to_json())


X = normal(1, 4, 52, 6)
BATCHED = {
    "einsum": nn.Einsum((4, 6, 8), "etd,edf->etf"),
    "einsum in the call": nn.Einsum((4, 6, 8), "...etd,edf->...etf"),
    "dense_general": nn.DenseGeneral(8, axis=-1, batch_dims=0),
    "nnx einsum": nnx.Einsum("etd,edf->etf", (4, 6, 8), rngs=nnx.Rngs(0)),
    "nnx linear_general": nnx.LinearGeneral(6, 8, batch_axis={0: 4}, rngs=nnx.Rngs(0)),
}


@pytest.mark.parametrize("name", BATCHED)
def test_layers_with_batch_labels(name):
    model = BATCHED[name]
    if isinstance(model, nn.Module):
        variables = jax.eval_shape(model.init, jax.random.key(0), X)
        (layer,) = tdjax.layer_table(model, variables, X)
    else:
        (layer,) = tdjax.layer_table(model, X)
    assert layer.obstacle is not None
    assert layer.size == 4 * 6 * 8
    # Each of the four examples has a kernel of its own here.
    assert layer.macs == math.prod((4, 52, 6, 8)) // 4


def test_batch_labels_behind_that_of_the_examples():
    model, x = nn.Einsum((4, 6, 8), "betd,edf->betf", use_bias=False), normal(1, 3, 4, 7, 6)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    assert tdjax.make_plan(model, variables, [], x).macs_before == math.prod((4, 7, 6, 8))
