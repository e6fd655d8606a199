"""Second moments as layers have them, and least squares in their norms, in NumPy and float64."""

import math

import numpy as np


def patch_moment(channels, window=3, samples=60, size=6, seed=0):
    """E[p p^T] over patches of smoothed random feature maps after a ReLU; mean diagonal 1."""
    rng = np.random.default_rng(seed)
    maps = rng.standard_normal((samples, size, size, channels))
    for axis in (1, 2):
        maps = maps + np.roll(maps, 1, axis) + np.roll(maps, -1, axis)
    maps = np.maximum(maps @ rng.standard_normal((channels, channels)), 0)
    ends = size - window + 1
    patches = np.stack(
        [maps[:, i : i + ends, j : j + ends] for i in range(window) for j in range(window)], axis=3
    ).reshape(-1, window * window * channels)
    moment = patches.T @ patches
    return moment / np.mean(np.diag(moment))


def with_ridge(moment, ridge=1e-6):
    return moment + ridge * np.trace(moment) / len(moment) * np.eye(len(moment))


def kernel(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def matrix(x):
    x = np.asarray(x, np.float64)
    return x.reshape(-1, x.shape[-1])


def weighted_error(x, approximation, s, g=None):
    """Root of tr(G E^T S E) / tr(G X^T S X)."""
    g = np.eye(x.shape[-1]) if g is None else g
    x, e = matrix(x), matrix(x) - matrix(approximation)
    return math.sqrt(np.trace(g @ e.T @ s @ e) / np.trace(g @ x.T @ s @ x))


def multiplied(equation, factors):
    return np.einsum(equation, *factors, optimize=True)


def best_factor(equation, factors, k, x, s, g):
    """Factor k from its normal equations, as a dense system: J^T (S x G) J f = J^T (S x G) x."""
    shape = factors[k].shape
    inputs, output = equation.split("->")
    subscripts = inputs.split(",")
    subscripts[k] += "z"
    units = np.eye(math.prod(shape)).reshape(*shape, -1)
    columns = multiplied(
        f"{','.join(subscripts)}->{output}z", [*factors[:k], units, *factors[k + 1 :]]
    )
    jacobian = columns.reshape(-1, x.shape[-1], units.shape[-1])
    weighed = np.einsum("de,etz,tu->duz", s, jacobian, g, optimize=True)
    left = weighed.reshape(-1, units.shape[-1])
    normal = left.T @ jacobian.reshape(left.shape)
    # Scales within a factor are free, which leaves the equations singular to rounding.
    normal += 1e-13 * np.trace(normal) * np.eye(len(normal))
    return np.linalg.solve(normal, left.T @ matrix(x).ravel()).reshape(shape)


def alternate(equation, factors, order, x, s, g=None, sweeps=100):
    """Sweeps of exact solves, factor after factor; the relative error after each."""
    g = np.eye(x.shape[-1]) if g is None else g
    factors = [np.asarray(f, np.float64) for f in factors]
    errors = []
    for _ in range(sweeps):
        for k in order:
            factors[k] = best_factor(equation, factors, k, x, s, g)
        errors.append(weighted_error(x, multiplied(equation, factors), s, g))
    return factors, errors
