"""Factors fitted to the dense network's answers: what is reached, and what is never made worse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from plain_models import MLP, ConvNet, normal, random_variables

import tdjax
from tdjax.dispatch.models import room_of, with_arrays
from tdjax.refinement.objective import Answers, Objective
from tdjax.refinement.rates import LEAST, best_rate, schedule, tried_rates
from tdjax.trace.mixed import Replacement

X = normal(0, 90, 6)
MODEL = MLP((8, 5))
VARIABLES = random_variables(MODEL, X)
RULES = [tdjax.Rule(path=".*dense[01].*", method="svd", rank=2)]
PLAN = tdjax.make_plan(MODEL, VARIABLES, RULES, X)
FACTORS = tdjax.factorize_params(VARIABLES["params"], PLAN)
# Ragged batches, of which the steps take 32 examples each.
BATCHES = [X[:50], X[50:]]
GIVEN = {"epochs": 2, "batch_size": 32, "learning_rate": 0.01, "progress": False}


def apply(params, x):
    x = x @ params["dense0"]["kernel"] + params["dense0"]["bias"]
    return jnp.tanh(x) @ params["dense1"]["kernel"] + params["dense1"]["bias"]


def given(model, variables):
    return (model,) if variables is None else (model, variables)


class Held(nnx.Module):
    def __init__(self, params):
        rngs = nnx.Rngs(0)
        self.dense0, self.dense1 = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 5, rngs=rngs)
        for name, layer in (("dense0", self.dense0), ("dense1", self.dense1)):
            layer.kernel[...], layer.bias[...] = params[name]["kernel"], params[name]["bias"]

    def __call__(self, x):
        return self.dense1(jnp.tanh(self.dense0(x)))


def test_all_kinds_of_models_are_refined_alike():
    found = tdjax.refine(MODEL, VARIABLES, FACTORS, PLAN, BATCHES, **GIVEN)
    assert len(found.curve) == 3
    assert found.curve[found.best].held_out < found.curve[0].held_out
    expected = tdjax.factorize(MODEL, PLAN).apply({"params": found.factors}, X)

    params = VARIABLES["params"]
    plan = tdjax.make_plan(apply, params, RULES, X)
    factors = tdjax.factorize_params(params, plan)
    again = tdjax.refine(apply, params, factors, plan, BATCHES, **GIVEN)
    np.testing.assert_allclose(tdjax.factorize(apply, plan)(again.factors, X), expected, atol=1e-4)

    model = Held(params)
    plan = tdjax.make_plan(model, RULES, X)
    small = tdjax.factorize(model, plan)
    before = np.asarray(small(X))
    again = tdjax.refine(model, small, plan, BATCHES, **GIVEN)
    np.testing.assert_allclose(again.factors(X), expected, atol=1e-4)
    np.testing.assert_array_equal(small(X), before)
    curve = [epoch.held_out for epoch in found.curve]
    np.testing.assert_allclose([epoch.held_out for epoch in again.curve], curve, rtol=1e-3)
    assert repr(found).startswith("Refined(held-out loss 0.")


def test_the_loss_is_that_of_the_outputs():
    """Against NumPy, of weighed examples."""
    small, dense = normal(5, 7, 4), normal(6, 7, 4)
    weights = jnp.asarray([1.0, 0.5, 0.0, 1.0, 1.0, 2.0, 0.0])
    a, b, w = (np.asarray(x, np.float64) for x in (small, dense, weights))

    def softmax(y):
        return np.exp(y) / np.exp(y).sum(axis=1, keepdims=True)

    def absolute(small, dense):
        return jnp.abs(small - dense).sum(axis=1)

    p, q = softmax(b / 2), softmax(a / 2)
    divergence = np.sum(p * np.log(p / q), axis=1)
    for loss, expected in (
        ("mse", w @ np.sum((a - b) ** 2, axis=1) / (w @ np.sum(b**2, axis=1))),
        ("kl", 4 * (w @ divergence) / w.sum()),
        (absolute, w @ np.abs(a - b).sum(axis=1) / w.sum()),
    ):
        objective = Objective(loss, temperature=2.0)
        outputs = [x if callable(loss) else [x] for x in (small, dense)]
        own, wanted = (Answers(x, {}) for x in outputs)
        value = objective.value(objective.sums(own, wanted, weights), wanted)
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_what_the_factors_can_reach_is_reached_by_one_program():
    """A dense network of rank two, and factors far from it."""
    kernel = normal(1, 6, 2) @ normal(2, 2, 5)
    variables = {"params": {"dense0": {"kernel": kernel, "bias": normal(3, 5)}}}
    model, rules = MLP((5,)), [tdjax.Rule(path="dense0", method="svd", rank=2)]
    plan = tdjax.make_plan(model, variables, rules, X)
    factors = tdjax.factorize_params(variables["params"], plan)
    far = jax.tree.map(lambda x: x + 0.5 * normal(x.size, *x.shape), factors)
    traced = []

    def augment(key, x):
        traced.append(x.shape)
        return x + 0.1 * jax.random.normal(key, x.shape)

    given = {**GIVEN, "epochs": 40, "learning_rate": None, "augment": augment}
    found = tdjax.refine(model, variables, far, plan, BATCHES, **given)
    assert found.curve[0].held_out > 0.1
    assert found.curve[found.best].held_out < 1e-4
    # For the check of shapes, and for the steps.
    assert traced == [(32, 6)] * 2
    assert 1e-3 < found.learning_rate <= tried_rates()[-1]


@pytest.mark.parametrize("rate", [10.0, 1e35])
def test_what_makes_it_worse_is_left(rate):
    optimizer = optax.sgd(rate)
    given = {**GIVEN, "learning_rate": None, "optimizer": optimizer, "patience": 1}
    found = tdjax.refine(MODEL, VARIABLES, FACTORS, PLAN, BATCHES, **given, balance=False)
    assert found.best == 0
    assert len(found.curve) == 2
    assert found.stopped in ("no better since epoch 0", "the loss is NaN or Inf in epoch 1")
    jax.tree.map(np.testing.assert_array_equal, found.factors, FACTORS)


def test_a_found_rate_that_gains_nothing_is_lowered():
    # The start is the least that there is.
    exact = {"params": tdjax.reconstruct_params(FACTORS, PLAN)}
    options = {**GIVEN, "learning_rate": None, "trained": ("factors",)}
    found = tdjax.refine(MODEL, exact, FACTORS, PLAN, BATCHES, **options)
    assert found.best == 0
    assert len(found.curve) == 3
    assert found.learning_rate is not None
    assert np.isclose(tried_rates(), 64 * found.learning_rate).any()


def test_what_is_trained():
    given = {**GIVEN, "epochs": 1}
    variables = {"params": VARIABLES["params"]}
    found = tdjax.refine(
        MODEL, variables, {"params": FACTORS}, PLAN, BATCHES, trained=("factors",), **given
    ).factors["params"]
    for name in ("dense0", "dense1"):
        np.testing.assert_array_equal(found[name]["bias"], FACTORS[name]["bias"])
        assert not np.array_equal(found[name]["input"]["kernel"], FACTORS[name]["input"]["kernel"])


def test_rows_of_weight_zero_do_not_count():
    """Of padded sentences the rows that are there, against sentences of these alone."""
    model, tokens = MLP((8, 5)), X.reshape(30, 3, 6)
    mask = jnp.ones((30, 3)).at[::2, 2].set(0)
    padded = jnp.where(mask[..., None] > 0, tokens, 1e3)
    other = jnp.where(mask[..., None] > 0, tokens, jnp.nan)
    found = [
        tdjax.refine(
            model,
            VARIABLES,
            FACTORS,
            PLAN,
            [(x, mask)],
            row_weights=lambda batch: batch[1],
            held_out=0.0,
            **GIVEN,
        )
        for x in (padded, other)
    ]
    np.testing.assert_allclose(
        [epoch.held_out for epoch in found[0].curve],
        [epoch.held_out for epoch in found[1].curve],
        rtol=1e-5,
    )
    rows = tokens[mask > 0]
    small = tdjax.factorize(model, PLAN).apply({"params": FACTORS}, rows)
    dense = model.apply(VARIABLES, rows)
    expected = jnp.sum((small - dense) ** 2) / jnp.sum(dense**2)
    np.testing.assert_allclose(found[0].curve[0].held_out, expected, rtol=1e-4)


IMAGES = normal(4, 40, 6, 6, 3)


def test_blocks_features_and_statistics():
    model = ConvNet()
    variables = random_variables(model, IMAGES)
    variables["batch_stats"] = jax.tree.map(lambda x: jnp.abs(x) + 0.5, variables["batch_stats"])
    rules = [tdjax.Rule(path="conv.", method="tucker", rank=(3, 4))]
    plan = tdjax.make_plan(model, variables, rules, IMAGES)
    factors = tdjax.factorize_params(variables["params"], plan)
    # Batches of several sizes that are not kept together are filled up.
    found = tdjax.refine(
        model, variables, factors, plan, [IMAGES[:16], IMAGES[16:32], IMAGES[32:]], blocks="auto",
        block_epochs=2, features={"norm.": 0.5}, batch_stats="renewed", memory=1, held_out=[IMAGES],
        **{**GIVEN, "batch_size": 16},
    )  # fmt: skip
    assert list(found.blocks) == ["conv0", "conv1"]
    assert all(after < before for before, after in found.blocks.values())
    assert len(found.curve) == 4
    losses = [epoch.held_out for epoch in found.curve]
    assert losses[found.best] == min(losses) < losses[1] < losses[0]
    # The first is that of outputs and of features.
    small, params = tdjax.factorize(model, plan), {**variables, "params": factors}
    (dense, one), (answers, other) = (
        m.apply(v, IMAGES, capture_intermediates=True)
        for m, v in ((model, variables), (small, params))
    )

    def relative(x, y):
        return jnp.sum((x - y) ** 2) / jnp.sum(y**2)

    def kept(found, name):
        return found["intermediates"][name]["__call__"][0]

    expected = relative(answers, dense) + sum(
        relative(kept(other, name), kept(one, name)) / 4 for name in ("norm0", "norm1")
    )
    np.testing.assert_allclose(losses[0], expected, rtol=1e-4)


def test_features_of_an_nnx_model():
    model = Held(VARIABLES["params"])
    plan = tdjax.make_plan(model, RULES, X)
    found = tdjax.refine(
        model, tdjax.factorize(model, plan), plan, BATCHES, loss=None, features="auto",
        trained=("factors",), **GIVEN,
    )  # fmt: skip
    assert found.curve[found.best].held_out < found.curve[0].held_out


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_some_examples_get_what_the_dense_blocks_return(kind):
    params = VARIABLES["params"]
    model, variables = (MODEL, VARIABLES) if kind == "linen" else (Held(params), None)
    room = room_of(model)
    network, arrays = room.network_of(*with_arrays(model, variables))
    rows, other = jnp.arange(len(X)) % 3 == 0, normal(5, len(X), 8)
    outputs, made = network.module_outputs(
        arrays, ["dense0", "dense1"], X, Replacement(rows, {"dense0": [other]})
    )
    own = X @ params["dense0"]["kernel"] + params["dense0"]["bias"]
    np.testing.assert_allclose(made["dense0"][0], own, rtol=1e-5, atol=1e-6)
    last = jnp.tanh(jnp.where(rows[:, None], other, own)) @ params["dense1"]["kernel"]
    np.testing.assert_allclose(outputs, last + params["dense1"]["bias"], rtol=1e-4, atol=1e-5)

    plan = tdjax.make_plan(*given(model, variables), RULES, X)
    small = FACTORS if kind == "linen" else tdjax.factorize(model, plan)
    found = tdjax.refine(
        *given(model, variables), small, plan, BATCHES, blocks="dense.", mix=0.5, **GIVEN
    )
    assert all(after < before for before, after in found.blocks.values())


def test_what_is_refused_before_any_work():
    def refused(message, error=ValueError, factors=FACTORS, plan=PLAN, batches=BATCHES, **options):
        with pytest.raises(error, match=message):
            tdjax.refine(MODEL, VARIABLES, factors, plan, batches, **{**GIVEN, **options})

    refused("no batches", batches=[])
    refused("no batches are held out", held_out=[])
    refused(r"loss 'mze': known are mse, kl; did you mean 'mse'", loss="mze")
    refused(r"loss returned an array float32\[\]: return the losses", loss=lambda a, b: a.mean())
    refused("loss=None there is nothing to match", loss=None)
    refused("features 'dense2': matches no module; did you mean 'dense1'", features="dense2")
    refused("an optimizer has its own learning rate", optimizer=optax.sgd(0.1))
    refused("trained 'bias': known are factors, biases", trained=("bias",))
    refused("has no scales to train", trained=("scales",))
    refused("blocks 'dense2': matches no module; did you mean 'dense1'", blocks="dense2")
    refused("blocks 'dense0' is inside '': name one of them", blocks=["", "dense0"])
    refused("mix is of the inputs of blocks: pass blocks too", mix=0.5)
    refused("mix is 2.0: pass a share", mix=2.0, blocks="auto")
    refused("the model has no batch statistics", batch_stats="renewed")
    refused("augment made .*: return one like the input", augment=lambda key, x: x[:2])
    refused("has not the factors|expected factor input", factors=VARIABLES["params"])
    refused("the batches are empty", batches=[X[:0]])
    lost = [X, X.at[0].set(jnp.nan)]
    refused("at the start the loss is NaN or Inf with batch 2", batches=lost, held_out=0.0)
    refused("at the start the loss is NaN or Inf with batch 2", batches=lost, held_out=[X])
    with pytest.raises(TypeError, match="features means nothing for a function"):
        tdjax.refine(apply, VARIABLES["params"], FACTORS, PLAN, BATCHES, features="a")


def test_a_rate_that_is_large_and_safe():
    rates = tried_rates()
    # Falls until the rates are too large, as Adam's do.
    losses = 1 / (1 + np.cumsum(rates) * 20)
    losses[rates > 0.05] = 3.0
    assert 0.005 < best_rate(losses) < 0.05
    assert best_rate(np.full(len(rates), np.nan)) == LEAST
    assert best_rate(np.linspace(1, 2, len(rates))) == LEAST
    shares = schedule(100)
    assert shares[0] == pytest.approx(0.2)
    assert shares.max() == pytest.approx(1, abs=0.01)
    assert shares[-1] < 0.01
