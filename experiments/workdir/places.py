"""Which of how many processes this one is: as it was told, or as what started it says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

# What tells the processes that it starts which they are: number, how many, how many of them on the
# machine. Each may be missing.
LAUNCHERS = {
    "SLURM": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    "TPU pod": ("TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", ""),
}
# Of those that one command starts on its machine, see `experiments.launch`.
BESIDE = "EXPERIMENTS_BESIDE"
MOST = 100_000


@dataclass(frozen=True)
class Place:
    """A process of a group.

    Arguments:
        number: from 0.
        count: of the processes that the group is meant to have.
        beside: how many of them share the cores of this machine.
    """

    number: int
    count: int
    beside: int = 1

    def __str__(self) -> str:
        """As it is told."""
        return f"process {self.number} of {self.count}"


def place_of(asked: str, environment: Mapping[str, str]) -> Place | None:
    """The place that is asked for as "2/8", or that a launcher gave; None for a process alone.

    Raises ValueError for what is none.
    """
    beside = _number(environment.get(BESIDE, ""), BESIDE) or 1
    if asked:
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", asked)
        if not found:
            raise ValueError(f"--process={asked}: number and count are needed, such as 2/8")
        return _checked(f"--process={asked}", int(found[1]), int(found[2]), beside)
    for launcher, (number, count, near) in LAUNCHERS.items():
        if environment.get(number, "") and environment.get(count, ""):
            told = environment[count]
            many = len(told.split(",")) if count.endswith("HOSTNAMES") else _number(told, count)
            own = _number(environment[number], number)
            beside = _number(environment.get(near, ""), near) or 1
            return _checked(f"{launcher}: {number}={own}, {count}={told}", own, many, beside)
    return None


def _number(text: str, name: str) -> int:
    if text and not re.fullmatch(r"\d{1,9}", text):
        raise ValueError(f"environment variable {name} is {text!r}, not a number")
    return int(text or 0)


def _checked(told: str, number: int, count: int, beside: int) -> Place | None:
    if not 0 <= number < count <= MOST:
        raise ValueError(f"{told}: processes are numbered from 0 to one less than their count")
    return None if count == 1 else Place(number, count, beside)
