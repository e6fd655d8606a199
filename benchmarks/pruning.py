"""Adaptive backward pruning by LASSO of an MLP: `python -m benchmarks.pruning [--mnist=FOLDER]`.

The whole network 784-300-100-10, its moments apart; then the LASSO of its first layer alone, all
300 neurons, beside scikit-learn's coordinate descent on the same rows and neurons. Objectives are
the mean over neurons of E (y - x^T w)^2 + penalty |w|_1, computed from the rows in float64. Without
a folder with MNIST's published files inputs are smoothed noise, clipped at zero.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from scipy import ndimage
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso

import tdjax
from benchmarks.timing import describe_machine, interleaved, ratio
from experiments.data import load
from experiments.models import MLP
from tdjax.pruning.lasso import lasso

MNIST = flags.DEFINE_string("mnist", None, "Folder with the published files.")
IMAGES = flags.DEFINE_integer("images", 5000, "Rows.")
PENALTIES = flags.DEFINE_list("penalties", ["1e-3", "1e-4", "1e-5"], "Of the LASSO.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed rounds.")


def images(count: int) -> np.ndarray:
    """Inputs from 0 to 1, (count, 784), float32."""
    if MNIST.value is not None:
        raw = load("mnist", MNIST.value)
        return np.asarray(raw.train_images[:count], np.float32).reshape(count, -1) / 255
    noise = np.random.default_rng(0).standard_normal((count, 28, 28))
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2))
    return np.maximum(smooth / smooth.std(), 0).astype(np.float32).reshape(count, -1)


def objective(x: np.ndarray, y: np.ndarray, w: Any, penalty: float) -> float:
    """The objective of the LASSO, mean over neurons."""
    w = np.asarray(w, np.float64)
    return float(np.mean(np.mean((y - x @ w) ** 2, axis=0) + penalty * np.abs(w).sum(axis=0)))


def main(_: list[str]) -> None:
    """Print both tables, in Markdown."""
    x = images(IMAGES.value)
    model = MLP(10, (300, 100))
    variables = model.init(jax.random.key(0), x[:1])
    params = variables["params"]
    moments = tdjax.collect_moments(model, variables, np.split(x, 10))
    print(describe_machine())
    print(f"{len(x)} rows; seconds: median [least, most] of {ROUNDS.value} rounds\n")
    print("| penalty | whole network s | weights left | converged |")
    print("|---:|---:|---:|---|")
    for penalty in map(float, PENALTIES.value):

        def whole(penalty: float = penalty) -> Any:
            return tdjax.lasso_prune(params, moments, penalty).params

        pruned = tdjax.lasso_prune(params, moments, penalty)
        (timing,) = interleaved([whole], ROUNDS.value)
        left = 1 - tdjax.pruned_share(params, pruned.mask)
        print(f"| {penalty:g} | {timing} | {left:.1%} | {all(pruned.converged.values())} |")

    kernel = np.asarray(params["hidden1"]["kernel"], np.float64)
    rows = x.astype(np.float64)
    y = rows @ kernel
    gram, cross = rows.T @ rows / len(rows), rows.T @ y / len(rows)
    ours_gram, ours_cross = jnp.asarray(gram, jnp.float32), jnp.asarray(cross, jnp.float32)
    start = jnp.asarray(kernel, jnp.float32)
    # That coordinate descent ends before its tolerance is met shows in the objective.
    warnings.simplefilter("ignore", ConvergenceWarning)
    print("\n| penalty | tdjax s | objective | scikit-learn s | objective | ratio |")
    print("|---:|---:|---:|---:|---:|---:|")
    for penalty in map(float, PENALTIES.value):
        other = Lasso(alpha=penalty / 2, fit_intercept=False, precompute=True)

        def ours(penalty: float = penalty) -> Any:
            return lasso(ours_gram, ours_cross, penalty, start=start)[0]

        def theirs(other: Lasso = other) -> Any:
            return other.fit(rows, y).coef_.T

        fast, slow = interleaved([ours, theirs], ROUNDS.value)
        losses = [objective(rows, y, found, penalty) for found in (ours(), theirs())]
        print(
            f"| {penalty:g} | {fast} | {losses[0]:.6f} | {slow} | {losses[1]:.6f} | "
            f"**{ratio(slow, fast)}** |",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
