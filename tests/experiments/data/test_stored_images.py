"""Photographs that are read when they are wanted, against the same photographs in memory."""

import threading
import weakref
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from photograph_trees import write_aircraft, write_imagenet

from experiments.data import DataError, DecodedWhenTaken, RawDataset, imagenet_files, load, prepare
from experiments.data.image_arrays import processors
from experiments.network.calibrate import Calibration, altered, batches_of, source_examples
from experiments.network.forward import LinenNetwork, Variables
from experiments.network.schedule import FitSettings
from experiments.network.settings import (
    CalibrationSettings,
    DataSettings,
    ModelSettings,
    NetworkSettings,
)
from experiments.network.training import evaluate, fit_epochs, start_fit

pytest.importorskip("PIL")
pytest.importorskip("grain")

SIDE = 16


class TinyNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(2, (3, 3), strides=4)(x))
        return nn.Dense(3)(x.mean(axis=(1, 2)))


NETWORK = LinenNetwork(TinyNet())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("stored") / "imagenet"
    write_imagenet(place, train=10, val=4)
    return place


def raw(folder, *, held):
    """The tree as small views: in its files, or as arrays."""
    parts = []
    for part in ("train", "val"):
        files = imagenet_files(folder, part)
        views = DecodedWhenTaken(files, SIDE, 18)
        parts += [views[np.arange(len(files))] if held else views, files.labels]
    return RawDataset("small", *parts, num_classes=3)


@pytest.fixture(scope="module")
def pair(folder):
    return tuple(prepare(raw(folder, held=held), 0.2, seed=3) for held in (False, True))


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_splits_are_those_in_memory(pair):
    stored, held = pair
    np.testing.assert_array_equal(stored.mean, held.mean)
    np.testing.assert_array_equal(stored.std, held.std)
    for name in ("train", "validation", "test"):
        own, other = getattr(stored, name), getattr(held, name)
        np.testing.assert_array_equal(own.labels, other.labels)
        assert (own.images.shape, own.images.dtype) == (other.images.shape, other.images.dtype)
        for chosen in (slice(None), slice(1, 4), np.array([2, 0, 2]), -1, np.array([], int)):
            np.testing.assert_array_equal(own.images[chosen], other.images[chosen])
        few = np.array([3, 1, 5])
        assert_same(own.taken(few).images[:], other.taken(few).images)


@pytest.mark.parametrize("count", [None, 7, 6, 100])
def test_parts_in_turn_and_by_place(pair, count):
    expected = pair[1].train.parts(3, count)
    for parts in (pair[0].train.parts(3, count), expected):
        assert len(parts) == len(expected)
        assert_same(list(parts), [expected[k] for k in range(len(expected))])
        assert_same(list(parts[1:]), list(expected)[1:])
    assert_same(list(pair[0].train.batches(3, count)), list(pair[1].train.batches(3, count)))


