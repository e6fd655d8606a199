import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import load
from experiments.network.calibrate import (
    Batch,
    Calibration,
    altered,
    draw,
    sampled_loss,
    source_examples,
    true_loss,
)
from experiments.network.network import configured
from experiments.network.schedule import FitSettings
from experiments.network.settings import (
    CalibrationSettings,
    DataSettings,
    ModelSettings,
    NetworkSettings,
)

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def network():
    return configured(
        NetworkSettings(
            data=DataSettings(
                name="digits",
                validation_share=0.25,
                train_size=200,
                validation_size=50,
                test_size=50,
            ),
            model=ModelSettings(name="garipovnet", arguments={"widths": [4] * 6, "pools": [2, 0]}),
            train=FitSettings(epochs=1, batch_size=40, learning_rate=0.05),
            calibration=CalibrationSettings(images=(60,), batch_size=30),
        )
    )


def test_batches_hold_the_images_that_were_drawn(network):
    calibration = Calibration("same", 60, 1)
    batches = network.batches(calibration)
    drawn = draw(network.sources["same"], calibration, 0)
    assert [len(batch.labels) for batch in batches] == [30, 30]
    np.testing.assert_array_equal(np.concatenate([b.images for b in batches]), drawn.images)
    np.testing.assert_array_equal(np.concatenate([b.labels for b in batches]), drawn.labels)
    assert batches[0].noise.shape == (30, 10)


def test_calibration_images(network):
    settings, splits = network.settings, network.splits
    images = splits.train.images
    np.testing.assert_array_equal(
        altered(images, "flipped", settings, splits)[:, :, 0], images[:, :, -1]
    )
    brighter = altered(images, "brighter", settings, splits) * splits.std + splits.mean
    expected = np.minimum(images * splits.std + splits.mean + 0.2 * 16, 16)
    np.testing.assert_allclose(brighter, expected, atol=1e-4)
    assert altered(images, "same", settings, splits) is images
    few = draw(network.sources["same"], Calibration("same", 20, 1), 0)
    more = draw(network.sources["same"], Calibration("same", 60, 1), 0)
    other = draw(network.sources["same"], Calibration("same", 60, 0), 0)
    assert len(few.labels) == 20
    rows = {image.tobytes() for image in more.images}
    assert {image.tobytes() for image in few.images} <= rows
    assert {image.tobytes() for image in other.images} != rows


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_labels_are_drawn_from_what_the_network_predicts(temperature):
    rng = np.random.default_rng(0)
    logits = jnp.tile(jnp.asarray(rng.normal(size=(1, 4)) * 3, jnp.float32), (20_000, 1))
    noise = rng.gumbel(size=logits.shape).astype(np.float32)
    batch = Batch(None, jnp.zeros(len(logits), int), noise)
    gradient = jax.grad(lambda x: sampled_loss(x, batch, temperature).sum())(logits)
    tempered = np.exp(np.asarray(logits[0]) / temperature)
    share = tempered / tempered.sum()
    # The gradient's second moment is the Fisher information of the categorical distribution.
    fisher = (np.diag(share) - np.outer(share, share)) / temperature**2
    np.testing.assert_allclose(gradient.T @ gradient / len(logits), fisher, atol=0.01)
    loss = true_loss(logits, batch, temperature)[:1]
    np.testing.assert_allclose(loss, -np.log(share[:1]), rtol=1e-5)


def test_another_data_set_is_made_to_fit(network):
    # Digits as the calibration of digits: resized to what they are, they are what they were.
    found = source_examples(network.settings, "digits", network.splits)
    raw = load("digits").train_images
    restored = np.rint(found.images * network.splits.std + network.splits.mean)
    known = {image.tobytes() for image in raw.astype(np.float64)}
    assert {image.tobytes() for image in restored.astype(np.float64)} <= known
