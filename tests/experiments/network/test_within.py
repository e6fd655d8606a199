"""Training that ends within an epoch, and is continued there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.compress.settings import SCHEMA
from experiments.network import checkpoints
from experiments.network.baseline import train_baseline
from experiments.network.network import configured
from experiments.network.schedule import FitSettings
from experiments.network.settings import (
    CalibrationSettings,
    DataSettings,
    ModelSettings,
    NetworkSettings,
)
from experiments.network.steps import Course
from experiments.network.training import Begun, start_fit
from experiments.network.within import Within
from experiments.workdir.journal import read_journal

pytest.importorskip("sklearn")


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def network():
    data = {"train_size": 60, "validation_size": 20, "test_size": 20, "validation_share": 0.25}
    return configured(
        NetworkSettings(
            data=DataSettings(name="digits", **data),
            model=ModelSettings(name="mlp", arguments={"widths": [5]}),
            train=FitSettings(epochs=3, batch_size=10, learning_rate=0.05),
            calibration=CalibrationSettings(images=(20,), batch_size=20),
            checkpoint_every=5,
            checkpoint_steps=2,
        )
    )


def train(network, workdir):
    journal = read_journal(workdir / "metrics.jsonl", SCHEMA)
    return train_baseline(network, workdir / "checkpoints" / "baseline", journal)


def epochs(workdir):
    return read_journal(workdir / "metrics.jsonl", SCHEMA).of_kind("epoch")


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_training_goes_on_within_its_epoch(network, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for workdir in (whole, killed):
        workdir.mkdir()
    expected = train(network, whole)
    # Of what was kept within epochs nothing is left.
    assert [place.name for place in (whole / "checkpoints").iterdir()] == ["baseline"]

    save, saved = checkpoints.save, []

    def save_and_end(folder, step, tree):
        save(folder, step, tree)
        saved.append(step)
        if len(saved) in (1, 4):
            raise KilledError

    monkeypatch.setattr(checkpoints, "save", save_and_end)
    for _ in range(2):
        with pytest.raises(KilledError):
            train(network, killed)
    # After two and four of the six steps of an epoch: once, then from there on, not anew.
    assert saved == [2, 4, 8, 10]
    assert len(epochs(killed)) == 1
    assert_same(train(network, killed), expected)
    assert saved[4:] == [14, 16, 3]
    assert epochs(killed) == epochs(whole)
    assert [place.name for place in (killed / "checkpoints").iterdir()] == ["baseline"]
    # Once more: nothing is left to do.
    assert_same(train(network, killed), expected)


def test_what_is_older_than_the_last_epoch_is_left_alone(network, tmp_path):
    fit = start_fit(network.start.alone(), network.settings.train)
    within = Within(tmp_path / "epoch", every=2, steps=6)
    assert within.newer(fit) is None
    course = Course(fit.model, fit.optimizer, jnp.ones(1))
    for taken in (1, 2, 3):
        within.keep(Begun(fit, course, jnp.asarray(taken, jnp.int32)))
    assert_same(within.newer(fit), Begun(fit, course, jnp.asarray(2, jnp.int32)))
    assert within.newer(fit._replace(epoch=fit.epoch + 1)) is None
    within.remove()
    assert within.newer(fit) is None


def test_a_damaged_one_is_named(network, tmp_path, monkeypatch):
    save = checkpoints.save

    def save_and_end(folder, step, tree):
        save(folder, step, tree)
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save", save_and_end)
        with pytest.raises(KilledError):
            train(network, tmp_path)
    folder = tmp_path / "checkpoints" / "baseline-epoch"
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(checkpoints.CheckpointError, match="baseline-epoch"):
        train(network, tmp_path)
