"""What is compressed and how it is judged: what all benchmarks of transformers say of theirs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from benchmarks.transformers.models import MATRICES

# Examples that are judged at once.
MANY = 256


class Task(Protocol):
    """A network with matrices in blocks, and data.

    Arguments:
        model, variables: the dense network, in Linen.
        kernels: the matrices of all blocks, by path.
        batches: inputs for calibration.
        blocks: pattern of the paths of layers in blocks.
        loss: a loss without labels, by its name in tdjax.
        row_weights: of a batch; None where all rows count.
        refining: options of `tdjax.refine`.
    """

    @property
    def model(self) -> nn.Module: ...  # noqa: D102
    @property
    def variables(self) -> Any: ...  # noqa: D102
    @property
    def kernels(self) -> Mapping[str, Float[np.ndarray, "i o"]]: ...  # noqa: D102
    @property
    def batches(self) -> Sequence[Any]: ...  # noqa: D102
    @property
    def blocks(self) -> str: ...  # noqa: D102
    @property
    def loss(self) -> str: ...  # noqa: D102
    @property
    def row_weights(self) -> Callable[[Any], Any] | None: ...  # noqa: D102
    @property
    def refining(self) -> Mapping[str, Any]: ...  # noqa: D102

    def with_kernels(self, kernels: Mapping[str, Any]) -> Any:
        """The variables with other matrices, by path."""

    def kept(self, variables: Any) -> Any:
        """What is left, a named tuple of figures, with other variables of the dense network."""


class Scores(NamedTuple):
    """On examples that took no part in the compression.

    Arguments:
        cross_entropy: in nats, of the classes that are right; of text, of the next byte.
        accuracy: share of them that are the likeliest.
    """

    cross_entropy: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class Classified:
    """A network that puts out logits, of examples or of all their places.

    Arguments:
        seen, held_out: inputs and the classes that are right.
        twin: the same network in NNX, of the same weights; None for none.
        size: examples of a batch.
    """

    model: nn.Module
    variables: Any
    seen: tuple[Any, Any]
    held_out: tuple[Any, Any]
    twin: nnx.Module | None = None
    size: int = 64
    blocks: str = r"block\d+/.*"
    loss: str = "sampled"
    row_weights: None = None

    @property
    def refining(self) -> Mapping[str, Any]:
        """By the logits of the dense network."""
        return {"loss": "kl"}

    @cached_property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.kernels) // len(MATRICES)

    @cached_property
    def kernels(self) -> dict[str, Float[np.ndarray, "i o"]]:
        """The matrices of all blocks, by path."""
        params = self.variables["params"]
        blocks = sorted(name for name in params if name.startswith("block"))
        return {
            f"{block}/{name}": np.asarray(params[block][name]["kernel"])
            for block in blocks
            for name in MATRICES
        }

    @cached_property
    def batches(self) -> list[Array]:
        """The inputs for calibration."""
        return [inputs for inputs, _ in self.labelled]

    @cached_property
    def labelled(self) -> list[tuple[Any, Any]]:
        """Inputs for calibration and what is right."""
        starts = range(0, len(self.seen[0]), self.size)
        return [tuple(own[at : at + self.size] for own in self.seen) for at in starts]

    @cached_property
    def program(self) -> Callable[..., Any]:
        """Compiled once for all methods."""
        return jax.jit(self.model.apply)

    @cached_property
    def digest(self) -> str:
        """Of the weights and the data, which change with the version of Python."""
        data = map(np.asarray, (*self.seen, *self.held_out))
        return digest_of((*self.kernels.values(), *data))

    def kept(self, variables: Any) -> Scores:
        """With other variables of the dense network."""
        return self.scores(lambda inputs: self.program(variables, inputs))

    def scores(self, answer: Callable[[Any], Array]) -> Scores:
        """Of logits, on the examples that judge."""
        found = []
        for at in range(0, len(self.held_out[0]), MANY):
            inputs, labels = (np.asarray(own[at : at + MANY]) for own in self.held_out)
            logits = np.asarray(answer(inputs), np.float64)
            top = logits.max(axis=-1, keepdims=True)
            logs = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
            lost = -np.take_along_axis(logs, labels[..., None], -1)
            found.append(np.stack([lost.ravel(), (logits.argmax(-1) == labels).ravel()]))
        return Scores(*(float(own) for own in np.concatenate(found, axis=1).mean(axis=1)))

    def with_kernels(self, kernels: Mapping[str, Any]) -> Any:
        """The variables with other matrices, by path."""
        return with_kernels(self.variables, kernels)


def with_kernels(variables: Any, kernels: Mapping[str, Any]) -> Any:
    """Variables with other matrices, by paths of two names."""
    params = dict(variables["params"])
    for path, kernel in kernels.items():
        block, name = path.split("/")
        own = {**params[block][name], "kernel": kernel.astype("float32")}
        params[block] = {**params[block], name: own}
    return {**variables, "params": params}


def digest_of(arrays: Sequence[np.ndarray]) -> str:
    """By which weights and data are known again."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]