def test_processes_share_each_batch(pair):
    images = pair[0].train.images
    order = np.random.default_rng(0).permutation(24)[:22]
    alone = list(images.batches(order, 6))
    assert [len(batch) for batch in alone] == [6, 6, 6, 4]
    assert_same(alone, [images[order[k : k + 6]] for k in range(0, 22, 6)])
    for count in (2, 3):
        shares = [list(images.batches(order, 6, (k, count))) for k in range(count)]
        for batch, *own in zip(alone[:3], *shares, strict=True):
            assert [len(share) for share in own] == [6 // count] * count
            both = np.concatenate(own)
            assert {one.tobytes() for one in both} == {one.tobytes() for one in batch}
    with pytest.raises(ValueError, match="batches of 6 images for process 0 of 4"):
        next(images.batches(order, 6, (0, 4)))
    # What comes after a batch does not depend on what came before.
    assert_same(list(images.batches(order[12:], 6)), alone[2:])


def test_no_more_is_held_than_about_three_batches(pair):
    images, size = pair[0].train.images, 8
    alive, most, lock = set(), [], threading.Lock()

    def counted(views):
        read = images.finish(views)
        with lock:
            alive.add(id(read))
            most.append(len(alive))
        weakref.finalize(read, alive.discard, id(read))
        return read

    watched, order = replace(images, finish=counted), np.arange(960) % len(images)
    found = [len(batch) for batch in watched.batches(order, size)]
    assert found == [size] * 120
    assert len(most) == 960
    # Those that are put together and those read ahead; the batch in use is a copy. A thread may
    # hold one more.
    assert max(most) <= 2 * size + processors()
    # Of a pass that is given up no more is read.
    some = watched.batches(order, size)
    next(some)
    some.close()
    join_readers()
    assert len(most) <= 960 + 2 * size + processors()


def join_readers():
    """Wait until Grain's threads are at their end."""
    for thread in threading.enumerate():
        if thread.name.startswith("grain"):
            thread.join(30)
            assert not thread.is_alive()


SETTINGS = FitSettings(epochs=3, batch_size=5, learning_rate=0.05, augment=True)


def fits(splits, runs=2, fit=None, keep=None):
    variables = jax.jit(TinyNet().init)(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
    # Each run starts elsewhere.
    models = jax.tree.map(
        lambda leaf: jnp.stack([leaf + 0.1 * run for run in range(runs)]),
        Variables(variables["params"], {}),
    )
    keys = jax.random.split(jax.random.key(1), runs)
    fit = fit or start_fit(models, SETTINGS)
    return list(fit_epochs(fit, NETWORK, SETTINGS, splits, keys, keep=keep))


def test_training_and_evaluation_as_in_memory(pair):
    kept = []
    stored, held = fits(pair[0], keep=kept.append), fits(pair[1])
    assert_same(stored, held)
    # Of four steps in each of three epochs the last is none that anything is left to do of.
    assert [(int(own.fit.epoch[0]), int(own.taken)) for own in kept] == [
        (epoch, taken) for epoch in range(3) for taken in (1, 2, 3)
    ]
    # Continued from its first epoch, and from steps within epochs.
    assert_same(fits(pair[0], fit=stored[0].fit), stored[1:])
    for place in (1, 5):
        for splits in pair:
            assert_same(fits(splits, fit=kept[place]), stored[place // 3 :])
    scores = [evaluate(stored[-1].fit.model, NETWORK, own.test, 5) for own in pair]
    assert_same(*scores)


def test_calibration_as_in_memory(pair):
    settings = NetworkSettings(
        data=DataSettings(name="imagenet"),
        model=ModelSettings(name="resnet18_imagenet"),
        train=SETTINGS,
        calibration=CalibrationSettings(images=(14,), batch_size=4, brightness=0.2),
    )
    for change in ("same", "flipped", "brighter"):
        found = []
        for splits in pair:
            images = altered(splits.train.images, change, settings, splits)
            source = replace(splits.train, images=images)
            batches = batches_of(settings, source, Calibration(change, 14, 1), 3)
            found.append(list(batches))
            assert_same(batches[2], found[-1][2])
        assert_same(*found)


def test_photographs_as_the_calibration_of_another_network(pair, tmp_path):
    write_aircraft(tmp_path, each=1)
    calibration = {"sources": ("fgvc_aircraft",), "folder": str(tmp_path), "images": (1,)}
    settings = NetworkSettings(
        data=DataSettings(name="imagenet"),
        model=ModelSettings(name="resnet18_imagenet"),
        train=SETTINGS,
        calibration=CalibrationSettings(**calibration),
    )
    splits = pair[1]
    source = source_examples(settings, "fgvc_aircraft", splits)
    raw = load("fgvc_aircraft", tmp_path)
    chosen = np.sort(np.random.default_rng(0).permutation(8)[:4])
    views = jnp.asarray(raw.train_images[chosen], jnp.float32)
    expected = (jax.image.resize(views, (4, SIDE, SIDE, 3), "linear") - splits.mean) / splits.std
    np.testing.assert_allclose(source.images[:], expected, atol=1e-5)
    np.testing.assert_array_equal(source.labels, raw.train_labels[chosen])


def test_a_damaged_photograph_is_named_when_it_is_read(tmp_path):
    write_imagenet(tmp_path, train=10)
    statistics = (100.0,) * 3, (50.0,) * 3
    damaged = tmp_path / "train" / "n02" / "n02_4.JPEG"
    damaged.write_bytes(damaged.read_bytes()[:90])
    splits = prepare(raw(tmp_path, held=False), 0.2, seed=3, statistics=statistics)
    with pytest.raises(DataError, match=r"n02_4\.JPEG: cannot be read as an image"):
        fits(splits, runs=1)
    # Nothing reads on behind it.
    join_readers()
