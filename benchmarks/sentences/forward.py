"""The forward pass of the encoder in NumPy, on the tokens alone: padding takes no part.

What peers need of a network, written apart from tdjax and from Flax.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import erf

# Of each block, in the order in which they are called; the first three have one input.
MATRICES = (
    "attention.self.query", "attention.self.key", "attention.self.value",
    "attention.output.dense", "intermediate.dense", "output.dense",
)  # fmt: skip
Rows = Float[np.ndarray, "tokens features"]
See = Callable[[str, Rows], None]
Params = Mapping[str, Any]


def embed(
    params: Params, ids: Int[np.ndarray, "b t"], mask: Int[np.ndarray, "b t"], epsilon: float
) -> Rows:
    """What goes into the first block, a row for each token that is not padding."""
    sentence, place = np.nonzero(mask)
    rows = (
        params["embeddings.word_embeddings"]["embedding"][ids[sentence, place]]
        + params["embeddings.position_embeddings"]["embedding"][place]
        + params["embeddings.token_type_embeddings"]["embedding"][0]
    )
    return normalised(params["embeddings.LayerNorm"], rows, epsilon)


def block(
    params: Params,
    rows: Rows,
    mask: Int[np.ndarray, "b t"],
    heads: int,
    epsilon: float,
    see: See = lambda name, rows: None,
) -> Rows:
    """What comes out of a block.

    Arguments:
        params: of the block.
        see: is shown what goes into each matrix, by its name in the block.
    """

    def dense(name: str, x: Rows) -> Rows:
        see(name, x)
        return x @ params[name]["kernel"] + params[name]["bias"]

    query, key, value = (padded(dense(name, rows), mask, heads) for name in MATRICES[:3])
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(np.float32(query.shape[-1]))
    scores = np.where(mask[:, None, None, :] > 0, scores, -np.inf)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ value
    mixed = mixed.swapaxes(1, 2).reshape(*mask.shape, -1)[mask > 0]
    rows = normalised(
        params["attention.output.LayerNorm"], rows + dense("attention.output.dense", mixed), epsilon
    )
    wide = gelu(dense("intermediate.dense", rows))
    return normalised(params["output.LayerNorm"], rows + dense("output.dense", wide), epsilon)


def pooled(rows: Rows, mask: Int[np.ndarray, "b t"]) -> Float[np.ndarray, "b features"]:
    """Unit vectors of the sentences."""
    sentence = np.nonzero(mask)[0]
    sums = np.zeros((len(mask), rows.shape[1]), rows.dtype)
    np.add.at(sums, sentence, rows)
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def padded(rows: Rows, mask: Int[np.ndarray, "b t"], heads: int) -> np.ndarray:
    """Rows of tokens as (b, heads, t, features / heads), zero where there is padding."""
    full = np.zeros((*mask.shape, rows.shape[1]), rows.dtype)
    full[mask > 0] = rows
    return full.reshape(*mask.shape, heads, -1).swapaxes(1, 2)


def normalised(params: Params, rows: Rows, epsilon: float) -> Rows:
    """Layer normalisation."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + np.float32(epsilon))
    return centred / deviation * params["scale"] + params["bias"]


def gelu(rows: Rows) -> Rows:
    """x times the probability that a normal number is below x."""
    return rows * (np.float32(0.5) * (1 + erf(rows / np.sqrt(np.float32(2)))))
