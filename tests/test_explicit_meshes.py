"""Arrays on a mesh: of explicit axes, and of eight devices; in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import flax.linen as nn, jax, jax.numpy as jnp, numpy as np, tdjax
from tests import cheap_programs
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

cheap_programs.install()
mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Explicit,))
lay = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, P(*axes)))
random = np.random.default_rng(0)
x = random.standard_normal((8, 6)).astype(np.float32)
s = (np.eye(8) + 0.1).astype(np.float32)

def same(found, expected, tolerance=1e-6):
    found, expected = np.asarray(found), np.asarray(expected)
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)

def dense(found):
    return (found[0] if isinstance(found, tuple) else found).to_tensor()

functions = [
    lambda x, s: dense(tdjax.truncated_svd(x, 2, norm=tdjax.Covariance(s))),
    lambda x, s: dense(tdjax.tucker_als(x, (3, 2))),
    lambda x, s: tdjax.weight_errors(x, 0.9 * x)["scaled"],
    lambda x, s: tdjax.Covariance(s).relative_error(x, 0.9 * x),
    lambda x, s: x * tdjax.Covariance(s).diagonal(x),
    lambda x, s: x * tdjax.adaptive_prune({"dense": {"kernel": x}}, share=0.5)["dense"]["kernel"],
    lambda x, s: tdjax.lq_norm(x, 0.5, outputs=0),
    lambda x, s: tdjax.LowRank(s, x).to_tensor(),
]
for function in functions:
    expected = function(x, s)
    same(function(lay(x, "a"), lay(s, None, "a")), expected)
    same(jax.jit(function)(lay(x, None, "a"), s), expected)
same(dense(tdjax.tt_svd(lay(x, "a"), eps=0.5)), dense(tdjax.tt_svd(x, eps=0.5)))
left = tdjax.truncated_svd(lay(x, "a"), 2).left
assert jax.typeof(left).sharding.mesh.axis_types == (AxisType.Explicit,)
try:
    tdjax.truncated_svd(lay(x * np.nan, "a"), 2)
except ValueError as error:
    assert "NaN" in str(error)
else:
    raise AssertionError("NaN was taken")

class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(6)(nn.relu(nn.Dense(8)(x)))

batch, net = random.standard_normal((80, 8)).astype(np.float32), Net()
plain = net.init(jax.random.key(1), batch)
laid = jax.tree.map(lambda a: lay(a, *((None, "a") if a.ndim > 1 else ())), plain)
split = lay(batch, "a")
rules = [tdjax.Rule(path=".*", method="svd", rank=2)]
plan = tdjax.make_plan(net, laid, rules, split)
assert plan == tdjax.make_plan(net, plain, rules, batch)
turns = ((laid, [(split,)]), (laid, ((split,) for _ in range(1))), (plain, [(batch,)]))
found = [
    tdjax.collect_moments(net, v, batches, loss_fn=lambda y, batch: (y**2).sum(axis=1))
    for v, batches in turns
]
for moments in found[:2]:
    same(moments["Dense_1"].inputs, found[2]["Dense_1"].inputs)
    same(moments["Dense_0"].outputs, found[2]["Dense_0"].outputs)
odd = np.arange(80) % 2
drawn = [
    tdjax.collect_moments(
        net, v, [(b, o)], loss_fn="sampled", row_weights=lambda batch: batch[1]
    )["Dense_0"]
    for v, b, o in ((laid, split, lay(odd, "a")), (plain, batch, odd))
]
same(drawn[0].inputs, drawn[1].inputs)
same(drawn[0].outputs, drawn[1].outputs)
params = [
    tdjax.factorize_params(v["params"], plan, moments=moments, correct_bias=True)
    for v, moments in ((laid, found[0]), (plain, found[2]))
]
same(*(tdjax.reconstruct_params(p, plan)["Dense_0"]["kernel"] for p in params), 1e-5)
small = tdjax.factorize(net, plan)
same(*(small.apply({"params": p}, b) for p, b in zip(params, (split, batch))), 1e-5)
chosen = [tdjax.allocate(net, v, b, budget=0.7) for v, b in ((laid, split), (plain, batch))]
assert chosen[0] == chosen[1]
pairs = ((laid, split), (plain, batch))
shorter = [tdjax.compress(net, v, [b], budget=0.7, progress=False) for v, b in pairs]
same(*(own.model.apply(own.variables, b) for own, b in zip(shorter, (split, batch))), 1e-4)

# Convolutions of kernels that lie whole, of a batch that is split.
conv, maps = nn.Conv(6, (3, 3)), random.standard_normal((4, 5, 5, 4)).astype(np.float32)
plain_conv = conv.init(jax.random.key(2), maps)
its_plan = tdjax.make_plan(
    conv, plain_conv, [tdjax.Rule(path="", method="tucker", rank=(2, 3))], maps
)
thin = tdjax.factorize(conv, its_plan)
answers = [
    thin.apply({"params": tdjax.factorize_params(v["params"], its_plan)}, b)
    for v, b in ((jax.tree.map(lay, plain_conv), lay(maps, "a")), (plain_conv, maps))
]
same(*answers, 1e-5)

# On eight devices of automatic axes each layer is decomposed once, by one of them.
from tdjax.decompose import dealing
from tdjax.params import factorize as room

eight = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
spread = jax.tree.map(lambda a: jax.device_put(a, NamedSharding(eight, P())), plain)
seen, factorised = [], room._factorised
def counted(work):
    seen.append((work.entry.layer.path, work.array.devices()))
    return factorised(work)
room._factorised = counted
both = [v["params"] for v in (spread, plain)]
params = [tdjax.factorize_params(p, plan, moments=found[2]) for p in both]
jax.tree.map(same, *params)
set_mesh = getattr(jax, "set_mesh", None) or jax.sharding.use_mesh
with set_mesh(eight):
    inside = tdjax.factorize_params(spread["params"], plan)
jax.tree.map(same, inside, tdjax.factorize_params(plain["params"], plan))
assert len(seen) == 4 * len(plan.factorised) and all(len(own) == 1 for _, own in seen), seen
assert len(jax.tree.leaves(params[0])[0].devices()) == 8
arrays = [jax.device_put(np.full(3, k), NamedSharding(eight, P())) for k in range(16)]
devices = dealing.shared_devices(arrays)
made = dealing.dealt(lambda x: x + 1, arrays, devices, lambda _: False)
assert [int(x[0]) for x in made] == list(range(1, 17))
assert sorted(device.id for x in made for device in x.devices()) == sorted([*range(8)] * 2)
room._factorised = factorised
traced = jax.jit(lambda p: tdjax.reconstruct_params(tdjax.factorize_params(p, plan), plan))
jax.tree.map(lambda *own: same(*own, 1e-5), traced(laid["params"]), traced(plain["params"]))
"""


def test_arrays_on_explicit_axes():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
