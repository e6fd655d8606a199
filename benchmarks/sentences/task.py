"""An encoder, the sentences it is compressed by, and what is left of it on others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from scipy.stats import spearmanr

from benchmarks.sentences.forward import MATRICES
from benchmarks.sentences.text import draw_texts
from benchmarks.transformers.task import digest_of, with_kernels
from experiments.data.wordpieces import Tokens
from experiments.models.bert import SentenceEncoder
from experiments.network.sentence_encoders import load_sentence_encoder

# Batches of the model, whose rows count by their mask.
Batch = Mapping[str, Any]


class Kept(NamedTuple):
    """What is left of an encoder, on sentences that took no part in its compression.

    Arguments:
        cosine: of embeddings to those of the dense network, the mean.
        rank: Spearman's correlation of the similarities of all pairs of sentences with those that
            the dense network finds.
    """

    cosine: float
    rank: float


@dataclass(frozen=True, eq=False)
class Task:
    """An encoder and sentences.

    Arguments:
        seen: for calibration.
        held_out: for judging.
        size: sentences of a batch.
    """

    model: SentenceEncoder
    variables: Any
    seen: Tokens
    held_out: Tokens
    size: int = 64
    blocks: str = r"encoder\.layer\..*"
    loss: str = "outputs"

    @cached_property
    def batches(self) -> list[Batch]:
        """The sentences for calibration as the model takes them."""
        ids, mask = self.seen
        return [
            {"ids": ids[start : start + self.size], "mask": mask[start : start + self.size]}
            for start in range(0, len(ids), self.size)
        ]

    @cached_property
    def kernels(self) -> dict[str, Float[np.ndarray, "i o"]]:
        """The matrices of all blocks, by path."""
        params = self.variables["params"]
        return {
            f"{block}/{name}": np.asarray(params[block][name]["kernel"])
            for block in (f"encoder.layer.{number}" for number in range(self.model.depth))
            for name in MATRICES
        }

    @cached_property
    def dense(self) -> Float[np.ndarray, "b w"]:
        """What the dense network makes of the sentences that judge."""
        return self._embeddings(self.variables)

    def kept(self, variables: Any) -> Kept:
        """What is left with other variables of the dense network."""
        return compared(self.dense, self._embeddings(variables))

    @cached_property
    def _program(self) -> Callable[..., Any]:
        """Compiled once for all methods."""
        return jax.jit(self.model.apply)

    def _embeddings(self, variables: Any) -> Float[np.ndarray, "b w"]:
        return np.asarray(self._program(variables, *self.held_out))

    def with_kernels(self, kernels: Mapping[str, Any]) -> Any:
        """The variables with other matrices, by path."""
        return with_kernels(self.variables, kernels)

    @cached_property
    def digest(self) -> str:
        """Of the weights and the sentences, which change with the version of Python."""
        return digest_of((*self.kernels.values(), self.seen.ids, self.held_out.ids))

    @property
    def row_weights(self) -> Callable[[Batch], Any]:
        """Padding does not count."""
        return itemgetter("mask")

    @property
    def refining(self) -> Mapping[str, Any]:
        """As `tdjax.refine` has it."""
        return {}


def compared(dense: Float[np.ndarray, "b w"], own: Float[np.ndarray, "b w"]) -> Kept:
    """How far embeddings of length 1 agree."""
    pairs = np.triu_indices(len(dense), 1)
    ranks = spearmanr((dense @ dense.T)[pairs], (own @ own.T)[pairs]).statistic
    return Kept(float(np.mean(np.sum(dense * own, axis=1))), float(ranks))


def read_task(folder: str | Path, seen: int, held_out: int, width: int, seed: int) -> Task:
    """A published encoder, and sentences of at most so many word pieces."""
    model, variables, pieces = load_sentence_encoder(folder)
    texts = draw_texts(seen, held_out, lambda text: len(pieces.ids(text)) <= width, seed)
    tokens_of = partial(pieces.tokens, width=width)
    return Task(model, variables, tokens_of(texts.seen), tokens_of(texts.held_out))
