"""Timing of two or more functions in turns, and what the machine can do at best."""

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from tdjax.plan.timing import seconds_in_turns
from tdjax.timings.device import processor, version_of


@dataclass(frozen=True)
class Timing:
    """Repeated measurements; printed as median [least, most]."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle measurement."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        """Median [least, most]."""
        return f"{self.median:.3g} [{min(self.seconds):.3g}, {max(self.seconds):.3g}]"


# Threads of OpenBLAS wait for more work with a core each, for up to a quarter of a second, in which
# whatever comes next takes two to five times as long.
QUIET = 0.3


def interleaved(calls: Sequence[Callable[[], Any]], rounds: int, rest: float = 0.0) -> list[Timing]:
    """Time calls in turns, so that a slow moment of the machine hits all of them.

    Arguments:
        rest: seconds of rest in front of each; `QUIET` where one side computes by OpenBLAS.
    """
    return [Timing(seconds) for seconds in seconds_in_turns(calls, rounds, rest)]


def ratio(slow: Timing, fast: Timing) -> Timing:
    """How many times longer `slow` takes, round by round."""
    return Timing(tuple(a / b for a, b in zip(slow.seconds, fast.seconds, strict=True)))


def matmul_rate(size: int = 2048) -> float:
    """Floating-point operations a second of a large float32 matrix product, the best of ten."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(lambda a: jax.numpy.matmul(a, a, precision=jax.lax.Precision.HIGHEST))
    return 2 * size**3 / min(interleaved([lambda: product(a)], 10)[0].seconds)


def describe_machine() -> str:
    """Processor or accelerator, cores and versions, in one line."""
    device = jax.devices()[0]
    packages = ("jax", "tensorly", "numpy", "torch")
    versions = ", ".join(f"{name} {version_of(name)}" for name in packages)
    name = processor() if device.platform == "cpu" else device.device_kind
    return f"{name}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}"
