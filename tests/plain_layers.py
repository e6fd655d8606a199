"""Layers written out, and arrays to put through them."""

import math

import jax
import jax.numpy as jnp
import numpy as np

CIFAR = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)


def shapes_of(model, sample=CIFAR):
    return jax.eval_shape(model.init, jax.random.key(0), sample)


def size(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def images(*shape):
    return jax.device_put(np.random.default_rng(1).normal(size=shape).astype(np.float32))


def random_like(shapes):
    """Normal arrays of the shapes of a pytree, scaled by the fan-in; positive variances."""
    random = np.random.default_rng(0)

    def draw(path, leaf):
        array = random.normal(size=leaf.shape) / math.sqrt(math.prod(leaf.shape[:-1]))
        array = np.abs(array) + 0.5 if path[-1].key == "var" else array
        return jax.device_put(array.astype(leaf.dtype))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def convolve(x, p, stride=1, padding=1):
    y = jax.lax.conv_general_dilated(
        x,
        p["kernel"],
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + p.get("bias", 0.0)


def normalise(x, p, s):
    return (x - s["mean"]) / jnp.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]
