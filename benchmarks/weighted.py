"""Tucker in the norm of a layer's inputs against exact solves: `python -m benchmarks.weighted`.

The other side is alternating least squares as published (Kalle et al., NeurIPS 2025), in NumPy and
float64: input factor, then core and output factor, each from its normal equations, dense. Both
sides get the same kernel, moment, ranks and number of sweeps. Where the dense system of the input
factor would not fit a budget of time, the other side makes fewer sweeps, its seconds are scaled up
to the same number, and its error is that of the sweeps it made: the column `sweeps` tells. Errors
are in the norm of the moment, computed from the difference itself, in float64.
"""

import time
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import app, flags

import tdjax
from benchmarks.timing import Timing, describe_machine, interleaved, ratio
from tdjax.plan.ranks import ranks_for

CHANNELS = flags.DEFINE_list("channels", ["64", "128", "256"], "Channels of the kernels.")
KEEP = flags.DEFINE_list("keep", ["0.25", "0.5"], "Shares of the parameters kept.")
SWEEPS = flags.DEFINE_integer("sweeps", 100, "Sweeps.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed rounds.")
BUDGET = flags.DEFINE_float("budget", 30.0, "Seconds that one run of the exact solves may take.")
UNKNOWNS = flags.DEFINE_integer("unknowns", 8192, "Of an input factor that is solved for exactly.")

WINDOW = 3


def patch_moment(channels: int, size: int = 8, seed: int = 0) -> np.ndarray:
    """Mean of p p^T over the 3 x 3 patches of smoothed random feature maps after a ReLU.

    The channels are mixed with spectra that fall by a factor of 20, so that they and neighbouring
    positions correlate as those of trained networks do. At least 2 D patches; (D, D), float64.
    """
    rng = np.random.default_rng(seed)
    rows = channels * WINDOW**2
    mix = rng.standard_normal((channels, channels)) * np.geomspace(1, 0.05, channels)[:, None]
    offset = 0.1 * rng.standard_normal(channels) * np.sqrt(channels)
    moment, seen = np.zeros((rows, rows)), 0
    ends = size - WINDOW + 1
    while seen < 2 * rows:
        maps = rng.standard_normal((16, size, size, channels))
        for axis in (1, 2):
            maps = (maps + np.roll(maps, 1, axis) + np.roll(maps, -1, axis)) / 3
        maps = maps @ mix + offset
        maps = np.maximum(maps / maps.std(), 0)
        patches = np.stack(
            [maps[:, i : i + ends, j : j + ends] for i in range(WINDOW) for j in range(WINDOW)],
            axis=3,
        ).reshape(-1, rows)
        moment += patches.T @ patches
        seen += len(patches)
    moment /= np.mean(np.diag(moment))
    return moment + 1e-6 * np.eye(rows)


