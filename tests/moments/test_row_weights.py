import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_models import normal, random_variables
from plain_readers import NnxReader, texts
from plain_readers import Reader as Writer

import tdjax
from tdjax.moments.patches import Patches
from tdjax.moments.pieces import taps_of
from tdjax.moments.rows import Vectors

pytestmark = pytest.mark.filterwarnings("ignore:too few rows")
# Alone, texts of each length have programs of their own.
LENGTHS, LONGEST = (6, 1, 6, 1), 6


class Reader(nn.Module):
    """Tokens that never see padding, and what is left of a text in one row."""

    @nn.compact
    def __call__(self, tokens, mask):
        x = nn.Embed(11, 8, name="embed")(tokens)
        pairs = nn.make_attention_mask(mask > 0, mask > 0)
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(x, mask=pairs)
        flat = nn.Dense(5, name="flat")(nn.Dense(8, name="dense")(x).reshape(-1, 8))
        x = jnp.where(mask[..., None] > 0, flat.reshape(*mask.shape, 5), 0)
        x = nn.Conv(4, (3,), name="conv")(x) * mask[..., None]
        return nn.Dense(4, name="head")(x.sum(axis=1) / mask.sum(axis=1, keepdims=True))


def loss(outputs, batch):
    return (outputs**2).sum(axis=1)


def test_padded_tokens_count_as_if_they_were_not_there():
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 11, (1, n)) for n in LENGTHS]
    tokens = np.concatenate([np.pad(t, ((0, 0), (0, LONGEST - t.shape[1]))) for t in texts])
    mask = (np.arange(LONGEST) < np.array(LENGTHS)[:, None]).astype(np.float32)
    model = Reader()
    variables = random_variables(model, tokens, mask)
    # What padding holds does not matter: rows of it are NaN in the last layers.
    found = tdjax.collect_moments(
        model, variables, [{"tokens": tokens, "mask": mask}], loss_fn=loss,
        row_weights=lambda batch: batch["mask"],
    )  # fmt: skip
    alone = [((text, np.ones(text.shape, np.float32)), None) for text in texts]
    expected = tdjax.collect_moments(model, variables, alone, loss_fn=loss)
    assert set(found) == set(expected)
    for path, own in found.items():
        assert float(own.rows) == (4 if path == "head" else sum(LENGTHS))
        for name in ("inputs", "mean", "outputs"):
            one, other = getattr(own, name), getattr(expected[path], name)
            assert (one is None) == (other is None)
            if one is not None:
                scale = np.abs(other).max()
                np.testing.assert_allclose(one, other, atol=1e-5 * scale, err_msg=path)


@pytest.mark.parametrize("seed", range(3))
def test_weighed_sums_are_those_of_explicit_rows(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4, 6, 3))
    weights = rng.uniform(0, 2, (4, 6)) * (rng.random((4, 6)) < 0.7)
    taps = taps_of(6, 6, 3, low=1)
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    windows = np.stack([padded[:, k : k + 6] for k in range(3)], axis=2).reshape(4, 6, 9)
    by_example = np.broadcast_to(weights.max(axis=1, keepdims=True), (4, 6))
    for rows, explicit, given, own in (
        (Vectors(3), x, weights, weights),
        (Vectors(3), x, weights[:, 0], np.repeat(weights[:, :1], 6, axis=1)),
        (Vectors(3), x[:, :5], weights, by_example[:, :5]),
        (Patches((taps,), 3), windows, weights, weights),
        (Patches((taps,), 3), windows, weights[:, 0], np.repeat(weights[:, :1], 6, axis=1)),
    ):
        inputs = jnp.asarray(x if explicit is windows else explicit)
        parts, total = rows.sums(inputs, jnp.asarray(given, jnp.float32))
        expected = np.einsum("bt,btd,bte->de", own, explicit, explicit)
        np.testing.assert_allclose(rows.assembled(parts)[0], expected, rtol=1e-4, atol=1e-4)
        expected = np.einsum("bt,btd->d", own, explicit)
        np.testing.assert_allclose(total[0], expected, rtol=1e-4, atol=1e-4)


def test_weights_of_any_form_and_tokens_in_front_of_texts():
    """Against explicit sums; what fits no layer's rows is told."""
    x, mask = np.asarray(normal(0, 4, 6, 5)), np.arange(6) < np.array([[6], [3], [1], [0]])
    variables = random_variables(nn.Dense(2), x)

    def moment(weights, method=None):
        return tdjax.collect_moments(
            nn.Dense(2), variables, [x], row_weights=lambda batch: weights, method=method
        )[""]

    def turned(module, x):
        return module(x.swapaxes(0, 1)).swapaxes(0, 1)

    expected = np.einsum("btd,bte,bt->de", x, x, mask) / mask.sum()
    for found in (moment(mask[..., None]), moment(mask), moment(mask, turned)):
        np.testing.assert_allclose(found.inputs[0], expected, atol=1e-5)
        assert float(found.rows) == mask.sum()
    with pytest.warns(UserWarning, match=r"shape \(4, 1, 1, 6\) have the axes of no layer's rows"):
        moment(mask[:, None, None])


