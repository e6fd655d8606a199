"""All methods at all shares: what is asked for, measured where no record has it yet."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from benchmarks.refinement.records import Record, Records
from benchmarks.sentences import ours, peers, statistics
from benchmarks.sentences.peers import Factors
from benchmarks.sentences.task import Kept, Task
from experiments.workdir.record_fields import Kind, share

PEERS = ("Frobenius", "ASVD", "FWSVD", "SVD-LLM", "SVD-LLM+update")
# Those with a plus add to what stands before it.
OURS = ("covariance", "Kronecker", "Kronecker+biases", "sequential", "loss", "loss+refine")
METHODS = (*PEERS, *OURS)


@dataclass(frozen=True)
class Settings:
    """What figures depend on.

    Arguments:
        sentences, held_out: how many, to calibrate and to judge by.
        width: most word pieces of a sentence.
        draws: random signs for each sentence, of the loss.
        epochs: of refinement.
        seed: of sentences, signs and refinement.
    """

    sentences: int
    held_out: int
    width: int
    draws: int
    epochs: int
    seed: int


SCHEMA = {
    "kept": Kind(
        {"digest": str, **dict.fromkeys(Settings.__annotations__, int)}
        | {"method": str, "asked": float},
        {"share": share, "cosine": float, "rank": float, "seconds": float},
    )
}


@dataclass(frozen=True, eq=False)
class Measured:
    """An encoder and what methods share, each made when it is first asked for."""

    task: Task
    settings: Settings

    @cached_property
    def digest(self) -> str:
        """Of the weights and the sentences, which change with the version of Python."""
        found = hashlib.sha256()
        for array in (*self.task.kernels.values(), self.task.seen.ids, self.task.held_out.ids):
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()[:16]

    @cached_property
    def inputs(self) -> dict[str, statistics.Inputs]:
        """Of all matrices, for peers."""
        return statistics.inputs_of(self.task)

    @cached_property
    def whole(self) -> dict[str, dict[str, Factors]]:
        """Factors of all ranks, by method."""
        return {}

    @cached_property
    def moments(self) -> ours.Moments:
        """For tdjax."""
        return ours.collected(self.task, self.settings.draws, self.settings.seed)

    def of_peer(self, method: str, asked: float) -> tuple[Kept, float]:
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
            small = statistics.updated(self.task, small)
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
            fisher = statistics.fisher_of(self.task, self.settings.seed)
            return {path: peers.fwsvd(kernel, fisher[path]) for path, kernel in kernels}
        return {path: peers.whitened(kernel, self.inputs[path].moment) for path, kernel in kernels}

    def of_ours(self, method: str, asked: float) -> tuple[Kept, float]:
        """What tdjax keeps, and at what share of the parameters."""
        task, settings = self.task, self.settings
        if method.startswith("loss"):
            plan = ours.allocated(task, asked, self.moments)
        else:
            plan = ours.equal(task, asked)
        if method == "sequential":
            small = ours.sequential(task, plan, self.moments)
        else:
            norm = "covariance" if method == "covariance" else "kronecker"
            biases = method not in ("covariance", "Kronecker")
            small = ours.factors_of(task, plan, self.moments, norm=norm, correct_bias=biases)
        if method == "loss+refine":
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
