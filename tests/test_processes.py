"""Two processes of `jax.distributed`, each with batches of its own or a half of shared ones."""

import os
import socket
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import re, sys, flax.linen as nn, jax, jax.numpy as jnp, numpy as np
from pathlib import Path
from tests import cheap_programs

cheap_programs.install()
number, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, number)
import tdjax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

assert (jax.process_count(), len(jax.devices())) == (2, 4)

class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(8)(x))
        return nn.Dense(6)(nn.relu(x))

def same(found, expected, tolerance=1e-5):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)

net, random = Net(), np.random.default_rng(0)
every = [random.standard_normal((80, 8)).astype(np.float32) for _ in range(3)]
union = np.concatenate(every)
variables = net.init(jax.random.key(1), union)
own = every[:2] if number == 0 else every[2:]
squares = lambda y, batch: (y**2).sum(axis=1)

# Batches of their own, of unequal number.
found = tdjax.collect_moments(net, variables, own, loss_fn=squares)
same(found["Dense_0"].inputs[0], union.T @ union / 240)
same(found["Dense_0"].mean[0], union.mean(axis=0))
y = np.asarray(net.apply(variables, union))
same(found["Dense_1"].outputs[0], 4 * y.T @ y / 240)
assert found["Dense_1"].rows == found["Dense_1"].examples == 240

# Means over twice the union are those over it.
nearest = [
    tdjax.collect_moments(net, variables, given, loss_fn=squares, kronecker="nearest")
    for given in (own, every)
]
same(nearest[0]["Dense_0"].outputs, nearest[1]["Dense_0"].outputs)
same(nearest[0]["Dense_0"].inputs, nearest[1]["Dense_0"].inputs)

stats = tdjax.reestimate_batch_stats(net, variables, own)["batch_stats"]["BatchNorm_0"]
hidden = union @ np.asarray(variables["params"]["Dense_0"]["kernel"])
same(stats["mean"], hidden.mean(axis=0), 1e-4)
same(stats["var"], hidden.var(axis=0), 1e-4)

# None at all, and a loader that fails.
alone = tdjax.collect_moments(net, variables, every if number == 0 else [])
same(alone["Dense_0"].inputs[0], union.T @ union / 240)

def failing():
    yield every[0]
    if number == 1:
        raise OSError("no such shard")

try:
    tdjax.collect_moments(net, variables, failing())
except OSError:
    assert number == 1
except RuntimeError as error:
    assert number == 0 and "process 1 of 2 failed with OSError: no such shard" in str(error)
else:
    raise AssertionError("nobody heard of it")

# Arrays on devices of both.
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
def lay(x, *axes):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, NamedSharding(mesh, P(*axes)), lambda i: x[i])

laid = jax.tree.map(lambda a: lay(a, *((None, "model") if a.ndim > 1 else ())), variables)
for given in ([lay(union, "data")], own):
    shared = tdjax.collect_moments(net, laid, given)
    same(np.asarray(shared["Dense_0"].inputs)[0], union.T @ union / 240)
try:
    tdjax.collect_moments(net, laid, [lay(union, "data")] if number == 0 else own)
except ValueError as error:
    assert "process 1 does not" in str(error)

# Weights of rows, and draws: of each process its own, of arrays that all share the same.
odd = np.arange(240) % 2
halves = [union[:160], union[160:]]
named = {"loss_fn": "outputs", "row_weights": lambda batch: batch[1]}
for net_variables, given in (
    (variables, [(halves[number], odd[: len(halves[number])])]),
    (laid, [(lay(union, "data"), lay(odd, "data"))]),
):
    drawn = tdjax.collect_moments(net, net_variables, given, **named)
    same(np.asarray(drawn["Dense_0"].inputs)[0], union[odd > 0].T @ union[odd > 0] / 120)
    same(np.asarray(drawn["Dense_1"].outputs)[0], np.eye(6), 0.4)
    assert drawn["Dense_1"].rows == 120
few = tdjax.collect_moments(net, variables, [union[:2]], loss_fn="outputs")["Dense_1"]
# Were the draws of both the same, there would be two directions.
assert np.linalg.matrix_rank(np.asarray(few.outputs)[0]) > 2
errors = [
    tdjax.feature_errors(
        net, variables, {**variables["params"], "Dense_1": {"kernel": np.ones((8, 6), np.float32)}},
        given, row_weights=lambda batch: batch[1],
    )["Dense_1"]["absolute"]
    for given in ([(halves[number], odd[: len(halves[number])])], [(union, odd)])
]
same(*errors)

rules = [tdjax.Rule(path="Dense_.", method="svd", rank=2)]
plan = tdjax.make_plan(net, variables, rules, union)
params = tdjax.factorize_params(variables["params"], plan, moments=found)
global_params = tdjax.factorize_params(laid["params"], plan, moments=found)
chosen = [
    tdjax.allocate(net, v, union, budget={"params": 0.7}, strategy="loss", moments=found)
    for v in (variables, laid)
]
assert chosen[0] == chosen[1]

def check(found):
    for got, expected in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        for shard in got.addressable_shards:
            same(shard.data, np.asarray(expected)[shard.index])

check(global_params)
assert jax.tree.leaves(global_params)[0].sharding.device_set == set(jax.devices())
tdjax.save_factorised(folder, global_params, plan)
for like in (None, laid["params"], variables["params"]):
    again, its_plan = tdjax.load_factorised(folder, like=like)
    assert its_plan == plan
    check(again)
    spread = 4 if like is laid["params"] else 1
    assert len(jax.tree.leaves(again)[0].sharding.device_set) == spread

# The block of the page on several hosts.
page = Path("docs/guides/devices.md").read_text("utf-8")
(block,) = re.findall("```python\\n(.*?)```", page, re.DOTALL)
names = {
    **{"jax": jax, "tdjax": tdjax, "model": net, "variables": variables, "plan": plan},
    **{"loss": squares, "folder": folder, "loader": lambda shard, shards: own},
}
exec(block, names)
assert names["plan"] == plan and names["mine"] is own
check(names["params"])
check(tdjax.load_factorised(folder)[0])
"""


def test_two_processes_are_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parents[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(number), port, str(tmp_path / "saved")],
            cwd=root,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
