"""Large networks decomposed at once: `python -m benchmarks.large`.

ViT-B/16 and ResNet-50, a block of GPT-2's smallest and one of Llama's shape with a billion
parameters, all with random weights, half of whose parameters are kept: low rank, and Tucker for
windows. Moments are made up, of spectra that fall by a factor of a million; "moments" collects
those of a block and of the gradient of `"outputs"`, over 4,096 random tokens. Each call is made
twice in a process of its own. The floor is what the operations of one layer after the other take at
the rate of a large matrix product: Gram matrices, products with moments, an eigendecomposition
counted as 9 n^3, of Tucker one sweep; of moments, sums, and two passes through the matrices. The
peak is the most memory that parameters, moments and the calls held, and that over what parameters
and moments take. The last column is the error of some low-rank layers in the norm asked for, over
the least that there is, by float64.
"""

import ctypes
import math
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

import tdjax
from benchmarks.large_cases import KEPT, SHAPES, Case, bytes_of, case_of
from benchmarks.scale_needs import matrices_of, summing
from benchmarks.timing import describe_machine, matmul_rate

NORMS, STRATEGIES = ("frobenius", "covariance", "kronecker"), ("energy", "loss")
CALLS = {
    "vit": (*NORMS, *STRATEGIES),
    "resnet50": NORMS,
    **dict.fromkeys(SHAPES, ("moments", *NORMS, *STRATEGIES)),
}
NETWORKS = flags.DEFINE_list("networks", list(CALLS), "Of those.")
ASKED = flags.DEFINE_list(
    "calls", None, "Norms of factorize_params, strategies of allocate, and moments."
)
ALONE = flags.DEFINE_string("alone", None, "One of those, made in this process, for a row alone.")
CHECKED = flags.DEFINE_integer("checked", 3, "Layers whose errors are checked, of unlike shapes.")
RATE = flags.DEFINE_float("rate", None, "Of a matrix product, if it is known.")

# That moments are collected from.
BATCHES = 4
RIDGE = 1e-6
MEGABYTE = 1e6


def called(case: Case, call: str) -> Callable[[], Any]:
    """What is timed."""
    params, moments = case.variables["params"], case.moments
    if call == "moments":
        batches = [
            jax.random.normal(key, case.sample.shape)
            for key in jax.random.split(jax.random.key(0), BATCHES)
        ]
        return partial(
            tdjax.collect_moments, case.model, case.variables, batches, loss_fn="outputs"
        )
    if call in STRATEGIES:
        return partial(
            tdjax.allocate, case.model, case.variables, case.sample, budget=KEPT, strategy=call,
            methods=("svd", "tucker"), moments=moments,
        )  # fmt: skip
    norm = None if call == "frobenius" else call
    return partial(tdjax.factorize_params, params, case.plan, norm=norm, moments=moments)


def operations(case: Case, call: str) -> float:
    """Floating-point operations, by the formulas above."""
    if call == "moments":
        matrices, tokens = matrices_of(case.plan), BATCHES * math.prod(case.sample.shape[:-1])
        passes = 4 * sum(one.size for one in matrices)
        return tokens * (passes + summing(matrices, gradients=True))
    return sum(_operations(entry, call) for entry in case.plan.factorised)


def _operations(entry: Any, call: str) -> float:
    *front, columns = entry.layer.kernel_shape
    rows, allocating = math.prod(front), call in STRATEGIES
    n, m = sorted((rows, columns))
    two_sided, any_norm = call in ("kronecker", "loss"), call not in ("frobenius", "energy")
    turned = (2 * rows * columns**2 + n**3 / 3) * two_sided + 2 * rows**2 * columns * any_norm
    if entry.method == "svd":
        rank = max(entry.ranks)
        rest = 4 * n**3 / 3 if allocating else 9 * n**3 + 2 * (m + n * any_norm) * n * rank
        return m * n * n + turned + rest
    (a, b), c = entry.ranks, front[-1]
    window = rows // c
    small = 2 * rows * rows * a if any_norm else 2 * rows * columns * (a + b)
    core = 2 * (window * a) ** 2 * (c if any_norm else 0) + 2 * rows * a * columns
    return turned + small + core + 9.0 * (c**3 + columns**3)


