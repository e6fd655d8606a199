import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_models import normal, random_variables
from plain_readers import TOKENS, NnxReader, Reader, texts

import tdjax

pytestmark = pytest.mark.filterwarnings("ignore:too few rows")


def two_layers(outputs):
    return nnx.Sequential(
        nnx.Linear(5, 4, rngs=nnx.Rngs(0)), jnp.tanh, nnx.Linear(4, outputs, rngs=nnx.Rngs(1))
    )


def jacobians(model, x):
    """Of the outputs of each row by what comes out of the first layer, (..., outputs, 4)."""
    hidden, last = model.layers[0](x), model.layers[2]
    return np.asarray((1 - jnp.tanh(hidden) ** 2)[..., None, :] * last.kernel[...].T)


@pytest.mark.parametrize("kronecker", ["independent", "nearest"])
def test_a_single_output_leaves_nothing_to_chance(kronecker):
    """The square of a sign is one: the moment is that of the Jacobian, by any weights."""
    model, x = two_layers(1), normal(0, 30, 6, 5)
    weights = np.random.default_rng(1).uniform(0, 2, (30, 6)) * (normal(2, 30, 6) > 0)
    found = tdjax.collect_moments(
        model, [(x[:10], weights[:10]), (x[10:], weights[10:])], loss_fn="outputs",
        row_weights=lambda batch: batch[1], paths="layers/0", kronecker=kronecker, iterations=1,
    )["layers/0"]  # fmt: skip
    g = jacobians(model, x)[..., 0, :]
    outputs = np.einsum("bt,btk,btl->kl", weights, g, g) / weights.sum()
    inputs = np.einsum("bt,btk,btl->kl", weights, x, x) / weights.sum()
    if kronecker == "nearest":
        forms = weights * np.einsum("btk,kl,btl->bt", g, outputs, g)
        inputs = np.einsum("bt,btk,btl->kl", forms, x, x) / forms.sum()
        outputs *= forms.sum() / weights.sum() / np.sum(outputs**2)
    np.testing.assert_allclose(found.inputs[0], inputs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.outputs[0], outputs, rtol=1e-4, atol=1e-5)
    assert float(found.rows) == pytest.approx(weights.sum())


def test_batches_draw_apart_and_again_by_the_key():
    """At the last layer the moment is the mean of r r^T: of one draw for all, of rank two."""
    model, x = two_layers(40), normal(0, 2, 5)

    def moment(times, **options):
        options = {"loss_fn": "outputs", "paths": "layers/2"} | options
        return np.asarray(tdjax.collect_moments(model, [x] * times, **options)["layers/2"].outputs)

    many = moment(400)
    assert np.linalg.matrix_rank(many[0]) == 40
    np.testing.assert_allclose(many[0], np.eye(40), atol=0.2)
    np.testing.assert_array_equal(moment(3), moment(3, key=jax.random.key(0)))
    assert np.abs(moment(3) - moment(3, key=jax.random.key(1))).max() > 0.1


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_sampled_labels_have_the_fisher_information(temperature):
    model, x = two_layers(3), normal(3, 8000, 5)
    found = tdjax.collect_moments(
        model, [(x, None)], loss_fn="sampled", temperature=temperature, paths="layers/0"
    )["layers/0"]
    p = np.asarray(jax.nn.softmax(model(x) / temperature))
    fisher = np.einsum("bk,kl->bkl", p, np.eye(3)) - np.einsum("bk,bl->bkl", p, p)
    expected = np.einsum("bik,bij,bjl->kl", j := jacobians(model, x), fisher, j) / len(x)
    np.testing.assert_allclose(found.outputs[0], expected, atol=0.04 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["linen", "nnx", "function"])
@pytest.mark.parametrize("name", ["outputs", "sampled"])
def test_of_padded_sequences_the_real_tokens_count(kind, name):
    """The gradient at the head is the draw itself: r, or what the labels are off by."""
    tokens, mask = texts(6)
    model = NnxReader(nnx.Rngs(0)) if kind == "nnx" else Reader()
    arrays = () if kind == "nnx" else (random_variables(model, tokens, mask),)
    logits = model(tokens, mask) if kind == "nnx" else model.apply(*arrays, tokens, mask)
    call, path = model, "head"
    if kind == "function":
        call, path = model.apply, "params/head/kernel"
    found = tdjax.collect_moments(
        call, *arrays, [((tokens, mask), None)] * 300, loss_fn=name,
        row_weights=lambda batch: batch[0][1], paths=path,
    )[path]  # fmt: skip
    assert float(found.rows) == 300 * mask.sum()
    expected = np.eye(TOKENS)
    if name == "sampled":
        p = np.asarray(jax.nn.softmax(logits))[mask > 0]
        expected = np.diag(p.mean(axis=0)) - p.T @ p / len(p)
    np.testing.assert_allclose(found.outputs[0], expected, atol=0.08 * np.abs(expected).max())


def test_what_has_no_such_loss_is_refused():
    model, x = two_layers(3), normal(0, 4, 5)

    def refused(message, error=ValueError, **options):
        with pytest.raises(error, match=message):
            tdjax.collect_moments(model, [x], **options)

    def total(model, x):
        return model(x).sum()

    def first(model, x):
        return model(x)[:, 0]

    def single(model, x):
        return model(x)[:, :1]

    refused("known are outputs, sampled; did you mean 'sampled'", TypeError, loss_fn="sample")
    refused("temperature 2 is that of sampled labels", loss_fn="outputs", temperature=2.0)
    refused("temperature is 0", loss_fn="sampled", temperature=0.0)
    refused("no numbers for each example", method=total, loss_fn="outputs")
    refused("puts out no logits", method=first, loss_fn="sampled")
    refused("puts out \\(4, 1\\), a single one", method=single, loss_fn="sampled")
    mask = {"row_weights": lambda batch: jnp.ones((4, 3))}
    refused("as many as there are row_weights", loss_fn="sampled", **mask)
