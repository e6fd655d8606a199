"""A network with budgets to be met, and all combinations of ranks that it may have, in float64."""

from itertools import product

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from plain_models import normal, random_variables

from tdjax.linen import inventory
from tdjax.moments.collect import LayerMoments

X = normal(0, 2, 8, 8, 3)


class Net(nn.Module):
    """Of the kernels with most multiply-adds, the first has few weights, the second many."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), name="wide")(x))
        x = nn.relu(nn.Conv(10, (3, 3), strides=2, name="deep")(x))
        return nn.Dense(6, name="head")(x.mean(axis=(1, 2)))


VARIABLES = random_variables(Net(), X)
MODEL = inventory(Net(), VARIABLES, X)
LAYERS = {layer.path: layer for layer in MODEL.layers}


def moment(seed, size):
    root = np.random.default_rng(seed).standard_normal((1, 3 * size, size))
    return (root.swapaxes(1, 2) @ (root * np.geomspace(1, 0.1, size)) / size).astype(np.float32)


def symmetric(seed, size):
    own = moment(seed, size)
    return (own + own.swapaxes(1, 2)) / 2 + 2 * np.eye(size, dtype=np.float32)


MOMENTS = {
    path: LayerMoments(
        jnp.asarray(symmetric(k, int(np.prod(layer.kernel_shape[:-1])))),
        jnp.zeros((1, int(np.prod(layer.kernel_shape[:-1])))),
        jnp.asarray(symmetric(9 + k, layer.kernel_shape[-1])),
        jnp.asarray(6.0),
        jnp.asarray(2.0),
    )
    for k, (path, layer) in enumerate(LAYERS.items())
}


def matrix(path):
    kernel = np.asarray(VARIABLES["params"][path]["kernel"], np.float64)
    return kernel.reshape(-1, kernel.shape[-1])


def curve(path, strategy):
    """What each rank from 0 on loses, in float64."""
    whole = matrix(path)
    if strategy == "loss":
        left, right = (
            np.linalg.cholesky(np.asarray(own[0], np.float64))
            for own in (MOMENTS[path].inputs, MOMENTS[path].outputs)
        )
        values = np.linalg.svd(left.T @ whole @ right, compute_uv=False) ** 2
        # Half of tr(G E^T S E) for each of three rows an example.
        return 1.5 * np.append(np.cumsum(values[::-1])[::-1], 0)
    values = np.linalg.svd(whole, compute_uv=False)
    if strategy == "alds":
        return np.append(values, 0) / values[0]
    return np.sqrt(np.append(np.cumsum(values[::-1] ** 2)[::-1], 0) / np.sum(values**2))


def choices(strategy):
    """By path, (rank or None for dense, parameters, MACs, what is lost) of all choices."""
    found = {}
    for path, layer in LAYERS.items():
        lost, (rows, columns) = curve(path, strategy), matrix(path).shape
        windows = layer.macs // layer.size
        found[path] = [(None, layer.size, layer.macs, 0.0)] + [
            (rank, rank * (rows + columns), rank * (rows + columns) * windows, lost[rank])
            for rank in range(1, min(rows, columns) + 1)
            if rank * (rows + columns) < layer.size
        ]
    return found


def free(path, entry):
    return True


def combinations(strategy, allowed=free):
    """Ranks, parameters, MACs and errors of all plans, as arrays; ranks of dense layers are 0."""
    own = [
        [entry for entry in entries if allowed(path, entry)]
        for path, entries in choices(strategy).items()
    ]
    every = np.array(
        [[[entry[0] or 0, *entry[1:]] for entry in plan] for plan in product(*own)], float
    )
    together = np.sum if strategy == "loss" else np.max
    return (
        every[..., 0], every[..., 1].sum(axis=1) + MODEL.other, every[..., 2].sum(axis=1),
        together(every[..., 3], axis=1),
    )  # fmt: skip


def ranks_of(plan):
    return tuple(entry.ranks[0] if entry.ranks else 0 for entry in plan.layers)
