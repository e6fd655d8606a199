"""Published encoders of sentences, from the folder that they come in."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.data.wordpieces import WordPieces
from experiments.models.bert import SentenceEncoder
from experiments.network.torch_weights import load_torch_npz
from experiments.network.weight_files import WeightsError

# What a configuration has to say, where it says anything.
ASSUMED = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
SIZES = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "places": "max_position_embeddings",
    "epsilon": "layer_norm_eps",
}
# Beside the first token, which is not asked for.
IGNORED = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")
TOKEN = jax.ShapeDtypeStruct((1, 1), jnp.int32)


class Published(NamedTuple):
    """An encoder, its weights and its vocabulary."""

    model: SentenceEncoder
    variables: Any
    pieces: WordPieces


def load_sentence_encoder(folder: str | os.PathLike[str]) -> Published:
    """A BERT whose sentences are the means of their tokens, as MiniLM-L6, small letters alone.

    Arguments:
        folder: with `config.json`, `model.safetensors` and `vocab.txt`, as for the libraries
            transformers and sentence-transformers.

    Raises WeightsError, a ValueError that names the file, where one is missing, damaged or another
    kind of network's.
    """
    model = SentenceEncoder(**_sizes(Path(folder, "config.json")))
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKEN, TOKEN)
    variables = load_torch_npz(Path(folder, "model.safetensors"), shapes, ignored=IGNORED)
    path = Path(folder, "vocab.txt")
    try:
        pieces = WordPieces.read(path)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({error})") from error
    if len(pieces.place) != model.vocabulary:
        raise WeightsError(
            f"{path}: {len(pieces.place)} word pieces; the network knows {model.vocabulary}"
        )
    return Published(model, variables, pieces)


def _sizes(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
        for name, needed in ASSUMED.items():
            if found.get(name, needed) != needed:
                raise ValueError(f"{name} is {found[name]!r}; {needed!r} alone is known")
        return {own: found[name] for own, name in SIZES.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: cannot be read ({error})") from error
    except KeyError as error:
        raise WeightsError(f"{path}: has no {error}") from error
