"""What large models need to be factorised, on paper: `python -m benchmarks.scale`.

ViT-L and models of 7 and 70 billion parameters, as shapes alone: the library plans them here. Time
is work over the rates below, which are published peaks times a share that is assumed, not measured.

    python -m benchmarks.scale            # plans, moments, operations and time: two minutes
    python -m benchmarks.scale --memory   # and the memory of the largest matrices, as compiled
    python -m benchmarks.scale --rates    # and what this machine's device reaches of such rates
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks.scale_models import SHAPES, Planned, planned
from benchmarks.scale_needs import (
    BFLOAT16,
    EIGEN,
    FLOAT32,
    NORMS,
    Matrix,
    Operations,
    arguments,
    dealt,
    decomposing,
    distinct_moments,
    input_moments,
    matrices_of,
    output_moments,
    summing,
    total,
    working_memory,
)
from benchmarks.timing import describe_machine, interleaved

MODELS = flags.DEFINE_list("models", list(SHAPES), "Which of them.")
MEMORY = flags.DEFINE_bool("memory", False, "Compile the largest decompositions, from shapes.")
RATES = flags.DEFINE_bool("rates", False, "Measure the rates of this machine's device.")
SIZE = flags.DEFINE_integer("size", 2048, "Of the matrices for that.")

# Rows of data that moments are summed over: ten for each entry of the widest row, as the library
# asks for, come to 40,960 for ViT-L, 110,080 and 286,720; for all the same here.
ROWS = 2**20
DEVICES = (1, 8, 64)
GIGABYTE, TERA, PETA = 1e9, 1e12, 1e15


class Device(NamedTuple):
    """An accelerator, by its published peaks; the shares reached of them are assumed.

    Arguments:
        single: operations a second of products in float32 at the highest precision.
        half: in bfloat16, for the model's own products.
        memory: bytes.
    """

    name: str
    single: float
    half: float
    memory: float

    def seconds(self, work: Operations) -> float:
        """Of float32 work."""
        shares = (PRODUCTS, FACTORISATIONS, EIGENVECTORS)
        return sum(own / (self.single * share) for own, share in zip(work, shares, strict=True))


# Of the peak in float32: matrix products, Cholesky with QR and triangular systems, eigenvectors.
PRODUCTS, FACTORISATIONS, EIGENVECTORS = 0.7, 0.1, 0.01
# Of the peak in bfloat16: the model forward and back.
PASSES = 0.4
ACCELERATORS = (
    # Float32 outside of tensor cores.
    Device("H100 SXM", 67e12, 989e12, 80e9),
    # A product in float32 is six in bfloat16.
    Device("TPU v5e", 197e12 / 6, 197e12, 16e9),
)


class Needs(NamedTuple):
    """A model and its matrices."""

    name: str
    own: Planned
    matrices: list[Matrix]


def models(names: Sequence[str]) -> Iterator[str]:
    """Sizes, from the plans."""
    yield "| model | parameters | matrices | kept at half | float32 | bfloat16 | MACs of a token |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for name, own, matrices in names_to_needs(names):
        plan = own.plan
        yield (
            f"| {name} | {plan.size_before:,} | {len(matrices)} | {plan.size:,} | "
            f"{_gigabytes(FLOAT32 * plan.size_before)} | {_gigabytes(BFLOAT16 * plan.size_before)} "
            f"| {plan.macs_before / own.shape.rows / 1e9:.3g} billion |"
        )


def moments(names: Sequence[str]) -> Iterator[str]:
    """Bytes of the moments."""
    yield "| model | inputs, one a layer | inputs, distinct | gradients | largest of one layer |"
    yield "|---|---:|---:|---:|---:|"
    for name, _, matrices in names_to_needs(names):
        widest = max(max(one.rows, one.columns) for one in matrices)
        yield (
            f"| {name} | {_gigabytes(input_moments(matrices))} | "
            f"{_gigabytes(distinct_moments(matrices))} | {_gigabytes(output_moments(matrices))} | "
            f"{widest:,}²: {_gigabytes(FLOAT32 * widest**2)} |"
        )


def work(names: Sequence[str]) -> Iterator[str]:
    """Operations: of the moments, and of the decompositions in each norm."""
    yield "| model | work | products | Cholesky, QR | eigenvectors |"
    yield "|---|---|---:|---:|---:|"
    for needs in names_to_needs(names):
        for gradients in (False, True):
            model, sums = collecting(needs, gradients=gradients)
            ends = "inputs and gradients" if gradients else "inputs"
            yield (
                f"| {needs.name} | moments of {ends} | {_peta(model)} model, {_peta(sums)} sums "
                "| - | - |"
            )
        for norm in NORMS:
            cells = " | ".join(map(_peta, total(needs.matrices, norm)))
            yield f"| | low rank, {norm} | {cells} |"


def time(names: Sequence[str]) -> Iterator[str]:
    """Seconds by the rates: data dealt out over devices, and then layers."""
    numbers = " | ".join(f"{number}" for number in DEVICES)
    yield f"| model | work | device | {numbers} |"
    yield f"|---|---|---|{'---:|' * len(DEVICES)}"
    for needs in names_to_needs(names):
        for device in ACCELERATORS:
            model, sums = collecting(needs, gradients=True)
            alone = model / (PASSES * device.half) + sums / (PRODUCTS * device.single)
            cells = " | ".join(in_words(alone / number) for number in DEVICES)
            yield f"| {needs.name} | moments, {ROWS:,} rows | {device.name} | {cells} |"
            for norm in NORMS:
                each = [device.seconds(decomposing(one, norm)) for one in needs.matrices]
                cells = " | ".join(in_words(dealt(each, number)) for number in DEVICES)
                yield f"| | low rank, {norm} | {device.name} | {cells} |"


def memory(names: Sequence[str]) -> Iterator[str]:
    """What the decomposition of the largest matrices holds, as XLA plans it, and where it fits."""
    fits = " | ".join(
        f"{device.name}, {device.memory / GIGABYTE:.0f} GB" for device in ACCELERATORS
    )
    yield f"| model | matrix | norm | arguments | beside them | {fits} |"
    yield f"|---|---|---|---:|---:|{'---|' * len(ACCELERATORS)}"
    for name, _, matrices in names_to_needs(names):
        shapes = {(one.rows, one.columns): one for one in matrices}
        largest = max(one.size for one in matrices)
        for (rows, columns), one in shapes.items():
            if one.size < largest:
                continue
            for norm in NORMS:
                given, beside = arguments(one, norm), working_memory(one, norm)
                cells = " | ".join(
                    "fits" if given + beside < device.memory else "does not fit"
                    for device in ACCELERATORS
                )
                yield (
                    f"| {name} | {rows:,} x {columns:,} | {norm} | {_gigabytes(given)} | "
                    f"{_gigabytes(beside)} | {cells} |"
                )


def measured(size: int) -> Iterator[str]:
    """Rates of the device at hand, as the table of shares asks for them."""
    x = jax.random.normal(jax.random.key(0), (size, size))
    moment = jnp.matmul(x, x.T, precision="highest") / size + jnp.eye(size)
    product: Callable[[Any], Any] = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
    cholesky: Callable[[Any], Any] = jax.jit(jnp.linalg.cholesky)
    eigen: Callable[[Any], Any] = jax.jit(jnp.linalg.eigh)
    cases = (
        ("product", product, 2 * size**3),
        ("Cholesky", cholesky, size**3 / 3),
        ("eigenvectors", eigen, EIGEN * size**3),
    )
    calls = [lambda call=call: call(moment) for _, call, _ in cases]
    best = [min(timing.seconds) for timing in interleaved(calls, 5)]
    rates = [count / own for (_, _, count), own in zip(cases, best, strict=True)]
    yield f"{describe_machine()}; {size} x {size}, float32, the best of five\n"
    yield "| | seconds | GFLOP/s | of the product's |"
    yield "|---|---:|---:|---:|"
    for (name, _, _), own, rate in zip(cases, best, rates, strict=True):
        yield f"| {name} | {own:.3g} | {rate / 1e9:.0f} | {100 * rate / rates[0]:.0f} % |"


_PLANNED: dict[str, Needs] = {}


def names_to_needs(names: Sequence[str]) -> Iterator[Needs]:
    """The models, each planned once."""
    for name in names:
        if name not in _PLANNED:
            own = planned(SHAPES[name])
            _PLANNED[name] = Needs(name, own, matrices_of(own.plan))
        yield _PLANNED[name]


def collecting(needs: Needs, *, gradients: bool, rows: int = ROWS) -> tuple[float, float]:
    """Operations on some rows of data: of the model itself, and of the sums."""
    forward = 2 * float(needs.own.plan.macs_before) / needs.own.shape.rows * rows
    # Back to what comes out of the layers, and to no weights: about as much again.
    return forward * (1 + gradients), rows * summing(needs.matrices, gradients=gradients)


def _gigabytes(size: float) -> str:
    return f"{size / GIGABYTE:.3g} GB"


def _peta(operations: float) -> str:
    return f"{operations / PETA:.3g}"


def in_words(own: float) -> str:
    """Seconds, minutes or hours."""
    if own < 120:
        return f"{own:.2g} s" if own < 10 else f"{own:.0f} s"
    return f"{own / 60:.0f} min" if own < 7200 else f"{own / 3600:.1f} h"


def main(_: list[str]) -> None:
    """Print the tables, in Markdown."""
    unknown = set(MODELS.value) - set(SHAPES)
    if unknown:
        raise app.UsageError(f"--models: {sorted(unknown)}; known are {', '.join(SHAPES)}")
    tables = {"Models": models, "Moments": moments, "Operations, 10^15": work, "Time": time}
    if MEMORY.value:
        tables["Memory of one decomposition"] = memory
    for title, table in tables.items():
        print(f"{title}\n")
        for line in table(MODELS.value):
            print(line, flush=True)
        print()
    if RATES.value:
        print("\n".join(measured(SIZE.value)))


if __name__ == "__main__":
    app.run(main)
