import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_models import normal, random_variables

import tdjax

pytestmark = pytest.mark.filterwarnings("ignore:too few rows")
X, MASK, LABELS = normal(0, 12, 5), jnp.arange(12) % 2.0, jnp.arange(12) % 3
ALL = float((X**2).sum(axis=1).mean())
MASKED = float(((X * MASK[:, None]) ** 2).sum(axis=1).mean())


class Masked(nn.Module):
    """A layer behind a mask that need not be given."""

    @nn.compact
    def __call__(self, x, mask=None, train: bool = False):
        x = x if mask is None else x * mask[:, None]
        return nn.Dense(3, name="dense")(x)


class Always(nn.Module):
    """A mask must be given."""

    @nn.compact
    def __call__(self, x, mask):
        return nn.Dense(3, name="dense")(x * mask[:, None])


class Alone(nn.Module):
    """One input, and a switch."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3, name="dense")(x)


class NnxMasked(nnx.Module):
    """As `Masked`."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x, mask=None):
        return self.dense(x if mask is None else x * mask[:, None])


VARIABLES = random_variables(Alone(), X)


def loss(outputs, batch):
    return (outputs**2).sum(axis=1)


def seen(model, batch, **options):
    """The trace of the second moment of what the layer sees."""
    given = (model,) if isinstance(model, nnx.Module) else (model, VARIABLES)
    found = tdjax.collect_moments(*given, [batch], **options)
    return float(jnp.trace(found["dense"].inputs[0]))


NAMED = {"x": X, "mask": MASK}


@pytest.mark.parametrize(
    ("model", "batch", "loss_fn", "expected"),
    [
        (Masked(), (X, MASK), None, MASKED),
        (Masked(), NAMED, None, MASKED),
        (Masked(), NAMED, loss, MASKED),
        (Masked(), ((X, MASK), LABELS), loss, MASKED),
        (Masked(), ((X, MASK), None), loss, MASKED),
        (Masked(), (NAMED, LABELS), loss, MASKED),
        (Masked(), ((X,), MASK), loss, ALL),
        (Masked(), (X, None), loss, ALL),
        (Always(), (X, MASK), loss, MASKED),
        (Always(), ((X, MASK), LABELS), loss, MASKED),
        (Alone(), (X, LABELS), loss, ALL),
        (Alone(), (X, LABELS, MASK), loss, ALL),
        (Alone(), (X, True), loss, ALL),
        (Alone(), (X, (LABELS, MASK)), loss, ALL),
    ],
    # The cases hold functions, whose texts differ between processes.
    ids=itertools.count(),
)
def test_what_of_a_batch_the_model_sees(model, batch, loss_fn, expected):
    assert seen(model, batch, loss_fn=loss_fn) == pytest.approx(expected, rel=1e-5)


def test_nnx_models_see_the_same():
    model = NnxMasked(nnx.Rngs(0))
    for batch, loss_fn in (((X, MASK), None), (((X, MASK), LABELS), loss)):
        assert seen(model, batch, loss_fn=loss_fn) == pytest.approx(MASKED, rel=1e-5)
    with pytest.raises(ValueError, match="the model takes the first entry or the first 2"):
        seen(model, (X, MASK), loss_fn=loss)


def test_the_plan_and_every_function_on_data_call_the_model_alike():
    model, batch = Masked(), (X, MASK)
    plan = tdjax.make_plan(model, VARIABLES, [tdjax.Rule(path="dense", method="svd", rank=1)], X)
    factors = tdjax.factorize_sequentially(model, VARIABLES, plan, [batch])
    named = tdjax.factorize_sequentially(model, VARIABLES, plan, [NAMED])
    jax.tree.map(np.testing.assert_array_equal, factors, named)
    errors = tdjax.feature_errors(model, VARIABLES, plan, [batch])
    assert errors == tdjax.feature_errors(model, VARIABLES, plan, [NAMED])
    kernels = VARIABLES["params"]["dense"]["kernel"][None]

    def first(outputs, batch):
        return outputs[:, 0]

    expected = float(model.apply(VARIABLES, X, MASK)[:, 0].mean())
    for given in (((X, MASK), LABELS), NAMED):
        found = tdjax.evaluate_candidates(model, VARIABLES, "dense", kernels, [given], first)
        assert found[0] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"evaluate_candidates: of the batch .* first 2"):
        tdjax.evaluate_candidates(model, VARIABLES, "dense", kernels, [batch], first)


@pytest.mark.parametrize("batch", [(X, MASK), (X, MASK, LABELS)])
def test_what_cannot_be_told_apart_is_refused(batch):
    with pytest.raises(ValueError, match=r"first entry or the first 2: write \(\(a, b\), rest\)"):
        seen(Masked(), batch, loss_fn=loss)


class Trains(nn.Module):
    """A switch that is on where nothing is said of it."""

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3, name="dense")(x)


@pytest.mark.parametrize("batch", [X, (X,), {"x": X}])
def test_models_that_train_unless_they_are_told_are_told_of(batch):
    message = r'^collect_moments: .* train=True where .*: pass \{"x": \.\.\., "train": False\}'
    with pytest.raises(UserWarning, match=message):
        seen(Trains(), batch)
    assert seen(Trains(), {"x": X, "train": False}) == pytest.approx(ALL, rel=1e-5)


