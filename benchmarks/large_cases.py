"""Large networks with random weights and made-up moments: what `benchmarks.large` decomposes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import tdjax
from benchmarks.scale_models import Block, Shape
from experiments.models import ResNet50
from tdjax.decompose.second_moment import trust

# Of the parameters of all layers.
KEPT = 0.5
# One block each; what comes before and after it is not asked for.
SHAPES: Mapping[str, Shape] = {
    "gpt2-block": Shape(768, 1, 12, 12, 3072, False, 50257, 1024),
    "llama-1b-block": Shape(2048, 1, 32, 8, 8192, True, 128256, 2048),
}
# Those that need no moments, and the one that collects them.
WITHOUT = ("frobenius", "energy", "moments")
# Of a block: sequences, and the tokens of each.
SEQUENCES, TOKENS = 2, 512


class VisionTransformer(nn.Module):
    """ViT-B/16 without its classifier."""

    shape: Shape = SHAPES["gpt2-block"]
    blocks: int = 12

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        """Images to features."""
        width = self.shape.width
        x = nn.Conv(width, (16, 16), (16, 16), name="patches")(x).reshape(len(x), -1, width)
        for number in range(self.blocks):
            x = Block(self.shape, name=f"block{number}")(x)
        return x.mean(axis=1)


class Case(NamedTuple):
    """A network and what it is decomposed with."""

    model: nn.Module
    variables: Mapping[str, Any]
    sample: jax.ShapeDtypeStruct
    plan: tdjax.Plan
    moments: Mapping[str, tdjax.LayerMoments] | None

    @property
    def size(self) -> float:
        """Bytes of parameters and moments."""
        return bytes_of((self.variables, self.moments))


def bytes_of(tree: Any) -> float:
    """Of all arrays."""
    return float(sum(leaf.nbytes for leaf in jax.tree.leaves(tree)))


def case_of(network: str, call: str) -> Case:
    """The network with the moments that the call needs."""
    model, sample = _network(network)
    shapes = jax.eval_shape(model.init, jax.random.key(0), sample)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(partial(_weights_like, rng), shapes)
    rules = [tdjax.Rule(path=".*", method="svd", compression=1 - KEPT)]
    if network == "resnet50":
        rules.insert(0, tdjax.Rule(path=".*conv2|conv1", method="tucker", compression=1 - KEPT))
    plan = tdjax.make_plan(model, variables, rules, sample)
    moments = None
    if call not in WITHOUT:
        outputs = call != "covariance"
        moments = {entry.layer.path: _moments(entry.layer, outputs) for entry in plan.layers}
    return Case(model, variables, sample, plan, moments)


def _network(name: str) -> tuple[nn.Module, jax.ShapeDtypeStruct]:
    """A network and a batch of its inputs."""
    if name in SHAPES:
        own = SHAPES[name]
        return Block(own), jax.ShapeDtypeStruct((SEQUENCES, TOKENS, own.width), jnp.float32)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    return (VisionTransformer() if name == "vit" else ResNet50()), images


def _weights_like(rng: np.random.Generator, leaf: jax.ShapeDtypeStruct) -> Array:
    rows = max(1, math.prod(leaf.shape[:-1]))
    return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) / math.sqrt(rows))


def _moments(layer: Any, outputs: bool) -> tdjax.LayerMoments:
    *window, channels, columns = layer.kernel_shape
    inputs = _moment(math.prod(window), channels) * 1.0
    gradients = _moment(1, columns) * 1e-4 if outputs else None
    for moment in (inputs, gradients):
        if moment is not None:
            # As those that are collected are.
            trust(moment)
    mean = jnp.zeros((1, len(inputs[0])))
    return tdjax.LayerMoments(inputs, mean, gradients, jnp.asarray(1e6), jnp.asarray(5e3))


@cache
def _moment(window: int, channels: int) -> Float[Array, "1 d d"]:
    """Of rows whose spectrum falls by a factor of 1000, whose neighbours are alike."""
    size = window * channels
    first, second = jax.random.split(jax.random.key(size))
    mix = jax.random.normal(first, (channels, channels))
    mix = mix * jnp.geomspace(1, 1e-3, channels)[:, None]
    fields = jax.random.normal(second, (size + size // 2, window + 2, channels))
    fields = fields[:, :-2] + fields[:, 1:-1] + fields[:, 2:]
    rows = jnp.matmul(fields, mix).reshape(-1, size)
    found = jnp.matmul(rows.T, rows) / len(rows)
    return (found + found.T)[None] / 2
