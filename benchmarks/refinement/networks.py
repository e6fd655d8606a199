"""The networks that are compressed, of which two are trained here, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.refinement.descent import Course, descended
from benchmarks.refinement.transformer import VisionTransformer
from benchmarks.transformers.training import save
from experiments.models import VGG16, ResNet20
from experiments.network.weights import load_weights

IMAGE = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

# Of about as many parameters each; the VGG has an eighth of the published width.
MODELS: dict[str, nn.Module] = {
    "resnet20": ResNet20(),
    "vgg16": VGG16(width=8),
    "vit": VisionTransformer(),
}
# AdamW, its gradients clipped.
ADAMW = optax.chain(
    optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.add_decayed_weights(0.05)
)
# Of the networks that nobody trained. Short: how far they come is not what is measured.
COURSES = {
    "vgg16": Course(ADAMW, epochs=8, rate=3e-3, batch=128, train=True),
    "vit": Course(ADAMW, epochs=6, rate=2e-3, batch=128, train=True),
}


def network_of(
    name: str, weights: str | None, folder: str | None, images: np.ndarray, labels: np.ndarray
) -> tuple[nn.Module, Any]:
    """A model and its variables.

    Arguments:
        weights: file that they are read from; None for one of `folder`, where there is none yet
            after training.
        images, labels: for training.

    Raises ValueError where none of both is given that would do.
    """
    model = MODELS[name]
    if weights is None and name not in COURSES:
        raise ValueError(f"--network={name} is not trained here: name its --weights")
    if weights is None and folder is None:
        raise ValueError(f"--network={name} needs --weights, or --trained for a folder of them")
    path = Path(weights) if weights is not None else Path(str(folder), f"{name}.npz")
    if weights is None and not path.exists():
        start = jax.jit(model.init)(jax.random.key(0), jnp.zeros(IMAGE.shape))
        save(path, descended(f"training {name}", model, COURSES[name], start, images, labels))
    return model, load_weights(path, jax.eval_shape(model.init, jax.random.key(0), IMAGE))
