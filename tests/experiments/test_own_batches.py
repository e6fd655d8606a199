"""Batches in place of arrays, and networks that take several inputs."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import compress
from experiments.data import prepare_arrays
from experiments.network.network import configured, given
from experiments.workdir.fields import read_fields

pytest.importorskip("matplotlib")

pytestmark = pytest.mark.usefixtures("cache")

HERE = "test_own_batches"


class Masked(nn.Module):
    """Takes a mask too, which labels could be as well."""

    @nn.compact
    def __call__(self, ids, mask=None, train=False):
        x = nn.relu(nn.Dense(12)(nn.Embed(7, 8)(ids)))
        x = x if mask is None else x * mask[..., None]
        return nn.Dense(3)(x.mean(axis=1))


def examples(count, seed):
    rng = np.random.default_rng(seed)
    ids, mask = rng.integers(0, 7, (count, 5)), rng.integers(0, 2, (count, 5))
    return {"ids": ids, "mask": mask.astype(jnp.bfloat16)}, np.arange(count) % 3


def batches(count, seed, size=16):
    inputs, labels = examples(count, seed)
    parts = [slice(start, start + size) for start in range(0, count, size)]
    return [({name: own[part] for name, own in inputs.items()}, labels[part]) for part in parts]


def data():
    return {"train": lambda: iter(batches(160, 0)), "test": batches(30, 1)}


def test_batches_are_the_arrays_that_they_are_made_of():
    whole, labels = examples(120, 0)
    sets = {"train": batches(120, 0), "validation": (whole, labels), "test": batches(30, 1)}
    once = {"train": lambda: iter(batches(120, 0)), "test": batches(30, 1)}
    for found in (prepare_arrays(sets), prepare_arrays(once, validation_share=0.2)):
        assert {own.dtype for own in found.train.images.values()} == {
            np.dtype(np.int32),
            np.dtype(np.float32),
        }
        np.testing.assert_array_equal(found.test.images["ids"], examples(30, 1)[0]["ids"])
        np.testing.assert_array_equal(found.test.labels, examples(30, 1)[1])
    split = found.train, found.validation
    assert [len(own.labels) for own in split] == [96, 24]
    mixed = np.concatenate([own.images["mask"] for own in split])
    np.testing.assert_array_equal(mixed.sum(axis=0), whole["mask"].astype(np.float32).sum(axis=0))
    np.testing.assert_array_equal(prepare_arrays(sets).train.images["ids"], whole["ids"])


X, Y = np.zeros((6, 5)), np.arange(6) % 3
USED = iter([(X, Y)])
next(USED)


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        (USED, "train has no batches; an iterator gives them once"),
        (
            [(X, Y), (X[:, 1:], Y)],
            r"train, batch 1: single inputs have shape \(4,\), those of batch",
        ),
        (
            [((X, X[:, 0]), Y), ((X[0], X), Y)],
            r"batch 1: single inputs have shape \(\(\), \(5,\)\)",
        ),
        ([({"x": X}, Y), (X, Y)], r"inputs have shape \(5,\), those of batch 0 {'x': \(5,\)}"),
        ([{"x": X, "y": Y}], "batch 0 is a dict of x, y: .inputs, labels. is needed, the dict"),
        ([X], r"batch 0 is ndarray: \(inputs, labels\) is needed"),
        ([(X, Y, Y)], r"batch 0 is 3 entries: \(inputs, labels\) is needed"),
        ([([[1, 2], [1]], Y)], "batch 0 cannot be made arrays"),
        ([(X, 3)], "batch 0 holds int64 of shape"),
        (3, "train is int: a list of batches"),
        ([((X, X[:3]), Y)], r"train_inputs have shapes \(\(6, 5\), \(3, 5\)\): equally many"),
        ([({"x": X * np.nan}, Y)], r"train_inputs\['x'\] hold 30 values that are NaN"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else "",
)
def test_what_cannot_be_gathered_is_told(train, problem):
    with pytest.raises(ValueError, match=problem) as raised:
        prepare_arrays({"train": train, "test": (X, Y)})
    assert "\n" not in str(raised.value)


def test_sets_of_other_names_are_told_and_more_than_memory_holds(monkeypatch):
    for sets, problem in (
        ({"train": [(X, Y)]}, "batches of 'test' are missing"),
        ({"train": [], "test": [], "dev": []}, "train, validation, test are known, not 'dev'"),
    ):
        with pytest.raises(ValueError, match=problem):
            prepare_arrays(sets)
    monkeypatch.setattr("experiments.data.gather.installed_memory", lambda: 10_000)
    endless = iter(lambda: (X, Y), None)
    with pytest.raises(ValueError, match="memory, and there are more: do not repeat them"):
        prepare_arrays({"train": endless, "test": (X, Y)})


@pytest.mark.usefixtures("undrawn")
def test_a_network_takes_several_inputs(tmp_path):
    raw = {
        "data": {"name": f"{HERE}:data"},
        "model": {"name": f"{HERE}:Masked"},
        "train": {"epochs": 1, "batch_size": 32},
        "calibration": {"images": [130], "subsets": 1},
        "strategies": ["loss"],
        "budgets": [0.7932],
        "methods": ["svd"],
        "norms": ["covariance"],
        "refine": {"epochs": 1},
        "timed_images": 4,
    }
    settings = read_fields(compress.Compress, raw)
    own = configured(settings)
    compress.run(own, settings, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    found = {record["kind"]: record for record in map(json.loads, lines)}
    assert found.keys() >= {"baseline", "network", "refined", "timed"}
    assert 0 < found["network"]["test"]["cross_entropy"] < 2
    # Of one input alone, beside which labels could be a second.
    inputs = {f"{part}_inputs": examples(150, 0)[0]["ids"] for part in ("train", "test")}
    labels = {f"{part}_labels": examples(150, 0)[1] for part in ("train", "test")}
    splits = prepare_arrays({**inputs, **labels})
    variables = Masked().init(jax.random.key(0), splits.test.images)
    alone = read_fields(compress.Compress, {**raw, "refine": {"epochs": 0}, "timed_images": 0})
    compress.run(given(alone, Masked(), variables, splits), alone, tmp_path / "alone")
    whole = json.loads((tmp_path / "alone" / "metrics.jsonl").read_text("utf-8").splitlines()[0])
    outputs = Masked().apply(variables, splits.test.images)
    right = np.mean(np.argmax(outputs, axis=1) == splits.test.labels)
    assert whole["test"]["accuracy"] == pytest.approx(float(right))
