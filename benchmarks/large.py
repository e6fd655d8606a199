"""Large networks decomposed at once: `python -m benchmarks.large`.

ViT-B/16 and ResNet-50 with random weights, half of whose parameters are kept: low rank, and Tucker
for windows. Moments are made up, of spectra that fall by a factor of a million. Each call is made
twice in a process of its own. The floor is what the operations of one layer after the other take
at the rate of a large matrix product: Gram matrices, products with moments, an eigendecomposition
counted as 9 n^3, and of Tucker one sweep. The peak is the most memory that parameters, moments and
the calls held, and that over what parameters and moments take. The last column is the error of some
low-rank layers in the norm asked for, over the least that there is, by float64.
"""

import math
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jaxtyping import Array, Float

import tdjax
from benchmarks.timing import describe_machine, matmul_rate
from experiments.models import ResNet50
from tdjax.decompose.second_moment import trust
from tdjax.moments.collect import LayerMoments

CALLS = {
    "vit": ("frobenius", "covariance", "kronecker", "energy", "loss"),
    "resnet50": ("frobenius", "covariance", "kronecker"),
}
NETWORKS = flags.DEFINE_list("networks", list(CALLS), "Of vit, resnet50.")
ASKED = flags.DEFINE_list("calls", None, "Norms of factorize_params, strategies of allocate.")
ALONE = flags.DEFINE_string("alone", None, "One of those, made in this process, for a row alone.")
CHECKED = flags.DEFINE_integer("checked", 3, "Layers whose errors are checked, of unlike shapes.")
RATE = flags.DEFINE_float("rate", None, "Of a matrix product, if it is known.")

KEPT = 0.5
RIDGE = 1e-6
MEGABYTE = 1e6


class EncoderBlock(nn.Module):
    """A block of a vision transformer, its attention by four matrices."""

    heads: int = 12

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Tokens to tokens."""
        width = x.shape[-1]
        y = nn.LayerNorm(name="ln1")(x)
        heads = (*y.shape[:-1], self.heads, width // self.heads)
        query, key, value = (
            nn.Dense(width, name=name)(y).reshape(heads) for name in ("query", "key", "value")
        )
        y = nn.dot_product_attention(query, key, value).reshape(x.shape)
        x = x + nn.Dense(width, name="out")(y)
        y = nn.Dense(4 * width, name="mlp1")(nn.LayerNorm(name="ln2")(x))
        return x + nn.Dense(width, name="mlp2")(nn.gelu(y))


class VisionTransformer(nn.Module):
    """ViT-B/16 without its classifier."""

    blocks: int = 12
    width: int = 768

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        """Images to features."""
        x = nn.Conv(self.width, (16, 16), (16, 16), name="patches")(x)
        x = x.reshape(len(x), -1, self.width)
        for block in range(self.blocks):
            x = EncoderBlock(name=f"block{block}")(x)
        return x.mean(axis=1)


class Case(NamedTuple):
    """A network and what it is decomposed with."""

    model: nn.Module
    variables: Mapping[str, Any]
    sample: Array
    plan: tdjax.Plan
    moments: Mapping[str, LayerMoments] | None

    @property
    def size(self) -> float:
        """Bytes of parameters and moments."""
        leaves = jax.tree.leaves((self.variables, self.moments))
        return float(sum(leaf.nbytes for leaf in leaves))


def case_of(network: str, call: str) -> Case:
    """The network with the moments that the call needs."""
    model = VisionTransformer() if network == "vit" else ResNet50()
    sample = jnp.zeros((1, 224, 224, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), sample)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(partial(_weights_like, rng), shapes)
    rules = [
        tdjax.Rule(path=r".*conv2|conv1", method="tucker", compression=1 - KEPT),
        tdjax.Rule(path=".*", method="svd", compression=1 - KEPT),
    ]
    plan = tdjax.make_plan(model, variables, rules[network == "vit" :], sample)
    moments = None
    if call not in ("frobenius", "energy"):
        outputs = call != "covariance"
        moments = {entry.layer.path: _moments(entry.layer, outputs) for entry in plan.layers}
    return Case(model, variables, sample, plan, moments)


def _weights_like(rng: np.random.Generator, leaf: jax.ShapeDtypeStruct) -> Array:
    rows = max(1, math.prod(leaf.shape[:-1]))
    return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) / math.sqrt(rows))


def _moments(layer: Any, outputs: bool) -> LayerMoments:
    *window, channels, columns = layer.kernel_shape
    inputs = _moment(math.prod(window), channels) * 1.0
    gradients = _moment(1, columns) * 1e-4 if outputs else None
    for moment in (inputs, gradients):
        if moment is not None:
            # As those that are collected are.
            trust(moment)
    mean = jnp.zeros((1, len(inputs[0])))
    return LayerMoments(inputs, mean, gradients, jnp.asarray(1e6), jnp.asarray(5e3))


@cache
def _moment(window: int, channels: int) -> Float[Array, "1 d d"]:
    """Of rows whose spectrum falls by a factor of 1000, whose neighbours are alike."""
    size = window * channels
    first, second = jax.random.split(jax.random.key(size))
    mix = jax.random.normal(first, (channels, channels))
    mix = mix * jnp.geomspace(1, 1e-3, channels)[:, None]
    fields = jax.random.normal(second, (size + size // 2, window + 2, channels))
    rows = jnp.matmul(fields[:, :-2] + fields[:, 1:-1] + fields[:, 2:], mix).reshape(-1, size)
    found = jnp.matmul(rows.T, rows) / len(rows)
    return (found + found.T)[None] / 2


def called(case: Case, call: str) -> Callable[[], Any]:
    """What is timed."""
    params, moments = case.variables["params"], case.moments
    if call in ("energy", "loss"):
        return partial(
            tdjax.allocate, case.model, case.variables, case.sample, budget=KEPT, strategy=call,
            methods=("svd", "tucker"), moments=moments,
        )  # fmt: skip
    norm = None if call == "frobenius" else call
    return partial(tdjax.factorize_params, params, case.plan, norm=norm, moments=moments)


def operations(case: Case, call: str) -> float:
    """Floating-point operations, by the formulas above."""
    return sum(_operations(entry, call) for entry in case.plan.factorised)


def _operations(entry: Any, call: str) -> float:
    *front, columns = entry.layer.kernel_shape
    rows, allocating = math.prod(front), call in ("energy", "loss")
    n, m = sorted((rows, columns))
    two_sided, any_norm = call in ("kronecker", "loss"), call not in ("frobenius", "energy")
    turned = (2 * m * n * n + n**3 / 3) * two_sided + 2 * rows * rows * columns * any_norm
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
    run, seconds, before, found = called(case, call), [], _memory("VmRSS"), None
    # The peak is counted from here on.
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(2):
        # Of one call alone.
        del found
        wall, used = time.perf_counter(), time.process_time()
        found = jax.block_until_ready(run())
        seconds += [time.perf_counter() - wall, time.process_time() - used]
    peak = _memory("VmHWM") - before + case.size
    first, _, second, used = seconds
    floor = operations(case, call) / rate
    ratios = [] if call in ("energy", "loss") else list(lost(case, found, call))
    return (
        f"| {network} | {call} | {first:.2f} | {second:.2f} | {used:.2f} | {floor:.2f} | "
        f"{peak / MEGABYTE:.0f} | {peak / case.size:.2f} | "
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
