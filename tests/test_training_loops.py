"""The loops that users have: factorised in the middle, and on several devices."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import cheap_programs
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from plain_models import normal

import tdjax
from tdjax.params.optimizers import carry_optimizer_state

DEVICES = 8
CLASSES = 4


class Network(nn.Module):
    """A convolution and a dense layer that are worth factorising, and a head that is not."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(12, (3, 3), strides=2, name="conv")(x))
        x = nn.relu(nn.Dense(16, name="hidden")(x.mean(axis=(1, 2))))
        return nn.Dense(CLASSES, name="head")(x)


RULES = [
    tdjax.Rule(path="conv", method="tucker", rank=(3, 6)),
    tdjax.Rule(path="hidden", method="svd", rank=4),
]


def make_batch(seed, size=32):
    """Images whose class is a pattern in them."""
    labels = np.arange(size) % CLASSES
    images = normal(seed, size, 6, 6, 3) * 0.3 + normal(100, CLASSES, 6, 6, 3)[labels]
    return images, jnp.asarray(labels)


def train_step(state, images, labels):
    """One step of any `TrainState`: what users write, and nothing in it knows of tdjax."""

    def loss_fn(params):
        logits = state.apply_fn({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=gradients), loss


def factorise_state(state, model, plan):
    """The same training, from here on of the factorised network."""
    small = tdjax.factorize(model, plan)
    params = tdjax.factorize_params(state.params, plan)
    carried = carry_optimizer_state(state.tx, state.opt_state, state.params, params)
    return state.replace(apply_fn=small.apply, params=params, opt_state=carried)


@pytest.mark.parametrize("name", ["adam", "momentum"])
def test_factorised_in_the_middle(name):
    schedule = optax.cosine_decay_schedule({"adam": 0.01, "momentum": 0.05}[name], 60)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(schedule) if name == "adam" else optax.sgd(schedule, momentum=0.9),
    )
    model = Network()
    images, _ = make_batch(0)
    variables = model.init(jax.random.key(0), images)
    plan = tdjax.make_plan(model, variables, RULES, images)
    state = TrainState.create(apply_fn=model.apply, params=variables["params"], tx=tx)
    traces, losses = [], []

    @jax.jit
    def step(state, images, labels):
        traces.append(state.apply_fn)
        return train_step(state, images, labels)

    def run(state, steps):
        for seed in steps:
            state, loss = step(state, *make_batch(seed))
            losses.append(float(loss))
        return state

    state = run(state, range(20))
    assert len(traces) == 1
    head = state.params["head"]["kernel"]
    state = factorise_state(state, model, plan)
    assert state.params["head"]["kernel"] is head
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == plan.size
    state = run(state, range(20, 50))
    # Traced once more for the factorised network, and no more than that.
    assert len(traces) == 2
    assert int(state.step) == 50
    # The schedule goes on where it was.
    counts = optax.tree_utils.tree_get_all_with_path(state.opt_state, "count")
    assert counts
    assert all(int(count) == 50 for _, count in counts)
    assert np.isfinite(losses).all()
    before, after, end = (np.mean(losses[part]) for part in (
        slice(0, 5), slice(22, 30), slice(45, 50)))  # fmt: skip
    assert before > after > end
    assert end < np.mean(losses[15:20])