def test_weights_of_another_form_are_refused():
    model, x = nn.Dense(2), normal(0, 4, 3, 5)
    variables = model.init(jax.random.key(0), x)
    for given, error, message in (
        (lambda batch: batch[:2, :, 0] ** 2, ValueError, r"float32\[2, 3\].* shape \(4, ...\)"),
        (lambda batch: -(batch[..., 0] ** 2), ValueError, "negative numbers, NaN or Inf"),
        (lambda batch: jnp.zeros(4), ValueError, "leave layer '' no row that counts"),
        (lambda batch: [1, 1, 1, 1], TypeError, "row_weights returned a shape"),
        (jnp.ones(4), TypeError, r"row_weights is an array .* pass a function of \(batch\)"),
        (lambda outputs, batch: batch, TypeError, r"it is called as row_weights\(batch\)"),
    ):
        with pytest.raises(error, match=message):
            tdjax.collect_moments(model, variables, [x], row_weights=given)


def of_two_lengths(kind, lengths, **options):
    """Moments of a small transformer whose texts are padded to the longest, and to twelve."""
    batches = texts(max(lengths), lengths), texts(12, lengths, filler=7)
    model = Writer() if kind == "linen" else NnxReader(nnx.Rngs(0))
    arrays = (random_variables(model, *batches[0]),) if kind == "linen" else ()

    def moments(tokens, mask):
        given = [{"tokens": tokens, "mask": mask}]
        return tdjax.collect_moments(
            model, *arrays, given, row_weights=lambda batch: batch["mask"], **options
        )

    return [moments(*batch) for batch in batches]


def assert_same_moments(found, expected):
    assert set(found) == set(expected)
    for path, own in found.items():
        for name in ("inputs", "mean", "outputs"):
            one, other = getattr(own, name), getattr(expected[path], name)
            assert (one is None) == (other is None)
            if one is not None:
                scale = np.abs(other).max()
                np.testing.assert_allclose(one, other, atol=1e-5 * scale, err_msg=f"{path} {name}")


def squares(outputs, batch):
    return ((outputs * batch["mask"][..., None]) ** 2).sum(axis=(1, 2))


@pytest.mark.parametrize("kind", ["linen", "nnx"])
@pytest.mark.parametrize(
    ("kronecker", "lengths"), [("independent", (3, 5, 1, 6)), ("nearest", (3, 4, 1, 2))]
)
def test_padding_to_another_length_changes_no_moment(kind, kronecker, lengths):
    """Though twelve positions are three for each text, or four as many as there are texts."""
    short, long = of_two_lengths(kind, lengths, loss_fn=squares, kronecker=kronecker)
    assert_same_moments(long, short)
    for path, own in long.items():
        once = path in ("positions", "places")
        assert float(own.rows) == pytest.approx(sum(lengths) / (4 if once else 1)), path


def test_functions_of_parameters_know_positions_too():
    def encoded(params, tokens, mask):
        table = params["positions"][jnp.arange(tokens.shape[1])] @ params["places"]
        return jnp.tanh(params["words"][tokens] + table) @ params["head"] * mask[..., None]

    params = {"positions": normal(0, 12, 8), "places": normal(1, 8, 8)}
    params |= {"words": normal(2, 11, 8), "head": normal(3, 8, 5)}
    found = []
    for tokens, mask in (texts(4, (3, 4, 1, 2)), texts(12, (3, 4, 1, 2), filler=7)):
        given = [{"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask)}]
        found.append(
            tdjax.collect_moments(
                encoded, params, given, loss_fn="outputs", row_weights=lambda batch: batch["mask"],
                paths="places|words",
            )
        )  # fmt: skip
    for path, own in found[1].items():
        assert float(own.rows) == pytest.approx(10 / 4 if path == "places" else 10)
        np.testing.assert_allclose(own.inputs, found[0][path].inputs, atol=1e-5)


def test_rows_that_no_row_of_weights_belongs_to_count_alike():
    model, x = nn.Dense(3), normal(0, 5, 4)
    variables = random_variables(model, x)

    def beside(module, x):
        """The layer on five learned rows, whatever the batch."""
        return module(jnp.arange(20.0).reshape(5, 4)).sum() + x

    found = tdjax.collect_moments(
        model, variables, [x[:2]], row_weights=lambda batch: jnp.array([[0.0, 1], [1, 1]]),
        method=beside,
    )[""]  # fmt: skip
    assert float(found.rows) == 5
