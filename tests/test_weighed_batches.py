"""Functions that go over batches: padded texts tell them what they tell without padding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_models import normal, random_variables
from plain_readers import NnxReader, Reader, texts

import tdjax
from tdjax.dispatch.errors import candidate_feature_errors

pytestmark = pytest.mark.filterwarnings("ignore:too few rows")
RULES = [tdjax.Rule(path=".*(query|up|head)", method="svd", rank=2)]
# Alone, texts of each length have programs of their own.
LENGTHS = (6, 1, 6, 1)
PADDED = [texts(7, LENGTHS), texts(12, LENGTHS, filler=5)]
ALONE = [(tokens[None, :n], np.ones((1, n), np.float32))
         for tokens, n in zip(PADDED[0][0], LENGTHS, strict=True)]  # fmt: skip


def mask_of(batch):
    return batch[0][1]


@pytest.fixture(scope="module", params=["linen", "nnx"])
def reader(request):
    if request.param == "nnx":
        return (NnxReader(nnx.Rngs(0)),)
    return Reader(), random_variables(Reader(), *PADDED[0])


def test_sequential_factors_are_those_without_padding(reader):
    plan = tdjax.make_plan(*reader, RULES, PADDED[0])
    key = jax.random.key(0)
    found = tdjax.factorize_sequentially(
        *reader, plan, [(batch, None) for batch in PADDED], row_weights=mask_of, key=key,
        correct_bias=True,
    )  # fmt: skip
    expected = tdjax.factorize_sequentially(*reader, plan, ALONE, key=key, correct_bias=True)
    model = found if len(reader) == 1 else tdjax.factorize(reader[0], plan)
    other = expected if len(reader) == 1 else model

    def outputs(model, params):
        return (
            model(*PADDED[0]) if len(reader) == 1 else model.apply({"params": params}, *PADDED[0])
        )

    real = PADDED[0][1] > 0
    one, two = outputs(model, found)[real], outputs(other, expected)[real]
    np.testing.assert_allclose(one, two, atol=2e-3 * np.abs(two).max())


@pytest.mark.parametrize("name", ["feature_errors", "candidate_feature_errors"])
def test_features_of_padding_do_not_count(reader, name):
    plan = tdjax.make_plan(*reader, RULES, PADDED[0])
    batches = [(batch, None) for batch in PADDED]
    if name == "feature_errors":
        found = tdjax.feature_errors(*reader, plan, batches, row_weights=mask_of)
        expected = tdjax.feature_errors(*reader, plan, ALONE)
        assert sorted(found) == sorted(["attention/query", "head", "up"])
        found, expected = found["up"], expected["up"]
    else:
        kernels = normal(4, 2, 8, 16)
        found = candidate_feature_errors(*reader, "up", kernels, batches, row_weights=mask_of)
        expected = candidate_feature_errors(*reader, "up", kernels, ALONE)
    for kind in ("absolute", "relative", "scaled"):
        np.testing.assert_allclose(found[kind], expected[kind], rtol=1e-4, err_msg=kind)


def test_weighed_norms_and_means():
    """Of one layer, against the formula."""
    model, x = nn.Dense(3), normal(5, 4, 6, 5)
    variables = random_variables(model, x)
    other = {"kernel": normal(6, 5, 3), "bias": variables["params"]["bias"]}
    weights = np.random.default_rng(7).uniform(0, 2, (4, 6)) * np.array([[1], [1], [0], [1]])
    most = weights.max(axis=1)
    shares = weights / np.maximum(most, 1e-9)[:, None]
    features = np.asarray(x @ variables["params"]["kernel"] + other["bias"])
    change = np.asarray(x @ (other["kernel"] - variables["params"]["kernel"]))
    absolute, norms = (np.sqrt(np.einsum("bt,btk->b", shares, f**2)) for f in (change, features))
    sizes = 3 * shares.sum(axis=1)
    kept = most > 0

    def turned(module, x):
        """Tokens in front of texts."""
        return module(x.swapaxes(0, 1))

    def errors(method):
        return tdjax.feature_errors(
            model, variables, other, [(x, weights)], row_weights=lambda batch: batch[1],
            method=method,
        )[""]  # fmt: skip

    found, also = errors(None), errors(turned)
    for name, each in (
        ("absolute", absolute),
        ("relative", absolute / np.maximum(norms, 1e-9)),
        ("scaled", absolute / np.maximum(sizes, 1e-9)),
    ):
        expected = (most * each)[kept].sum() / most.sum()
        assert found[name] == pytest.approx(expected, rel=1e-5), name
        assert also[name] == pytest.approx(expected, rel=1e-5), name

    def of_all(module, x):
        """On rows that the examples have in common."""
        return module(jnp.asarray(x[0] * 0 + 1)[:3]).sum() + x

    common = tdjax.feature_errors(model, variables, other, [x], method=of_all)[""]
    ones = np.ones((3, 5)) @ (other["kernel"] - variables["params"]["kernel"])
    assert common["absolute"] == pytest.approx(np.linalg.norm(ones), rel=1e-5)


class Normed(nn.Module):
    """Statistics of tokens, and of texts."""

    @nn.compact
    def __call__(self, tokens, mask, train=False):
        x = nn.Dense(4, name="first")(nn.Embed(11, 8, name="words")(tokens))
        x = nn.BatchNorm(use_running_average=not train, name="of_tokens")(x) * mask[..., None]
        x = x.sum(axis=1) / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
        return nn.BatchNorm(use_running_average=not train, name="of_texts")(x)


class NnxNormed(nnx.Module):
    """The same for NNX."""

    def __init__(self, params):
        self.words = nnx.Embed(11, 8, rngs=nnx.Rngs(0))
        self.words.embedding[...] = params["words"]["embedding"]
        self.first = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
        self.first.kernel[...] = params["first"]["kernel"]
        self.first.bias[...] = params["first"]["bias"]
        self.of_tokens, self.of_texts = (
            nnx.BatchNorm(4, use_running_average=True, rngs=nnx.Rngs(0)) for _ in range(2)
        )
        for name in ("scale", "bias"):
            getattr(self.of_tokens, name)[...] = params["of_tokens"][name]

    def __call__(self, tokens, mask):
        x = self.of_tokens(self.first(self.words(tokens))) * mask[..., None]
        x = x.sum(axis=1) / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
        return self.of_texts(x)


def test_statistics_of_real_tokens():
    tokens, mask = texts(7, (3, 5, 0, 6))
    variables = random_variables(Normed(), tokens, mask)
    given = {"batches": [((tokens, mask), None)], "row_weights": mask_of}
    found = tdjax.reestimate_batch_stats(Normed(), variables, **given)["batch_stats"]
    params = variables["params"]
    x = params["words"]["embedding"][tokens] @ params["first"]["kernel"] + params["first"]["bias"]
    rows = np.asarray(x)[mask > 0]
    np.testing.assert_allclose(found["of_tokens"]["mean"], rows.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(found["of_tokens"]["var"], rows.var(axis=0), atol=1e-5)
    model = NnxNormed(params)
    own = tdjax.reestimate_batch_stats(model, **given)
    for name in ("of_tokens", "of_texts"):
        np.testing.assert_allclose(getattr(own, name).mean, found[name]["mean"], atol=1e-5)
        np.testing.assert_allclose(getattr(own, name).var, found[name]["var"], atol=1e-5)
    # Of texts the empty one does not count.
    three = tokens[[0, 1, 3]], mask[[0, 1, 3]]
    alone = tdjax.reestimate_batch_stats(Normed(), variables, [(three, None)], row_weights=mask_of)
    np.testing.assert_allclose(
        found["of_texts"]["mean"], alone["batch_stats"]["of_texts"]["mean"], atol=1e-5
    )


def test_no_row_that_counts_is_refused(reader):
    plan = tdjax.make_plan(*reader, RULES, PADDED[0])
    given = {"batches": [(PADDED[0], None)], "row_weights": lambda batch: 0 * batch[0][1]}
    for function, message in (
        (tdjax.factorize_sequentially, "leave layer 'attention/query' no row that counts"),
        (tdjax.feature_errors, "row_weights leave no row that counts"),
    ):
        with pytest.raises(ValueError, match=message):
            function(*reader, plan, **given)
    empty = [tuple(array[:0] for array in PADDED[0])]
    with pytest.raises(ValueError, match="no row goes into layer 'words': the batches are empty"):
        tdjax.collect_moments(*reader, empty)
    with pytest.raises(ValueError, match="row_weights: an empty batch"):
        tdjax.collect_moments(*reader, [(empty[0], None)], row_weights=mask_of)


class Rowwise(nn.Module):
    """Each token by itself."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(nn.Dense(24, name="first")(x))
        return nn.Dense(10, name="last")(nn.relu(x))


@pytest.mark.parametrize("loss_fn", [None, "sampled"])
def test_compressed_whatever_padding_holds(loss_fn):
    x, mask = normal(8, 60, 4, 16), np.arange(4) < np.arange(60)[:, None] % 5
    variables = Rowwise().init(jax.random.key(0), x)
    found = [
        tdjax.compress(
            Rowwise(), variables, [(jnp.where(mask[..., None], x, filler), mask)], budget=0.7,
            loss_fn=loss_fn, row_weights=lambda batch: batch[1], refine=False, progress=False,
        )
        for filler in (0.0, jnp.nan)
    ]  # fmt: skip
    assert found[0].plan == found[1].plan
    assert found[0].plan.factorised
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        *(small.variables for small in found),
    )