def test_labels_as_a_switch_are_refused():
    def alone(params, x, train=False):
        return x @ params["w"]

    batch, message = (X, (LABELS, MASK)), r"input alone .*: train is a switch, and is given a tuple"
    with pytest.raises(ValueError, match=message):
        seen(Alone(), batch)
    with pytest.raises(ValueError, match=message):
        tdjax.make_plan(alone, {"w": jnp.ones((5, 3))}, [], batch)


def test_labels_without_a_loss_are_refused():
    class One(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True)(nn.Dense(3, name="dense")(x))

    variables, batches = random_variables(One(), X), [(X, LABELS)]
    plan = tdjax.make_plan(One(), variables, [tdjax.Rule(path="dense", method="svd", rank=1)], X)
    for call in (
        lambda: tdjax.make_plan(One(), variables, [], batches[0]),
        lambda: tdjax.collect_moments(One(), variables, batches),
        lambda: tdjax.factorize_sequentially(One(), variables, plan, batches),
        lambda: tdjax.feature_errors(One(), variables, plan, batches),
        lambda: tdjax.reestimate_batch_stats(One(), variables, batches),
    ):
        with pytest.raises(ValueError, match=r"pass the input alone .* \[x for x, _ in batches\]"):
            call()


def test_nan_names_batch_and_layer():
    model, bad = Alone(), X.at[3, 2].set(np.nan)
    plan = tdjax.make_plan(model, VARIABLES, [tdjax.Rule(path="dense", method="svd", rank=1)], X)
    named = "atch 2 .*layer 'dense'"
    for call in (
        lambda: tdjax.collect_moments(model, VARIABLES, [X, bad, X]),
        lambda: tdjax.collect_moments(model, VARIABLES, iter([X, X.at[0, 0].set(np.inf)])),
        lambda: tdjax.factorize_sequentially(model, VARIABLES, plan, [X, bad]),
        lambda: tdjax.feature_errors(model, VARIABLES, plan, [X, bad]),
    ):
        with pytest.raises(ValueError, match=named):
            call()
    with pytest.raises(ValueError, match=r"batch 1 .* the gradient of the loss at layer 'dense'"):
        tdjax.collect_moments(model, VARIABLES, [X], loss_fn=lambda y, _: jnp.sqrt(y[:, 0] * 0))
    norm = nn.BatchNorm(use_running_average=True)
    with pytest.raises(ValueError, match=r"batch 2 .* statistics of layer"):
        tdjax.reestimate_batch_stats(norm, norm.init(jax.random.key(0), X), [X, bad, X])


def test_nan_in_weights_is_refused_before_features_are_compared():
    plan = tdjax.make_plan(Alone(), VARIABLES, [tdjax.Rule(path="dense", method="svd", rank=1)], X)
    good, bad = VARIABLES["params"], jax.tree.map(lambda leaf: leaf * jnp.nan, VARIABLES["params"])
    for params, other in ((bad, plan), (bad, good), (good, bad)):
        with pytest.raises(ValueError, match=r"layer 'dense': the (bias|kernel) holds NaN or Inf"):
            tdjax.feature_errors(Alone(), {"params": params}, other, [X])


def test_moments_that_no_machine_holds():
    class Wide(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="head")(jnp.tile(x, (1, 400_000)))

    one = X[:, :1]
    variables = {"params": {"head": {"kernel": jnp.ones((400_000, 2)), "bias": jnp.ones(2)}}}
    with pytest.raises(ValueError, match=r"'head' 596\.0 GiB; memory= allows 4\.0 GiB .* paths="):
        tdjax.collect_moments(Wide(), variables, [one])


def test_all_batches_have_the_form_of_the_first():
    variables = {"params": VARIABLES["params"]}
    images = jnp.stack([X, X])
    for model, batches in (
        # Each of these the model could be called with in two ways.
        (Alone(), [(X, LABELS), X]),
        (Alone(), [(images, LABELS), images]),
        (Masked(), [((X, MASK), LABELS), (X, MASK)]),
        (Always(), [(X, MASK), ((X, MASK), LABELS)]),
        (Masked(), [X, (X, MASK)]),
    ):
        with pytest.raises(ValueError, match=r"a batch is .*, but the first was .*: give all"):
            tdjax.collect_moments(model, variables, batches, loss_fn=lambda y, _: (y**2).mean())


def test_a_layer_that_no_row_goes_into():
    with pytest.raises(ValueError, match="no row goes into layer 'dense': the batches are empty"):
        tdjax.collect_moments(Alone(), VARIABLES, [X[:0]])


@pytest.mark.parametrize("model", [Masked(), NnxMasked(nnx.Rngs(0))], ids=["linen", "nnx"])
def test_labels_among_the_inputs_are_refused_in_words(model):
    given = (model,) if isinstance(model, nnx.Module) else (model, VARIABLES)
    batches = [{**NAMED, "labels": LABELS}]
    with pytest.raises(ValueError, match=r"takes no 'labels'.*write \(inputs, rest\)"):
        tdjax.collect_moments(*given, batches, loss_fn=loss)
    found = tdjax.collect_moments(*given, [(NAMED, LABELS)], loss_fn=loss)
    np.testing.assert_allclose(jnp.trace(found["dense"].inputs[0]), MASKED, rtol=1e-5)


def test_a_chain_of_layers_takes_no_rest():
    """Though its signature does."""
    chain = nnx.Sequential(lambda x: x, nnx.Linear(5, 3, rngs=nnx.Rngs(0)))
    found = tdjax.collect_moments(chain, [(X, None)], loss_fn=loss)
    np.testing.assert_allclose(jnp.trace(found["layers/1"].inputs[0]), ALL, rtol=1e-5)