def exact(x: np.ndarray, moment: np.ndarray, ranks: tuple[int, ...], sweeps: int) -> np.ndarray:
    """The approximation after so many sweeps of exact solves."""
    kh, kw, c, t = x.shape
    k, (r, _) = kh * kw, ranks
    folded = x.astype(np.float64).reshape(k, c, t)
    product = moment @ folded.reshape(k * c, t)
    blocks = moment.reshape(k, c, k, c)
    root = np.linalg.cholesky(np.einsum("kckd->cd", blocks) / k)
    basis = np.linalg.svd(root.T @ folded.transpose(1, 0, 2).reshape(c, -1), full_matrices=False)[0]
    factor = np.linalg.qr(np.linalg.solve(root.T, basis[:, :r]))[0]
    by_window = blocks.transpose(0, 2, 1, 3).reshape(k * k, c * c)

    def rest(factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        half = np.matmul(moment.reshape(k * c * k, c), factor).reshape(k, c, k * r)
        small = np.matmul(factor.T, half).reshape(k * r, k * r)
        right = np.matmul(factor.T, product.reshape(k, c, t)).reshape(k * r, t)
        lower = np.linalg.cholesky((small + small.T) / 2)
        output = np.linalg.svd(np.linalg.solve(lower, right), full_matrices=False)[2][: ranks[1]].T
        return np.linalg.solve(small, right @ output).reshape(k, r, -1), output

    core, output = rest(factor)
    for _ in range(sweeps):
        gram = (flat := core.reshape(k * r, -1)) @ flat.T
        gram = gram.reshape(k, r, k, r).transpose(0, 2, 1, 3).reshape(k * k, r * r)
        normal = (by_window.T @ gram).reshape(c, c, r, r).transpose(0, 2, 1, 3)
        right = np.einsum(
            "kcm,kam->ca", (product @ output).reshape(k, c, -1), core, optimize=True
        ).ravel()
        solved = np.linalg.solve(normal.reshape(c * r, c * r), right).reshape(c, r)
        factor = np.linalg.qr(solved)[0]
        core, output = rest(factor)
    return (np.matmul(factor, core).reshape(k * c, -1) @ output.T).reshape(x.shape)


def relative_error(x: np.ndarray, approximation: Any, moment: np.ndarray) -> float:
    """In the norm of the moment, float64."""
    whole = x.astype(np.float64).reshape(len(moment), -1)
    rest = whole - np.asarray(approximation, np.float64).reshape(whole.shape)
    return float(np.sqrt(np.sum(rest * (moment @ rest)) / np.sum(whole * (moment @ whole))))


def compare(channels: int, keep: float, moment: np.ndarray) -> None:
    """Print one row."""
    shape = (WINDOW, WINDOW, channels, channels)
    x = np.random.default_rng(channels).standard_normal(shape, np.float32)
    ranks = ranks_for("tucker", shape, keep)
    array = jnp.asarray(x)
    norm = tdjax.Covariance(jnp.asarray(moment, jnp.float32), ridge=0.0)

    def ours() -> Any:
        full = (None, None, *ranks)
        return tdjax.tucker_als(array, full, max_iters=SWEEPS.value, tol=0.0, norm=norm)

    tucker, info = ours()
    head = (
        f"| {channels} | {keep:.0%} | {ranks[0]}, {ranks[1]} | {int(info.iterations)} |"
        f" {relative_error(x, tucker.to_tensor(), moment):.5f} |"
    )
    unknowns = channels * ranks[0]
    if unknowns > UNKNOWNS.value:
        (fast,) = interleaved([ours], ROUNDS.value)
        print(
            f"{head} {fast} | 0 | {relative_error(x, exact(x, moment, ranks, 0), moment):.5f} |"
            f" a system of {unknowns} unknowns | |",
            flush=True,
        )
        return
    start = time.perf_counter()
    exact(x, moment, ranks, 1)
    sweeps = max(1, min(SWEEPS.value, int(BUDGET.value / (time.perf_counter() - start))))
    error = relative_error(x, exact(x, moment, ranks, sweeps), moment)
    fast, slow = interleaved([ours, lambda: exact(x, moment, ranks, sweeps)], ROUNDS.value)
    slow = Timing(tuple(s * SWEEPS.value / sweeps for s in slow.seconds))
    print(
        f"{head} {fast} | {sweeps} | {error:.5f} | {slow} | **{ratio(slow, fast)}** |", flush=True
    )


def main(_: list[str]) -> None:
    """Print the table, in Markdown."""
    print(describe_machine())
    print("seconds: median [least, most] of the rounds\n")
    print(
        "| channels | keep | ranks | sweeps | error | tdjax s | exact sweeps | error | "
        f"exact s for {SWEEPS.value} sweeps | ratio |"
    )
    print("|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|")
    for channels in map(int, CHANNELS.value):
        moment = patch_moment(channels)
        for keep in map(float, KEEP.value):
            compare(channels, keep, moment)


if __name__ == "__main__":
    app.run(main)
