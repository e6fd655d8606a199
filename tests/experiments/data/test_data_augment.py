import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import random_crop_flip


def make_images(n=24, height=6, width=5, channels=3, dtype=np.float32):
    # All pixels differ, so that a window has one place.
    count = n * height * width * channels
    return np.arange(1, count + 1).reshape(n, height, width, channels).astype(dtype)


def windows(image, padding, fill):
    """Return every window of the padded image by offset and flip."""
    height, width, channels = image.shape
    padded = np.empty((height + 2 * padding, width + 2 * padding, channels), image.dtype)
    padded[...] = fill
    padded[padding : padding + height, padding : padding + width] = image
    return {
        (top, left, flipped): padded[top : top + height, left : left + width][
            :, :: -1 if flipped else 1
        ]
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
        for flipped in (False, True)
    }


def places(images, augmented, padding, fill=0.0):
    """Return offset and flip of each augmented image; fail where it is no window."""
    found = []
    for image, result in zip(images, np.asarray(augmented), strict=True):
        matches = [
            place
            for place, window in windows(image, padding, fill).items()
            if np.array_equal(window, result)
        ]
        assert len(matches) == 1
        found.append(matches[0])
    return np.array(found)


@pytest.mark.parametrize("padding", [1, 2])
def test_each_image_is_a_window_of_its_padded_image(padding):
    images = make_images()
    augmented = random_crop_flip(jax.random.key(0), jnp.asarray(images), padding)
    assert augmented.shape == images.shape
    assert augmented.dtype == images.dtype
    found = places(images, augmented, padding)
    # Each image has its own draw.
    assert len(np.unique(found, axis=0)) > 5


def test_all_offsets_and_flips_are_about_equally_likely():
    images = np.repeat(make_images(n=1), 3600, axis=0)
    augmented = np.asarray(random_crop_flip(jax.random.key(1), jnp.asarray(images), 1))
    counts = [
        np.all(augmented == window, axis=(1, 2, 3)).sum()
        for window in windows(images[0], 1, 0.0).values()
    ]
    assert sum(counts) == 3600
    # 18 cells of 200 expected: five standard deviations either side.
    assert 130 < min(counts) <= max(counts) < 270


def test_fill_is_the_padding_by_channel():
    images = make_images()
    fill = np.array([-1.5, -2.5, -3.5], np.float32)
    augmented = random_crop_flip(jax.random.key(2), jnp.asarray(images), 3, fill=jnp.asarray(fill))
    found = places(images, augmented, 3, fill)
    assert np.any(found[:, :2] != 3)
    np.testing.assert_array_equal(
        np.unique(np.asarray(augmented)[np.asarray(augmented) < 0]), np.sort(fill)
    )


def test_without_flip_nothing_is_mirrored():
    images = make_images()
    augmented = random_crop_flip(jax.random.key(0), jnp.asarray(images), 2, flip=False)
    assert not places(images, augmented, 2)[:, 2].any()


def test_without_padding_images_are_mirrored_or_unchanged():
    images = make_images()
    augmented = random_crop_flip(jax.random.key(0), jnp.asarray(images), padding=0)
    flipped = places(images, augmented, 0)[:, 2]
    assert 0 < flipped.sum() < len(images)
    unchanged = random_crop_flip(jax.random.key(0), jnp.asarray(images), padding=0, flip=False)
    np.testing.assert_array_equal(unchanged, images)


def test_padding_wider_than_the_image():
    images = make_images(n=6, height=2, width=3)
    augmented = np.asarray(random_crop_flip(jax.random.key(0), jnp.asarray(images), 5))
    for image, result in zip(images, augmented, strict=True):
        assert any(np.array_equal(result, window) for window in windows(image, 5, 0.0).values())


def test_draws_depend_on_the_key_only():
    images = jnp.asarray(make_images())
    first = random_crop_flip(jax.random.key(3), images)
    np.testing.assert_array_equal(first, random_crop_flip(jax.random.key(3), images))
    np.testing.assert_array_equal(first, random_crop_flip(jax.random.PRNGKey(3), images))
    assert not np.array_equal(first, random_crop_flip(jax.random.key(4), images))


def test_inside_jit_and_scan():
    images = jnp.asarray(make_images(n=4))
    keys = jax.random.split(jax.random.key(0), 3)

    @jax.jit
    def run(keys, images):
        return jax.lax.scan(lambda carry, key: (carry, random_crop_flip(key, images)), 0, keys)[1]

    for key, augmented in zip(keys, run(keys, images), strict=True):
        np.testing.assert_array_equal(augmented, random_crop_flip(key, images))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_dtype_is_kept(dtype):
    images = jnp.asarray(make_images(n=2), dtype)
    fill = jnp.ones(3, jnp.float32)
    assert random_crop_flip(jax.random.key(0), images, 1, fill=fill).dtype == dtype


def test_negative_padding():
    with pytest.raises(ValueError, match="padding is -1; expected 0 or more"):
        random_crop_flip(jax.random.key(0), jnp.zeros((1, 2, 2, 1)), -1)
