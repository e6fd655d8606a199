"""What the figures of an encoder of sentences depend on, and what they are."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.transformers.runs import schema_of


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


SCHEMA = schema_of(Settings, {"cosine": float, "rank": float})
