"""A small encoder of random weights, in the files in which encoders of sentences are published."""

import json

import numpy as np
from safetensors.numpy import save_file

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "a", "##a", "##b", "of", "the", "value", "word"]
CONFIG = {
    "model_type": "bert", "hidden_act": "gelu", "vocab_size": len(WORDS), "hidden_size": 16,
    "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 12, "layer_norm_eps": 1e-12,
}  # fmt: skip
DENSE = {
    "attention.self.query": (16, 16), "attention.self.key": (16, 16),
    "attention.self.value": (16, 16), "attention.output.dense": (16, 16),
    "intermediate.dense": (24, 16), "output.dense": (16, 24),
}  # fmt: skip


def arrays(seed=0):
    """By the names of PyTorch; matrices are (out, in)."""
    drawn = np.random.default_rng(seed)
    shapes = {
        "embeddings.word_embeddings.weight": (len(WORDS), 16),
        "embeddings.position_embeddings.weight": (12, 16),
        "embeddings.token_type_embeddings.weight": (2, 16),
        "pooler.dense.weight": (16, 16),
        "pooler.dense.bias": (16,),
    }
    norms = ["embeddings.LayerNorm"]
    for block in ("encoder.layer.0", "encoder.layer.1"):
        for name, shape in DENSE.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        norms += [f"{block}.attention.output.LayerNorm", f"{block}.output.LayerNorm"]
    found = {name: 0.4 * drawn.normal(size=shape) for name, shape in shapes.items()}
    for name in norms:
        found[f"{name}.weight"] = 1 + 0.3 * drawn.normal(size=16)
        found[f"{name}.bias"] = 0.3 * drawn.normal(size=16)
    found = {name: array.astype(np.float32) for name, array in found.items()}
    return {**found, "embeddings.position_ids": np.arange(12)[None]}


def write(folder, config=CONFIG, words=WORDS, **more):
    """The three files of a folder; `more` are further arrays."""
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    save_file({**arrays(), **more}, folder / "model.safetensors")
    return folder
