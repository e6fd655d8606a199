"""CP-ALS, HOOI and TT-SVD against TensorLy: `python -m benchmarks.decompositions`.

Both sides get the same tensor, ranks, start and number of sweeps. Every backend of TensorLy that is
installed is tried for two sweeps; the fastest is then timed in turns with tdjax. Where its sweeps
are slow, both sides make fewer of them, as the column `sweeps` says. Errors are computed from the
difference itself, in float64.
"""

import importlib.util
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorly
from absl import app, flags
from tensorly.cp_tensor import CPTensor
from tensorly.decomposition import parafac, partial_tucker, tensor_train

import tdjax
from benchmarks.timing import QUIET, describe_machine, interleaved, matmul_rate, ratio
from tdjax.decompose.formats import CP
from tdjax.decompose.normal_equations import CG_STEPS, EXACT_UP_TO, EXACT_UP_TO_BELOW_MODE
from tdjax.plan.ranks import ranks_for, tt_order

CHANNELS = flags.DEFINE_list("channels", ["64", "128", "256", "512"], "Channels of the kernels.")
KEEP = flags.DEFINE_list("keep", ["0.1", "0.5", "0.9"], "Shares of the parameters kept.")
METHODS = flags.DEFINE_list("methods", ["cp", "tucker", "tt"], "Of cp, tucker, tt.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "An npz of kernels (T, C, kh, kw) to add.")
SWEEPS = flags.DEFINE_integer("sweeps", 100, "Sweeps of CP-ALS.")
HOOI_SWEEPS = flags.DEFINE_integer("hooi_sweeps", 10, "Sweeps of HOOI.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed rounds.")
BUDGET = flags.DEFINE_float("budget", 50.0, "Seconds that one run of TensorLy may take.")

BACKENDS = {"numpy": "numpy", "pytorch": "torch", "jax": "jax"}

Run = Callable[[int], Any]


def kernels() -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays (kh, kw, C, T): random ones, then those of a trained network."""
    for channels in map(int, CHANNELS.value):
        rng = np.random.default_rng(channels)
        yield f"random {channels}", rng.standard_normal((3, 3, channels, channels), np.float32)
    if CHECKPOINT.value:
        with np.load(CHECKPOINT.value) as arrays:
            convs = {k: arrays[k] for k in arrays.files if arrays[k].ndim == 4}
        # The last of each shape: one trained kernel for each width.
        for name, kernel in {array.shape: (k, array) for k, array in convs.items()}.values():
            if min(kernel.shape[:2]) >= 16:
                yield name, np.ascontiguousarray(kernel.transpose(2, 3, 1, 0))


def both_sides(method: str, x: np.ndarray, ranks: tuple[int, ...], backend: str) -> tuple[Run, Run]:
    """Functions of a number of sweeps: tdjax, TensorLy. Each gives the dense approximation."""
    if method == "tt":
        x = np.ascontiguousarray(np.moveaxis(x, 2, 0))
    start = [
        np.random.default_rng(k).random((n, ranks[0]), np.float32) for k, n in enumerate(x.shape)
    ]
    ours_x = jnp.asarray(x)
    ours_start = CP(tuple(map(jnp.asarray, start)))

    def ours(sweeps: int) -> Any:
        if method == "cp":
            init = ours_start
            return tdjax.cp_als(ours_x, ranks[0], init=init, max_iters=sweeps, tol=0.0)[0]
        if method == "tucker":
            return tdjax.tucker_als(ours_x, (None, None, *ranks), max_iters=sweeps, tol=0.0)[0]
        return tdjax.tt_svd(ours_x, ranks)

    use(backend)
    theirs_x = tensorly.tensor(x)
    weights = tensorly.tensor(np.ones(ranks[0], np.float32))

    def theirs(sweeps: int) -> Any:
        use(backend)
        if method == "cp":
            init = CPTensor((weights, [tensorly.tensor(factor) for factor in start]))
            return parafac(theirs_x, ranks[0], n_iter_max=sweeps, init=init, tol=0)
        if method == "tucker":
            return partial_tucker(
                theirs_x, list(ranks), modes=[2, 3], n_iter_max=sweeps, init="svd", tol=0
            )[0]
        return tensor_train(theirs_x, [1, *ranks, 1])

    return ours, theirs


def relative_error(method: str, x: np.ndarray, result: Any, backend: str | None) -> float:
    """norm(x - approximation) / norm(x) in float64; `backend` None for a tdjax format."""
    if backend is None:
        arrays = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(result)]
    else:
        use(backend)
        core = result[0] if method != "tt" else None
        factors = list(result[1]) if method != "tt" else list(result)
        arrays = [tensorly.to_numpy(a).astype(np.float64) for a in factors]
        if method == "cp":
            arrays[0] = arrays[0] * tensorly.to_numpy(core).astype(np.float64)
        if method == "tucker":
            arrays = [tensorly.to_numpy(core).astype(np.float64), *arrays]
    equation = {
        "cp": "ar,br,cr,dr->abcd",
        "tucker": "abrs,cr,ds->abcd",
        "tt": "oap,pbq,qcr,rdt->abcd",
    }[method]
    dense = np.einsum(equation, *arrays, optimize=True)
    x = np.moveaxis(x, 2, 0) if method == "tt" else x
    return float(np.linalg.norm(dense - x) / np.linalg.norm(x))


def operations(method: str, shape: tuple[int, ...], ranks: tuple[int, ...], sweeps: int) -> float:
    """Floating-point operations that tdjax makes, an eigendecomposition counted as 9 n^3.

    CP: two products with the whole tensor a sweep, and for each mode Gram matrices and either a
    Cholesky solve or conjugate gradient steps. HOOI: for each channel mode one contraction, a Gram
    matrix, its eigenvectors, the core. TT: for each truncated unfolding the same without sweeps.
    """
    n, (kh, kw, c, t) = math.prod(shape), shape
    if method == "cp":
        (r,) = ranks
        if r > (EXACT_UP_TO if r > max(shape) else EXACT_UP_TO_BELOW_MODE):
            solve = 2.0 * (CG_STEPS + 1) * r * r * sum(shape)
        else:
            solve = 4 * r**3 / 3 + 6 * r * r * sum(shape)
        return sweeps * (4 * n * r + 4 * r * r * sum(shape) + solve)
    if method == "tucker":
        a, b = ranks
        k = kh * kw
        per_sweep = sum(
            2 * n * other + 2 * size * size * k * other + 9 * size**3 + 2 * k * size * own * other
            for size, own, other in ((c, a, b), (t, b, a))
        )
        start = 2 * c * n + 9 * c**3 + 2 * a * n + 2 * t * t * k * a + 9 * t**3
        return sweeps * per_sweep + start
    total, dims, previous = 0.0, tt_order(shape), 1
    for k, rank in enumerate(ranks):
        rows, columns = previous * dims[k], math.prod(dims[k + 1 :])
        short = min(rows, columns)
        if rank < short:
            total += 2 * short * rows * columns + 9 * short**3
        total += 2 * rank * rows * columns
        previous = rank
    return total


def _seconds(run: Run, sweeps: int) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run(sweeps))
    return time.perf_counter() - start


def use(backend: str) -> None:
    """Switch TensorLy's backend; its jax backend turns on float64 for the process, undone here."""
    tensorly.set_backend(backend)
    jax.config.update("jax_enable_x64", False)


def compare(
    name: str, x: np.ndarray, method: str, keep: float, backends: list[str], rate: float
) -> None:
    """Print one row."""
    ranks = ranks_for(method, x.shape, keep)
    wanted = {"cp": SWEEPS.value, "tucker": HOOI_SWEEPS.value, "tt": 1}[method]
    probe = min(2, wanted)
    trials = {}
    for backend in backends:
        theirs = both_sides(method, x, ranks, backend)[1]
        theirs(1)
        trials[backend] = min(_seconds(theirs, probe) for _ in range(3)) / probe
    fastest = min(trials, key=lambda backend: trials[backend])
    sweeps = max(1, min(wanted, int(BUDGET.value / trials[fastest])))
    rounds = ROUNDS.value if sweeps * trials[fastest] < 10 else min(2, ROUNDS.value)

    ours, theirs = both_sides(method, x, ranks, fastest)
    errors = (
        relative_error(method, x, ours(sweeps), None),
        relative_error(method, x, theirs(sweeps), fastest),
    )
    fast, slow = interleaved([lambda: ours(sweeps), lambda: theirs(sweeps)], rounds, QUIET)
    share = operations(method, x.shape, ranks, sweeps) / fast.median / rate
    others = ", ".join(f"{b} {s:.3g}" for b, s in trials.items())
    print(
        f"| {name} | {method} | {keep:.0%} | {', '.join(map(str, ranks))} | {sweeps} | {fast} | "
        f"{errors[0]:.4f} | {fastest} {slow} | {errors[1]:.4f} | **{ratio(slow, fast)}** | "
        f"{share:.0%} | {others} |",
        flush=True,
    )


def main(_: list[str]) -> None:
    """Print the table, in Markdown."""
    backends = [name for name, module in BACKENDS.items() if importlib.util.find_spec(module)]
    rate = matmul_rate()
    print(describe_machine())
    print(f"float32 matrix product: {rate / 1e9:.0f} GFLOP/s; median [least, most] of the rounds")
    print(
        f"TensorLy backends: {', '.join(backends)}; not installed: "
        f"{', '.join(set(BACKENDS) - set(backends)) or 'none'}\n"
    )
    print(
        "| kernel | method | keep | ranks | sweeps | tdjax s | error | TensorLy s | error | "
        "ratio | of matmul rate | TensorLy s a sweep |"
    )
    print("|---|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---|")
    for name, x in kernels():
        for method in METHODS.value:
            for keep in map(float, KEEP.value):
                compare(name, x, method, keep, backends, rate)


if __name__ == "__main__":
    app.run(main)
