"""Networks of Haiku and Equinox, which are functions of their parameters."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_functions import inputs

import tdjax
from tdjax.trace.products import products_of

TOKENS = jax.random.randint(jax.random.key(0), (4, 6), 0, 20)
IMAGES = inputs(1, 4, 3, 8, 8)


def haiku_network():
    """An embedding, attention, a perceptron; with a key of random numbers that it does not use."""

    def forward(ids):
        x = hk.Embed(20, 16)(ids)
        x = x + hk.MultiHeadAttention(2, 8, model_size=16, w_init=hk.initializers.RandomNormal())(
            x, x, x
        )
        return hk.nets.MLP([24, 5])(hk.LayerNorm(-1, True, True)(x))

    made = hk.transform(forward)
    return made.apply, made.init(jax.random.key(0), TOKENS), (None, TOKENS)


class Network(eqx.Module):
    """Convolutions and linear layers, one of them twice, on one example."""

    convolutions: list
    shared: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.convolutions = [
            eqx.nn.Conv2d(3, 8, 3, stride=2, key=keys[0]),
            eqx.nn.Conv2d(8, 12, 2, key=keys[1]),
        ]
        self.shared = eqx.nn.Linear(12, 12, key=keys[2])
        self.head = eqx.nn.Linear(12, "scalar", key=keys[3])

    def __call__(self, x):
        for convolution in self.convolutions:
            x = jax.nn.relu(convolution(x))
        x = self.shared(jax.nn.relu(self.shared(x.mean((1, 2)))))
        return self.head(x)


def equinox_network():
    params, static = eqx.partition(Network(jax.random.key(0)), eqx.is_array)

    def apply(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    return apply, params, (IMAGES,)


def whole_equinox_network():
    """All of a module as parameters: what is no array in it is static."""
    network = Network(jax.random.key(0))
    return lambda network, x: jax.vmap(network)(x), network, (IMAGES,)


NETWORKS = {
    "haiku": (
        haiku_network,
        ["embed/embeddings", "multi_head_attention/(query|key|value|linear)/w", "mlp/~/linear_.*"],
    ),
    "equinox": (equinox_network, ["convolutions/[01]/weight", "(shared|head)/weight"]),
    "module": (whole_equinox_network, ["convolutions/[01]/weight", "(shared|head)/weight"]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_other_libraries(name):
    make, paths = NETWORKS[name]
    apply, params, sample = make()
    rules = [tdjax.Rule(path=path, method="svd", compression=0.5) for path in paths]
    plan = tdjax.make_plan(apply, params, rules, sample)
    assert not [entry for entry in plan.layers if entry.layer.obstacle]
    arrays, _ = eqx.partition(params, eqx.is_array)
    count = products_of(jax.make_jaxpr(lambda *inputs: apply(params, *inputs))(*sample))
    assert plan.macs_before * 4 == sum(count.values())
    assert plan.size_before == sum(leaf.size for leaf in jax.tree.leaves(arrays))
    factors = tdjax.factorize_params(params, plan)
    small = tdjax.factorize(apply, plan)
    dense = tdjax.reconstruct_params(factors, plan)
    np.testing.assert_allclose(small(factors, *sample), apply(dense, *sample), rtol=1e-4, atol=1e-5)
    many = jnp.tile(sample[-1], (80, *(1,) * (sample[-1].ndim - 1)))
    moments = tdjax.collect_moments(apply, params, [(*sample[:-1], many)])
    assert moments.keys() == {entry.layer.path for entry in plan.layers}