class NNXNetwork(nnx.Module):
    """As `Network`."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 12, (3, 3), strides=2, rngs=rngs)
        self.hidden = nnx.Linear(12, 16, rngs=rngs)
        self.head = nnx.Linear(16, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv(x))
        return self.head(nnx.relu(self.hidden(x.mean(axis=(1, 2)))))


def test_nnx_factorised_in_the_middle():
    model = NNXNetwork(nnx.Rngs(0))
    images, _ = make_batch(0)
    plan = tdjax.make_plan(model, RULES, images)
    optimizer = nnx.Optimizer(model, optax.adam(optax.constant_schedule(0.01)), wrt=nnx.Param)
    traces, losses = [], []

    @nnx.jit
    def step(model, optimizer, images, labels):
        traces.append(model)

        def loss_fn(model):
            logits = model(images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, gradients = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, gradients)
        return loss

    def run(model, optimizer, steps):
        for seed in steps:
            losses.append(float(step(model, optimizer, *make_batch(seed))))

    run(model, optimizer, range(15))
    moment = np.asarray(optimizer.opt_state[0].nu["head"]["kernel"][...])
    dense, small = optimizer, tdjax.factorize(model, plan)
    optimizer = tdjax.nnx.carry_optimizer(dense, model, small)
    assert int(dense.step[...]) == int(optimizer.step[...]) == 15
    found = optimizer.opt_state[0].nu
    np.testing.assert_array_equal(found["head"]["kernel"][...], moment)
    assert not np.asarray(found["conv"]["core"]["kernel"][...]).any()
    run(small, optimizer, range(15, 40))
    assert len(traces) == 2
    assert int(optimizer.step[...]) == int(optimizer.opt_state[0].count[...]) == 40
    assert np.mean(losses[:5]) > np.mean(losses[17:22]) > np.mean(losses[35:])


# ---------------------------------------------------------------- several devices, another process


class Wide(nn.Module):
    """Layers whose kernels are split over the axis `model` of a mesh."""

    @nn.compact
    def __call__(self, x):
        def split(*names):
            return nn.with_partitioning(nn.initializers.lecun_normal(), names)

        x = nn.Dense(16, kernel_init=split(None, "model"), name="up")(x)
        return nn.Dense(CLASSES, kernel_init=split("model", None), name="down")(nn.tanh(x))


def train(state, batches, step):
    losses = []
    for images, labels in batches:
        state, loss = step(state, images, labels)
        losses.append(float(loss))
    return state, losses


def largest_difference(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def data_parallel():
    """Train with the batch split over all devices, factorise, train on; and so on one device."""
    model, tx, step = Network(), optax.sgd(0.05, momentum=0.9), jax.jit(train_step)
    batches = [make_batch(seed) for seed in range(8)]
    variables = model.init(jax.random.key(0), batches[0][0])
    plan = tdjax.make_plan(model, variables, RULES, batches[0][0])

    def run(state, batches):
        state, before = train(state, batches[:4], step)
        state, after = train(factorise_state(state, model, plan), batches[4:], step)
        return state, before + after

    state = TrainState.create(apply_fn=model.apply, params=variables["params"], tx=tx)
    alone, expected = run(state, batches)
    # Explicit axes, the default of newer versions, would ask for sharding in the model's own code.
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    together, found = run(jax.device_put(state, whole), jax.device_put(batches, split))
    dense = [tdjax.reconstruct_params(state.params, plan) for state in (alone, together)]
    return {
        "losses": largest_difference(found, expected),
        "params": largest_difference(*dense),
        "replicated": all(
            leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == DEVICES
            for leaf in jax.tree.leaves((together.params, together.opt_state))
        ),
        "fell": expected[0] - expected[-1],
    }


def model_parallel():
    """Factors placed by the names that their kernels had, and the same training on one device."""
    model, tx = Wide(), optax.sgd(0.1, momentum=0.9)
    batches = [(normal(seed, 16, 12), jnp.arange(16) % CLASSES) for seed in range(4)]
    variables = model.init(jax.random.key(0), batches[0][0])
    rules = [tdjax.Rule(path="up|down", method="svd", rank=2)]
    plan = tdjax.make_plan(model, variables, rules, batches[0][0])
    boxed = tdjax.factorize_params(variables["params"], plan)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    places, params = nn.get_sharding(boxed, mesh), nn.meta.unbox(boxed)
    placed = jax.device_put(params, places)
    small = tdjax.factorize(model, plan)

    def run(params, batches):
        state = TrainState.create(apply_fn=small.apply, params=params, tx=tx)
        return train(state, batches, jax.jit(train_step))

    alone, expected = run(params, batches)
    together, found = run(
        placed, jax.device_put(batches, NamedSharding(mesh, PartitionSpec("data")))
    )

    def pieces(params):
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.addressable_shards[
                0
            ].data.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        }

    specs = nn.get_partition_spec(boxed)
    return {
        "losses": largest_difference(found, expected),
        "params": largest_difference(alone.params, together.params),
        "specs": {
            name: list(
                map(list, map(tuple, (specs[name][s]["kernel"] for s in ("input", "output"))))
            )
            for name in specs
        },
        "pieces": pieces(placed),
        "pieces_after": pieces(together.params),
        "pieces_of_momentum": pieces(together.opt_state[0].trace),
        "fell": expected[0] - expected[-1],
    }


def moments():
    """Moments from batches split over all devices, and on one."""
    model = Network()
    batches = [make_batch(seed, 96) for seed in range(2)]
    variables = model.init(jax.random.key(0), batches[0][0])

    def loss_fn(logits, batch):
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])

    def collected(variables, batches):
        return tdjax.collect_moments(model, variables, batches, loss_fn=loss_fn)

    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    alone = collected(variables, batches)
    together = collected(jax.device_put(variables, whole), jax.device_put(batches, split))
    used = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(together)}
    return {"difference": largest_difference(together, alone), "devices": max(used)}


def refinement():
    """Factors refined on batches split over all devices, and on one."""
    model, x = Wide(), normal(0, 72, 12)
    variables = nn.meta.unbox(model.init(jax.random.key(0), x))
    rules = [tdjax.Rule(path="up|down", method="svd", rank=2)]
    plan = tdjax.make_plan(model, variables, rules, x)
    factors = tdjax.factorize_params(variables["params"], plan)

    def refined(variables, factors, batches, size):
        return tdjax.refine(
            model, variables, factors, plan, batches, epochs=2, batch_size=size,
            learning_rate=0.01, progress=False,
        )  # fmt: skip

    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    batches = [x[:48], x[48:]]
    alone = refined(variables, factors, batches, 16)
    # No multiple of the devices: each step has two for each of them.
    placed = jax.device_put((variables, factors), whole)
    together = refined(*placed, jax.device_put(batches, split), 12)
    return {
        "losses": [[epoch.held_out for epoch in found.curve] for found in (alone, together)],
        "best": together.best,
        "devices": [len(leaf.sharding.device_set) for leaf in jax.tree.leaves(together.factors)],
    }


@pytest.fixture(scope="module")
def on_eight_devices():
    """Results of both, from a process of its own: the number of devices is fixed at the start."""
    here = Path(__file__).resolve().parent
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    paths = os.pathsep.join([str(here), str(here.parent)])
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_data_parallel_equals_one_device(on_eight_devices):
    found = on_eight_devices["data_parallel"]
    assert found["losses"] < 1e-5
    assert found["params"] < 1e-5
    assert found["replicated"]
    assert found["fell"] > 0.1


def test_factors_are_placed_as_their_kernels_were(on_eight_devices):
    found = on_eight_devices["model_parallel"]
    assert found["specs"] == {
        "up": [[None, None], [None, "model"]],
        "down": [["model", None], [None, None]],
    }
    pieces = {
        "up/input/kernel": [12, 2],
        "up/output/kernel": [2, 16 // 4],
        "up/bias": [16],
        "down/input/kernel": [16 // 4, 2],
        "down/output/kernel": [2, CLASSES],
        "down/bias": [CLASSES],
    }
    assert found["pieces"] == pieces
    # A step leaves the factors where they are, and their momentum with them.
    for part in ("pieces_after", "pieces_of_momentum"):
        kernels = {name: shape for name, shape in found[part].items() if "kernel" in name}
        assert kernels == {name: shape for name, shape in pieces.items() if "kernel" in name}
    assert found["losses"] < 1e-5
    assert found["params"] < 1e-5
    assert found["fell"] > 0.01


def test_moments_of_split_batches(on_eight_devices):
    found = on_eight_devices["moments"]
    assert found["difference"] < 1e-4
    assert found["devices"] == DEVICES


def test_refinement_on_split_batches(on_eight_devices):
    found = on_eight_devices["refinement"]
    alone, together = found["losses"]
    assert together[found["best"]] < 0.9 * together[0]
    np.testing.assert_allclose(together, alone, rtol=1e-3)
    assert set(found["devices"]) == {DEVICES}


if __name__ == "__main__":
    cheap_programs.install()
    warnings.simplefilter("error")
    assert jax.device_count() == DEVICES
    parts = (data_parallel, model_parallel, moments, refinement)
    print(json.dumps({part.__name__: part() for part in parts}))