def lost(case: Case, factors: Any, call: str) -> Iterator[float]:
    """The errors of some low-rank layers over the least that there are, in float64."""
    seen: set[Any] = set()
    for entry in case.plan.factorised:
        shape = entry.layer.kernel_shape
        if entry.method != "svd" or shape in seen or len(seen) == CHECKED.value:
            continue
        seen.add(shape)
        kernel = _of_layer(case.variables["params"], entry)["kernel"]
        first, second = (
            np.asarray(_of_layer(factors, entry)[stage.name]["kernel"], np.float64)
            for stage in entry.stages
        )
        x = np.asarray(kernel, np.float64).reshape(-1, shape[-1])
        rest = x - first.reshape(len(x), -1) @ second.reshape(-1, shape[-1])
        weights = _weights(case, entry, call)
        (rank,) = entry.ranks
        least = np.linalg.eigvalsh(_gram(x, *weights))[::-1][rank:].sum()
        yield math.sqrt(np.trace(_gram(rest, *weights)) / least)


def _weights(case: Case, entry: Any, call: str) -> list[np.ndarray | None]:
    if case.moments is None:
        return [None, None]
    own = case.moments[entry.layer.path]
    found = [own.inputs, own.outputs if call == "kronecker" else None]
    return [None if moment is None else _ridged(np.asarray(moment[0], float)) for moment in found]


def _ridged(moment: np.ndarray) -> np.ndarray:
    return moment + RIDGE * np.trace(moment) / len(moment) * np.eye(len(moment))


def _gram(x: np.ndarray, inputs: np.ndarray | None, outputs: np.ndarray | None) -> np.ndarray:
    """Whose eigenvalues are the squared singular values in the norm."""
    right = x if outputs is None else x @ np.linalg.cholesky(outputs)
    if len(right) < right.shape[1]:
        root = np.eye(len(right)) if inputs is None else np.linalg.cholesky(inputs)
        return root.T @ (right @ right.T) @ root
    return right.T @ (right if inputs is None else inputs @ right)


def _of_layer(params: Any, entry: Any) -> Any:
    for name in entry.layer.path.split("/"):
        params = params[name]
    return params


def row(network: str, call: str, rate: float) -> str:
    """One row of the table."""
    case = case_of(network, call)
    run, seconds, found = called(case, call), [], None
    # What is still being made, or was left to the allocator by it, is not the calls'.
    jax.block_until_ready((case.variables, case.moments))
    ctypes.CDLL(None).malloc_trim(0)
    before = _memory("VmRSS")
    # The peak is counted from here on.
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(2):
        # Of one call alone.
        del found
        wall, used = time.perf_counter(), time.process_time()
        found = jax.block_until_ready(run())
        seconds += [time.perf_counter() - wall, time.process_time() - used]
    peak, size = _memory("VmHWM") - before + case.size, case.size
    if call == "moments":
        size += bytes_of(found)
    first, _, second, used = seconds
    floor = operations(case, call) / rate
    ratios = list(lost(case, found, call)) if call in NORMS else []
    return (
        f"| {network} | {call} | {first:.2f} | {second:.2f} | {used:.2f} | {floor:.2f} | "
        f"{peak / MEGABYTE:.0f} | {peak / size:.2f} | "
        f"{', '.join(f'{own:.6f}' for own in ratios)} |"
    )


def _memory(name: str) -> float:
    """Bytes of this process, by their name in Linux's table."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def main(_: list[str]) -> None:
    """Print the table, in Markdown."""
    warnings.filterwarnings("ignore", message="too few rows")
    rate = RATE.value or matmul_rate()
    if ALONE.value:
        print(row(NETWORKS.value[0], ALONE.value, rate), flush=True)
        return
    print(describe_machine())
    print(f"float32 matrix product: {rate / 1e9:.0f} GFLOP/s\n")
    print(
        "| network | call | first s | second s | its processor s | floor s | peak MB | "
        "over parameters and moments | errors over the least |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---|", flush=True)
    for network in NETWORKS.value:
        for call in ASKED.value or CALLS[network]:
            asked = [f"--networks={network}", f"--alone={call}", f"--rate={rate}"]
            subprocess.run([sys.executable, "-m", "benchmarks.large", *asked], check=True)


if __name__ == "__main__":
    app.run(main)
