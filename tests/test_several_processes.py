"""Processes of `jax.distributed` that compress one network, each with batches of its own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, flax.linen as nn, jax, jax.numpy as jnp, numpy as np
from tests import cheap_programs

cheap_programs.install()
number, count, port = map(int, sys.argv[1:4])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", count, number)
import tdjax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from tdjax.dispatch import candidate_feature_errors

class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(12)(x))
        return nn.Dense(10)(nn.relu(x))

def same(found, expected, tolerance=1e-4):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b), (a, b)

squares = lambda y, batch: (y**2).sum(axis=1)
net, random = Net(), np.random.default_rng(0)
every = [random.standard_normal((40 + 30 * k, 8)).astype(np.float32) for k in range(count)]
every[0] *= 2
union = np.concatenate(every)
# Two batches in one process, one in each of the others.
mine = [every[number]] if number else [every[0][:10], every[0][10:]]
variables = net.init(jax.random.key(1), union)
rules = [tdjax.Rule(path="Dense_.", method="svd", rank=3)]
plan = tdjax.make_plan(net, variables, rules, union)
# Far from the best, so that each epoch is better than the start.
factors = jax.tree.map(lambda x: 0.8 * x, tdjax.factorize_params(variables["params"], plan))

# What one process makes of all of it, the first by itself.
apart = jax.process_count
def alone(function, *args, **options):
    jax.process_count = lambda *_: 1
    try:
        return function(*args, **options)
    finally:
        jax.process_count = apart

def both(function, *args, tolerance=1e-4, **options):
    \"\"\"Of its own batches beside others, and of all of them alone.\"\"\"
    found = function(*args, mine, **options)
    if number == 0:
        same(values(found), values(alone(function, *args, [union], **options)), tolerance)
    return found

def values(found):
    if isinstance(found, tdjax.refinement.result.Refined):
        losses = [[e.held_out, e.training or 0.0] for e in found.curve]
        assert found.best > 0
        return found.factors, losses
    return found

def fails(function, text, *args, **options):
    try:
        function(*args, **options)
    except (RuntimeError, ValueError, OSError) as error:
        assert text in str(error), error
    else:
        raise AssertionError(text)

kernels = jnp.stack([k * variables["params"]["Dense_1"]["kernel"] for k in (1.0, 0.9, 0.5)])
def scores(batches):
    metric = lambda y, batch: {"square": squares(y, batch)}
    return tdjax.evaluate_candidates(net, variables, "Dense_1", kernels, batches, metric)
both(scores)

options = dict(epochs=2, batch_size=16, learning_rate=1e-2, progress=False)
def refined(batches, **more):
    return tdjax.refine(net, variables, factors, plan, batches, **options, **more)
found = both(refined)
assert jax.tree.leaves(found.factors)[0].is_fully_addressable

def failing():
    yield every[number]
    if number == 1:
        raise OSError("no such shard")

told = "no such shard" if number == 1 else "process 1 of"
fails(refined, told, failing())
fails(scores, told, failing())
fails(refined, "process 1 of", mine if number != 1 else [every[1].astype(np.float16)])
fails(refined, "no batches" if number == 1 else "process 1 of", [] if number == 1 else mine)

# Those of an experiment share nothing but files.
from experiments.workdir.devices import own_devices
fails(own_devices, f"this is process {number} of {count} of jax.distributed")

if count == 2:
    def judged(batches):
        held_out = [every[number]] if batches is mine else every
        others = dict(loss=None, features="Dense_.*", batch_stats="renewed")
        return refined(batches, held_out=held_out, **others)
    both(judged)
    # Rows that count by weights: in one process none of them do.
    def weighed(function):
        def over(batches):
            marks = [np.arange(len(x)) % 3 / 2 for x in every]
            marks[0][:] = 0
            whole, own = np.concatenate(marks), marks[number]
            given = [whole] if batches is not mine else [own] if number else [own[:10], own[10:]]
            pairs = list(zip(batches, given, strict=True))
            return function(pairs, row_weights=lambda batch: batch[1])
        return over
    def ordered(batches, **more):
        return tdjax.factorize_sequentially(net, variables, plan, batches, **more)
    both(ordered, tolerance=1e-3)
    both(
        weighed(lambda pairs, **more: ordered(pairs, blocks="Dense_.", correct_bias=True, **more)),
        tolerance=1e-3,
    )
    both(
        weighed(
            lambda pairs, **more: candidate_feature_errors(
                net, variables, "Dense_1", kernels, pairs, **more
            )
        )
    )
    both(weighed(lambda pairs, **more: refined(pairs, batch_stats="renewed", **more)))
    fails(
        lambda: ordered([(x, np.zeros(len(x))) for x in mine], row_weights=lambda batch: batch[1]),
        "no row that counts",
    )

    class Failing(list):
        def __iter__(self):
            return failing()
    fails(
        lambda: tdjax.factorize_sequentially(net, variables, plan, Failing([every[number]])), told
    )

    def compressed(batches):
        return tdjax.compress(
            net, variables, batches, budget=0.8, refine=options, progress=False,
            loss_fn=squares,
        )
    small = both(lambda batches: compressed(batches).variables, tolerance=1e-3)
    def stored(batches):
        small = tdjax.compress(
            net, variables, batches, budget={"bytes": 0.4}, dtypes=("int8",), refine=False,
            progress=False, loss_fn=squares,
        )
        assert {entry.dtype for entry in small.plan.layers} == {"int8"}
        return tdjax.dequantize(small.variables, small.plan)
    # One in its last digit, where the sum is another.
    both(stored, tolerance=1e-2)
    fails(compressed, told, Failing([every[number]]))
    timed = dict(budget={"time": 0.5}, progress=False)
    fails(tdjax.compress, "pass timings", net, variables, mine, **timed)
    moments = tdjax.collect_moments(net, variables, mine, loss_fn=squares)
    fails(
        tdjax.measure_rises, "with a process alone", net, variables, mine,
        squares, moments=moments,
    )

    # Arrays on devices of all.
    mesh = Mesh(np.array(jax.devices()), ("data",))
    def lay(x, *axes):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, NamedSharding(mesh, P(*axes)), lambda i: x[i])
    even = union[: len(union) // 8 * 8]
    laid = jax.tree.map(lay, variables), jax.tree.map(lay, factors), [lay(even, "data")]
    found = tdjax.refine(net, laid[0], laid[1], plan, laid[2], **options)
    if number == 0:
        expected = alone(refined, [even])
        same([e.held_out for e in found.curve], [e.held_out for e in expected.curve])
"""


@pytest.mark.parametrize("count", [2, 4])
def test_processes_compress_as_one(count):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    devices = 4 // count
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parents[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(number), str(count), port],
            cwd=root,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, "\n".join(errors)
