"""All methods at all shares: what is asked for, measured where no record has it yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from benchmarks.refinement.records import Record, Records
from benchmarks.transformers import ours, peers
from benchmarks.transformers.peers import Factors
from benchmarks.transformers.task import Task
from experiments.workdir.record_fields import Fields, Kind, Schema, share

PEERS = ("Frobenius", "ASVD", "FWSVD", "SVD-LLM", "SVD-LLM+update")
# Those with a plus add to what stands before it.
OURS = ("covariance", "Kronecker", "Kronecker+biases", "sequential", "loss", "loss+refine")
METHODS = (*PEERS, *OURS)
# Of bytes, in what numbers.
BYTES: Mapping[str, tuple[str, ...]] = {
    "int8 alone": ("int8",),
    "loss in bytes": ("float32", "bfloat16", "int8", "int4"),
    "loss+pairs in bytes": ("float32", "bfloat16", "int8", "int4"),
}
# With one input factor for query, key and value: in place of three, or where a budget says so.
SHARED = ("covariance+shared", "Kronecker+shared", "loss+shared", "loss+shared+refine")
# Where a budget in bytes says so, layers share an input factor, or pass fewer numbers on.
TOGETHER: Mapping[str, str] = {"shared": "inputs", "pairs": "found"}
# Where a budget says so, between up and down of an MLP, and value and output, fewer numbers pass.
PAIRED = ("loss+pairs", "loss+shared+pairs", "loss+pairs+refine", "loss+shared+pairs+refine")
# Each block makes up for what those before it lost.
BLOCKWISE = ("blocks", "loss+blocks")
EVERY = (*METHODS, *SHARED, *PAIRED, *BLOCKWISE, *BYTES)
IN_NNX = "loss in NNX"
# Of a figure, what a record says of it.
Columns = Mapping[str, Callable[[Record], str]]


class Settings(Protocol):
    """A dataclass of what figures depend on; its numbers identify a record.

    Arguments:
        draws: of the loss, for each example.
        epochs: of refinement.
        seed: of all that is random.
    """

    @property
    def draws(self) -> int: ...  # noqa: D102
    @property
    def epochs(self) -> int: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102


class Statistics(Protocol):
    """What peers know of a network; a module."""

    def inputs_of(self, task: Any) -> Mapping[str, Any]:
        """Mean size and moment of what goes into each matrix."""

    def fisher_of(self, task: Any, seed: int) -> Mapping[str, Float[np.ndarray, " i"]]:
        """Fisher information of each row of each matrix."""

    def updated(self, task: Any, start: Mapping[str, Factors]) -> Mapping[str, Factors]:
        """Second factors fitted again, block after block."""


def schema_of(settings: type, figures: Fields) -> Schema:
    """Of records with such settings and figures."""
    names = {"digest": str, **dict.fromkeys(settings.__annotations__, int)}
    holds = {"share": share, **figures, "seconds": float}
    return {"kept": Kind({**names, "method": str, "asked": float}, holds)}


@dataclass(frozen=True, eq=False)
class Measured:
    """A network and what methods share, each made when it is first asked for.

    Arguments:
        digest: of the weights and the data.
        statistics: for peers.
    """

    task: Task
    settings: Any
    digest: str
    statistics: Any

    @cached_property
    def inputs(self) -> Mapping[str, Any]:
        """Of all matrices, for peers."""
        return self.statistics.inputs_of(self.task)

    @cached_property
    def whole(self) -> dict[str, dict[str, Factors]]:
        """Factors of all ranks, by method."""
        return {}

    @cached_property
    def moments(self) -> ours.Moments:
        """For tdjax."""
        return ours.collected(self.task, self.settings.draws, self.settings.seed)

    def of_peer(self, method: str, asked: float) -> tuple[Any, float]:
        """What a peer keeps, and at what share of the parameters."""
        name = method.removesuffix("+update")
        if name not in self.whole:
            self.whole[name] = self._whole(name)
        kernels = self.task.kernels
        small = {
            path: factors.cut(peers.rank_of(kernels[path].shape, asked))
            for path, factors in self.whole[name].items()
        }
        if method != name:
            small = self.statistics.updated(self.task, small)
        found = self.task.with_kernels({path: own.kernel for path, own in small.items()})
        number = sum(own.first.size + own.second.size for own in small.values())
        whole = sum(kernel.size for kernel in kernels.values())
        return self.task.kept(found), number / whole

    def _whole(self, name: str) -> dict[str, Factors]:
        kernels = self.task.kernels.items()
        if name == "Frobenius":
            return {path: peers.frobenius(kernel) for path, kernel in kernels}
        if name == "ASVD":
            return {path: peers.asvd(kernel, self.inputs[path].size) for path, kernel in kernels}
        if name == "FWSVD":
            fisher = self.statistics.fisher_of(self.task, self.settings.seed)
            return {path: peers.fwsvd(kernel, fisher[path]) for path, kernel in kernels}
        return {path: peers.whitened(kernel, self.inputs[path].moment) for path, kernel in kernels}

    def of_ours(self, method: str, asked: float) -> tuple[Any, float]:
        """What tdjax keeps, and at what share of the parameters."""
        task, settings = self.task, self.settings
        if method == IN_NNX:
            # Which small networks alone have.
            twofold: Any = task
            kept, plan = ours.kept_in_nnx(twofold, asked, settings.draws, settings.seed)
            return kept, ours.share_of(task, plan)
        if method in BYTES:
            together = TOGETHER if "+pairs" in method else {}
            plan = ours.allocated(task, asked, self.moments, BYTES[method], **together)
        elif method.startswith("loss"):
            shared = "inputs" if "+shared" in method else None
            pairs = "found" if method in PAIRED else None
            plan = ours.allocated(task, asked, self.moments, shared=shared, pairs=pairs)
        else:
            plan = ours.equal(task, asked)
            plan = ours.sharing(task, plan) if method in SHARED else plan
        if method == "sequential":
            small = ours.sequential(task, plan, self.moments)
        elif method.endswith("blocks"):
            small = ours.sequential(task, plan, self.moments, "auto")
        else:
            norm = "covariance" if method.startswith("covariance") else "kronecker"
            biases = method.removesuffix("+shared") not in ("covariance", "Kronecker")
            small = ours.factors_of(task, plan, self.moments, norm=norm, correct_bias=biases)
        if method.endswith("+refine"):
            small = ours.refined(task, small, settings.epochs, settings.seed)
        return ours.kept(task, small), ours.share_of(task, plan)


def measure(
    measured: Measured, methods: Sequence[str], shares: Sequence[float], records: Records
) -> Iterator[Record]:
    """The record of each method at each share, those that are missing measured."""
    for method in methods:
        for asked in shares:
            run = {
                "kind": "kept", "digest": measured.digest, **asdict(measured.settings),
                "method": method, "asked": asked,
            }  # fmt: skip
            found = records.get(run)
            if found is None:
                start = time.monotonic()
                of = measured.of_peer if method in PEERS else measured.of_ours
                kept, own = of(method, asked)
                found = records.add(
                    run, share=own, **kept._asdict(), seconds=time.monotonic() - start
                )
            yield found
