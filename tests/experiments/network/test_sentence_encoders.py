import jax
import numpy as np
import pytest
from published_encoder import CONFIG, WORDS, arrays, write

from benchmarks.sentences import forward
from experiments.network.sentence_encoders import load_sentence_encoder

TEXTS = ["The value of a word.", "aab", "Of the word aaa b."]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return load_sentence_encoder(write(tmp_path_factory.mktemp("encoder")))


def by_numpy(tokens):
    """The embeddings from the arrays of the file."""
    tree = {}
    for name, array in arrays().items():
        *path, kind = name.split(".")
        own = ".".join(path)
        block = own.startswith("encoder.layer.")
        place = tree.setdefault(own[:15], {}) if block else tree
        norm = "LayerNorm" in own
        kinds = {"weight": "scale" if norm else "kernel", "bias": "bias"}
        if own.endswith("embeddings"):
            kinds["weight"] = "embedding"
        array = array.T if kinds.get(kind) == "kernel" else array
        place.setdefault(own[16:] if block else own, {})[kinds.get(kind, kind)] = array
    epsilon = CONFIG["layer_norm_eps"]
    rows = forward.embed(tree, *tokens, epsilon)
    for block in ("encoder.layer.0", "encoder.layer.1"):
        rows = forward.block(tree[block], rows, tokens.mask, 4, epsilon)
    return forward.pooled(rows, tokens.mask)


def test_it_answers_as_the_forward_pass_of_its_file(published):
    model, variables, pieces = published
    tokens = pieces.tokens(TEXTS, 12)
    found = jax.jit(model.apply)(variables, *tokens)
    np.testing.assert_allclose(found, by_numpy(tokens), atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_padding_changes_nothing(published):
    model, variables, pieces = published
    for text in TEXTS:
        short, long = (
            model.apply(variables, *pieces.tokens([text], width))
            for width in (len(pieces.ids(text)), 12)
        )
        np.testing.assert_allclose(short, long, atol=1e-6)


def test_a_sentence_has_to_fit(published):
    model, variables, _ = published
    with pytest.raises(ValueError, match="13 word pieces; the encoder has places for 12"):
        jax.eval_shape(model.apply, variables, *np.ones((2, 1, 13), np.int32))


def test_other_networks_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json: cannot be read"):
        load_sentence_encoder(tmp_path)
    write(tmp_path, {**CONFIG, "hidden_act": "relu"})
    with pytest.raises(ValueError, match="hidden_act is 'relu'; 'gelu' alone is known"):
        load_sentence_encoder(tmp_path)
    write(tmp_path, {name: CONFIG[name] for name in CONFIG if name != "vocab_size"})
    with pytest.raises(ValueError, match=r"config\.json: has no 'vocab_size'"):
        load_sentence_encoder(tmp_path)
    write(tmp_path, words=WORDS[:-1])
    with pytest.raises(ValueError, match=r"vocab\.txt: 11 word pieces; the network knows 12"):
        load_sentence_encoder(tmp_path)
    write(tmp_path, {**CONFIG, "intermediate_size": 32})
    with pytest.raises(ValueError, match=r"dense\.bias has shape \(24,\); the model needs \(32,\)"):
        load_sentence_encoder(tmp_path)
    write(tmp_path, **{"head.weight": np.ones((2, 2), np.float32)})
    with pytest.raises(ValueError, match=r"the model has no place for, head\.weight"):
        load_sentence_encoder(tmp_path)
    (write(tmp_path) / "vocab.txt").unlink()
    with pytest.raises(ValueError, match=r"vocab\.txt: cannot be read"):
        load_sentence_encoder(tmp_path)
