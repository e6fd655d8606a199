"""Experiments on eight devices give what they give on one; in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

SCRIPT = """
import json, shutil, sys, flax.linen as nn, jax, numpy as np
from pathlib import Path
from tests import cheap_programs
from benchmarks.kills.configs import CONFIGS
from experiments.data.splits import DataSplits, Examples
from experiments.network import steps, training
from experiments.network.forward import LinenNetwork, Variables
from experiments.network.schedule import FitSettings
from experiments.runner import carry_out
from experiments.workdir.devices import (
    gathered, here, own_devices, parts_of, spread, use_devices
)
from experiments.workdir.fields import FieldError
from experiments.workdir import threads

cheap_programs.install()
assert len(own_devices()) == 8

def close(found, expected, tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape
        assert np.linalg.norm(a - b) <= tolerance * max(1, np.linalg.norm(b)), (a, b)

# Batch statistics of all of a batch, dropout, crops; evaluation of a number that does not divide.
class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(not train)(nn.Conv(4, (3, 3))(x))
        x = nn.Dropout(0.2, deterministic=not train)(nn.relu(x))
        return nn.Dense(3)(x.mean(axis=(1, 2)))

random = np.random.default_rng(0)
def examples(number):
    images = random.standard_normal((number, 6, 6, 2)).astype(np.float32)
    # Statistics of a part are far from those of the whole.
    images[: number // 2] += 3
    return Examples(images, random.integers(0, 3, number).astype(np.int32))

sets = [examples(number) for number in (48, 21, 5)]
splits = DataSplits(*sets, np.zeros(2), np.ones(2), 3)
apply = LinenNetwork(Net())
start = apply.start(Net().init(jax.random.key(0), sets[0].images[:1])).alone()
settings = FitSettings(epochs=3, batch_size=16, learning_rate=0.05, augment=True)
keys = jax.random.split(jax.random.key(1), 1)

def trained(place):
    fit = place(training.start_fit(start, settings))
    return [after for after in training.fit_epochs(fit, apply, settings, splits, keys)]

alone, together = trained(lambda fit: fit), trained(spread)
compiled = steps._step._cache_size()
assert compiled == 2, compiled
for one, many in zip(alone, together, strict=True):
    close(many.fit.model, one.fit.model, 1e-4)
    close(many.loss, one.loss, 1e-4)
    close(many.scores.cross_entropy, one.scores.cross_entropy, 1e-4)
assert not np.allclose(alone[-1].fit.model.state["batch_stats"]["BatchNorm_0"]["mean"], 0)
parts = parts_of(together[-1].fit.model)
assert parts.mesh.size == 8 and parts_of(gathered(together[-1].fit.model)) is None
assert not jax.tree.leaves(gathered(together[-1].fit.model))[0].committed

# Tasks have a device each, and what they are given moves there.
free, used = here(start.params), set()
def task():
    own = jax.tree.leaves(here(free))[0]
    used.update(own.devices())
    assert not own.committed and own.devices() == jax.numpy.zeros(1).devices()
    yield []
threads.workers = lambda: 4
threads.in_threads([task] * 24, lambda records: None)
assert len(used) == 8, used

# The smallest study, trained by whole batches and measured with a device for each task. On one
# device the measurements of the same network are the same to the last bit.
config = {
    **CONFIGS["study"], "experiment": "study", "networks": 1, "runs": 1, "compressions": [0.5],
    "train": {"epochs": 1, "batch_size": 40},
}
folders = [Path(sys.argv[1]) / name for name in ("many", "one")]

def measured(folder):
    carry_out(config, folder)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    found = [line for line in lines if line["kind"] in ("compressed", "finetuned")]
    for line in found:
        line.pop("at", None)
    return sorted(map(json.dumps, found))

many = measured(folders[0])
shutil.copytree(*folders)
path = folders[1] / "metrics.jsonl"
kept = [
    line for line in path.read_text().splitlines(keepends=True)
    if json.loads(line)["kind"] not in ("compressed", "finetuned")
]
path.write_text("".join(kept))
use_devices(1)
assert measured(folders[1]) == many
assert len(many) == 4
use_devices(None)

for size in (41, 12):
    try:
        carry_out(
            {**CONFIGS["study"], "experiment": "study", "train": {"epochs": 1, "batch_size": size}},
            Path(sys.argv[1]) / "refused",
        )
    except FieldError as error:
        fewer = {41: 1, 12: 6}[size]
        assert str(error) == (
            f"config field 'train.batch_size' is {size}: it cannot be split over the 8 devices of "
            f"this process: use a multiple of 8, or --devices={fewer}"
        ), error
    else:
        raise AssertionError("batches were taken that do not divide")
assert not (Path(sys.argv[1]) / "refused").exists()
for wrong in (0, 9):
    try:
        use_devices(wrong)
    except ValueError as error:
        assert str(error) == f"--devices is {wrong}: this process has 8"
    else:
        raise AssertionError("devices were taken that are not there")
"""


def test_eight_devices_are_as_one(tmp_path):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
