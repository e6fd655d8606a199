"""Factorised networks in another process: pickled, and on four devices, laid out as others."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from plain_models import MLP, normal, random_variables

import tdjax

SCRIPT = """
import pickle, sys, tempfile
import cheap_programs, flax.linen as nn, jax, jax.numpy as jnp, numpy as np, tdjax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

cheap_programs.install()
for model, variables, x, expected in pickle.load(open(sys.argv[1], "rb")):
    found = model(x) if variables is None else model.apply(variables, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
NAMES = {0: (), 1: ("b",), 2: ("a", "b"), 3: (None, "a", "b")}

def lay(array):
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*NAMES[array.ndim])))

def shape(array):
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)

def names(array):
    assert array.sharding.mesh == mesh
    found = list(array.sharding.spec)
    while found and found[-1] is None:
        found.pop()
    return tuple(found)

def check(found, expected, wanted):
    for name, tree in wanted.items():
        assert jax.tree.map(names, found[name], is_leaf=lambda x: hasattr(x, "ndim")) == tree, name
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)

x = np.ones((4, 8), np.float32)
chain = {"input": {"kernel": ("a",)}, "output": {"kernel": (None, "b")}, "bias": ("b",)}

net = nn.Sequential([nn.Dense(16), nn.BatchNorm(use_running_average=True), nn.Dense(8)])
variables = net.init(jax.random.key(0), x)
rules = [tdjax.Rule(path="layers_0", method="svd", rank=4, sparse=0.1)]
plan = tdjax.make_plan(net, variables, rules, x)
factors = jax.tree.map(np.asarray, tdjax.factorize(net, plan).init(jax.random.key(1), x))
folder = tempfile.mkdtemp()
tdjax.save_factorised(folder, factors, plan)
variables = jax.tree.map(lay, variables)
loaded, _ = tdjax.load_factorised(folder, like=variables)
for like in (variables, jax.tree.map(shape, variables), loaded):
    found, _ = tdjax.load_factorised(folder, like=like)
    check(found["params"], factors["params"], {
        "layers_0": {**chain, "sparse": {"values": ()}},
        "layers_2": {"kernel": ("a", "b"), "bias": ("b",)},
    })
    check(found["sparsity"]["layers_0"]["sparse"], factors["sparsity"]["layers_0"]["sparse"],
          {"indices": ()})
    check(found["batch_stats"]["layers_1"], factors["batch_stats"]["layers_1"], {"mean": ("b",)})
def abstract(array):
    where = NamedSharding(mesh.abstract_mesh, array.sharding.spec)
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where)

# As `jax.eval_shape` gives shapes under a mesh.
shapes = jax.tree.map(abstract, variables)
with jax.set_mesh(mesh):
    found, _ = tdjax.load_factorised(folder, like=shapes)
check(found["params"]["layers_0"], factors["params"]["layers_0"], chain)
free, _ = tdjax.load_factorised(folder, like=jax.tree.map(np.asarray, variables))
assert not any(leaf.committed for leaf in jax.tree.leaves(free))

rngs = nnx.Rngs(0)
layers = nnx.Linear(8, 16, rngs=rngs), nnx.BatchNorm(16, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
graph, state = nnx.split(nnx.Sequential(*layers, nnx.Linear(16, 8, rngs=rngs)))
net = nnx.merge(graph, state)
rules = [tdjax.Rule(path="layers/0", method="svd", rank=4, sparse=0.1)]
plan = tdjax.make_plan(net, rules, x)
small = tdjax.factorize(net, plan)
folder = tempfile.mkdtemp()
tdjax.save_factorised(folder, small, plan)
state = jax.tree.map(lay, state)
net = nnx.merge(graph, state)
loaded, _ = tdjax.load_factorised(folder, like=net)
for like in (net, nnx.merge(graph, jax.tree.map(shape, state)), loaded):
    found, _ = tdjax.load_factorised(folder, like=like)
    first, norm, _, last = found.layers
    for array, wanted in (
        (first.input.kernel, ("a",)), (first.output.kernel, (None, "b")), (first.bias, ("b",)),
        (first.sparse.values, ()), (first.sparse.indices, ()), (norm.mean, ("b",)),
        (last.kernel, ("a", "b")),
    ):
        assert names(array[...]) == wanted
    saved = jax.tree.leaves(nnx.split(small)[1])
    for a, b in zip(jax.tree.leaves(nnx.split(found)[1]), saved, strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)

def stack(params, x):
    x, _ = jax.lax.scan(lambda x, own: (jnp.tanh(x @ own), None), x, params["blocks"][0])
    return x @ params["head"]

params = {"blocks": [jnp.ones((2, 8, 8))], "head": jnp.eye(8)}
plan = tdjax.make_plan(stack, params, [tdjax.Rule(path="blocks/0", method="svd", rank=2)], x)
factors = tdjax.factorize_params(params, plan)
folder = tempfile.mkdtemp()
tdjax.save_factorised(folder, factors, plan)
params = jax.tree.map(lay, params)
loaded, _ = tdjax.load_factorised(folder, like=params)
for like in (params, jax.tree.map(shape, params), loaded):
    found, _ = tdjax.load_factorised(folder, like=like)
    check(found, factors, {
        "blocks": [{"input": {"kernel": (None, "a")}, "output": {"kernel": (None, None, "b")}}],
        "head": ("a", "b"),
    })
"""


def test_in_a_process_of_its_own(tmp_path):
    x = normal(0, 2, 9)
    net, rules = MLP((8, 7, 6)), [tdjax.Rule(path=".*", method="svd", rank=2, sparse=0.2)]
    variables = random_variables(net, x)
    plan = tdjax.make_plan(net, variables, rules, x)
    small = tdjax.factorize(net, plan)
    factors = jax.tree.map(np.asarray, small.init(jax.random.key(0), x))
    linen = (small, factors, x, np.asarray(small.apply(factors, x)))
    layer = nnx.Linear(9, 8, rngs=nnx.Rngs(0))
    layer = tdjax.factorize(layer, tdjax.make_plan(layer, rules, x))
    file = tmp_path / "models"
    file.write_bytes(pickle.dumps([linen, (layer, None, x, np.asarray(layer(x)))]))

    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    here = Path(__file__).parent
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join([str(here.parent), str(here)])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(file)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
