import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.data.splits import DataSplits, Examples
from experiments.data.tables import TableExamples
from experiments.models import MLP
from experiments.network.expanded import Expanded
from experiments.network.forward import LinenNetwork, Variables
from experiments.network.judge import example_scores
from experiments.network.schedule import FitSettings
from experiments.network.steps import _gradient
from experiments.network.training import (
    evaluate,
    fit_epochs,
    start_fit,
    steps_per_epoch,
)

CLASSES = 3


class TinyNet(nn.Module):
    """A convolution with batch statistics, and a head."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(3, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.8)(x))
        return nn.Dense(CLASSES)(x.mean(axis=(1, 2)))


NETWORK = LinenNetwork(TinyNet())


def examples(count, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count).astype(np.int32)
    images = rng.normal(size=(count, 5, 5, 1)).astype(np.float32)
    return Examples(images + 0.3 * labels[:, None, None, None].astype(np.float32), labels)


def start(seed):
    variables = jax.jit(TinyNet().init)(jax.random.key(seed), jnp.zeros((1, 5, 5, 1)))
    return Variables(variables["params"], {"batch_stats": variables["batch_stats"]})


def stacked(models):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)


def trained(*args, **options):
    return [after.fit for after in told(*args, **options)]


def told(models, keys, fit_settings, apply=NETWORK, data=None, fit=None):
    train, validation = data or (examples(22, 1), examples(10, 2))
    fit = fit or start_fit(models, fit_settings)
    # Black is 0.
    splits = DataSplits(train, validation, validation, np.zeros(1), np.ones(1), CLASSES)
    return list(fit_epochs(fit, apply, fit_settings, splits, keys))


def assert_same(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if tolerance:
            np.testing.assert_allclose(x, y, **tolerance)
        else:
            np.testing.assert_array_equal(x, y)


SETTINGS = FitSettings(epochs=3, batch_size=8, learning_rate=0.05, boundaries=(2,), augment=True)


def test_a_run_is_the_same_alone_and_beside_others():
    models, keys = [start(seed) for seed in range(2)], jax.random.split(jax.random.key(7), 2)
    beside = trained(stacked(models), keys, SETTINGS)[-1]
    for run, model in enumerate(models):
        alone = trained(stacked([model]), keys[run : run + 1], SETTINGS)[-1]
        own = jax.tree.map(lambda leaf, run=run: leaf[run : run + 1], beside)
        assert_same(own, alone, rtol=1e-4, atol=1e-5)


def test_runs_differ_by_their_keys_only():
    for second, alike in ((1, True), (2, False)):
        keys = jnp.stack([jax.random.key(1), jax.random.key(second)])
        fit = trained(stacked([start(0)] * 2), keys, SETTINGS)[-1]
        kernel = fit.model.params["Conv_0"]["kernel"]
        assert np.allclose(kernel[0], kernel[1], rtol=1e-4, atol=1e-5) == alike


class DropNet(nn.Module):
    """Nothing but dropout lets two of its runs differ."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(CLASSES)(x)


def test_dropout_draws_again_in_each_step_and_run():
    params = DropNet().init(jax.random.key(0), jnp.zeros((1, 5, 5, 1)))["params"]
    kernels = []
    for epochs in (1, 2):
        data = (examples(8, 1), examples(8, 2))
        plain = FitSettings(epochs=epochs, batch_size=8, learning_rate=0.1, momentum=0.0)
        keys = jnp.stack([jax.random.key(seed) for seed in (1, 1, 2)])
        models = stacked([Variables(params, {})] * 3)
        fit = trained(models, keys, plain, apply=LinenNetwork(DropNet()), data=data)[-1]
        kernels.append(np.asarray(fit.model.params["Dense_0"]["kernel"]))
    first, second = kernels
    np.testing.assert_array_equal(first[0], first[1])
    assert not np.allclose(first[0], first[2])
    start = np.asarray(params["Dense_0"]["kernel"])
    assert not np.allclose(second[0] - first[0], first[0] - start, rtol=0.1)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_continued_is_bitwise_the_unbroken(optimizer):
    fit_settings = dataclasses.replace(SETTINGS, optimizer=optimizer)
    models, keys = stacked([start(0)]), jax.random.split(jax.random.key(0), 1)
    unbroken = trained(models, keys, fit_settings)
    assert len(unbroken) == 3
    for done in (1, 2):
        # Through the host, as a checkpoint goes.
        saved = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), unbroken[done - 1])
        continued = trained(models, keys, fit_settings, fit=saved)
        assert len(continued) == 3 - done
        for a, b in zip(continued, unbroken[done:], strict=True):
            assert_same(a, b)
    assert trained(models, keys, fit_settings, fit=unbroken[-1]) == []


def scripted(params, state, images, key):
    """A network whose loss on images of class 0 is softplus(script[steps trained])."""
    now = state["script"][state["steps"]] + 0 * params
    if key is not None:
        state = {**state, "steps": state["steps"] + 1}
    return jnp.stack([-now, jnp.zeros_like(now)]) * jnp.ones((len(images), 1)), state


def scripted_fits(scripts, patience):
    count = len(scripts)
    models = Variables(
        jnp.zeros(count),
        {"script": jnp.asarray(scripts, jnp.float32), "steps": jnp.zeros(count, jnp.int32)},
    )
    data = Examples(np.zeros((4, 1, 1, 1), np.float32), np.zeros(4, np.int32))
    fit_settings = FitSettings(epochs=len(scripts[0]) - 1, batch_size=4, patience=patience)
    keys = jax.random.split(jax.random.key(0), count)
    return trained(models, keys, fit_settings, apply=scripted, data=(data, data))


def stopped_early(losses, patience):
    """(best epoch, epochs trained) by hand; epochs count from 1."""
    best, best_epoch = math.inf, 0
    for epoch, loss in enumerate(losses, 1):
        if loss < best:
            best, best_epoch = loss, epoch
        if patience is not None and epoch - best_epoch >= patience:
            return best_epoch, epoch
    return best_epoch, len(losses)


scripts = st.lists(st.integers(-3, 3), min_size=6, max_size=6)


@settings(max_examples=20, deadline=None)
@given(st.tuples(scripts, scripts), st.sampled_from([None, 1, 2]))
def test_early_stopping_keeps_the_best_epoch_of_each_run(pair, patience):
    fits = scripted_fits([[0, *script] for script in pair], patience)
    expected = [stopped_early(script, patience) for script in pair]
    assert len(fits) == max(epochs for _, epochs in expected)
    fit = fits[-1]
    np.testing.assert_array_equal(fit.best_epoch, [best for best, _ in expected])
    np.testing.assert_array_equal(fit.best.state["steps"], [best for best, _ in expected])
    lowest = [script[best - 1] for script, (best, _) in zip(pair, expected, strict=True)]
    np.testing.assert_allclose(fit.best_loss, np.log1p(np.exp(lowest)), rtol=1e-5)
    np.testing.assert_array_equal(fit.epoch, [len(fits)] * 2)


def test_a_run_out_of_patience_ignores_later_gains_beside_another():
    fits = scripted_fits([[0, 1, 2, 2, -9, 0], [0, 5, 4, 3, 2, 1]], patience=2)
    assert len(fits) == 5
    np.testing.assert_array_equal(fits[-1].best_epoch, [1, 5])


def test_a_loss_that_is_not_finite_is_never_the_best():
    fits = scripted_fits([[0, 1, math.nan, math.inf], [0, math.nan, math.inf, math.nan]], None)
    np.testing.assert_array_equal(fits[-1].best_epoch, [1, 0])
    # The second run keeps the model that it started from.
    np.testing.assert_array_equal(fits[-1].best.state["steps"], [1, 0])


def by_metric(scripts, patience=None):
    """Fits of a network that gets the images right whose place is below script[steps trained]."""
    count, images = len(scripts), np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1)

    def apply(params, state, images, key):
        now = state["script"][state["steps"]] + 0 * params
        if key is not None:
            state = {**state, "steps": state["steps"] + 1}
        # Sure of what is wrong: the lowest loss is elsewhere.
        logit = jnp.where(images.reshape(-1) < now, 0.1, -10 * now - 1)
        return jnp.stack([logit, jnp.zeros_like(logit)], axis=1), state

    script = jnp.asarray(scripts, jnp.float32)
    models = Variables(jnp.zeros(count), {"script": script, "steps": jnp.zeros(count, jnp.int32)})
    data = Examples(images, np.zeros(4, np.int32))
    fit_settings = FitSettings(
        epochs=len(scripts[0]) - 1, batch_size=4, patience=patience, best_by_metric=True
    )
    keys = jax.random.split(jax.random.key(0), count)
    return trained(models, keys, fit_settings, apply=apply, data=(data, data))


def test_by_metric_the_first_of_the_best_epochs_is_kept():
    nan = math.nan
    fits = by_metric([[0, 1, 3, 2, 3, 1], [0, 0, 0, 0, 0, 0], [0, 1, 1, 2, 2, nan]])
    np.testing.assert_array_equal(fits[-1].best_epoch, [2, 1, 3])
    np.testing.assert_array_equal(fits[-1].best.state["steps"], [2, 1, 3])
    np.testing.assert_allclose(fits[-1].best_loss, [1 / 4, 1, 2 / 4])
    fits = by_metric([[0, 3, 2, 2, 4], [0, 1, 2, 3, 4]], patience=2)
    np.testing.assert_array_equal(fits[-1].best_epoch, [1, 4])


def test_without_a_metric_the_loss_decides():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(16, 3)).astype(np.float32)
    data = TableExamples(rows, rows.sum(axis=1))
    network = LinenNetwork(MLP(1, ()))
    variables = network.module.init(jax.random.key(0), jnp.zeros((1, 3)))
    model, keys = (
        stacked([Variables(variables["params"], {})]),
        jax.random.split(jax.random.key(1), 1),
    )
    fits = [
        trained(
            model,
            keys,
            FitSettings(epochs=6, batch_size=8, learning_rate=0.6, best_by_metric=by_metric),
            network,
            (data, data),
        )[-1]
        for by_metric in (False, True)
    ]
    assert_same(*fits)


def linear(params, state, images, key):
    """Softmax regression on the pixels."""
    return images.reshape(len(images), -1) @ params["w"] + params["b"], state


@dataclasses.dataclass(frozen=True)
class Multiplied(Expanded):
    """Softmax regression whose weights are a product, over a number."""

    divisor: float

    def whole(self, params):
        return {"w": params["left"] @ params["right"] / self.divisor, "b": params["b"]}


@pytest.mark.parametrize(("runs", "optimizer"), [(1, "sgd"), (2, "adam")])
def test_what_is_expanded_is_trained_as_if_it_were_one_function(runs, optimizer):
    rng = np.random.default_rng(0)
    params = {"left": (25, 2), "right": (2, CLASSES), "b": (CLASSES,)}
    params = {
        name: jnp.asarray(rng.normal(size=(runs, *shape)), jnp.float32)
        for name, shape in params.items()
    }
    fit_settings = dataclasses.replace(SETTINGS, optimizer=optimizer, weight_decay=0.1)
    keys = jax.random.split(jax.random.key(0), runs)
    compiled = _gradient._cache_size()
    for divisor in (2.0, 3.0):
        network = Multiplied(linear, divisor)
        models = Variables(params, {})
        found = told(models, keys, fit_settings, apply=network)[-1]
        expected = told(models, keys, fit_settings, apply=network.__call__)[-1]
        assert_same(found, expected, rtol=1e-4, atol=1e-5)
        found = found.fit
        assert not np.allclose(found.model.params["left"], params["left"], atol=1e-3)
    # Both are the same network to the program that is large.
    assert _gradient._cache_size() == compiled + 1


def softmax_gradient(w, b, x, labels):
    logits = x @ w + b
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    residual = (share - np.eye(CLASSES)[labels]) / len(x)
    return x.T @ residual, residual.sum(axis=0)


def softmax_loss(w, b, x, labels):
    logits = x @ w + b
    return np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(x)), labels])


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.8, 0.3)])
def test_sgd_against_numpy(momentum, decay):
    # One batch an epoch: whatever its order, the gradient is that of all examples.
    data = examples(12)
    fit_settings = FitSettings(
        epochs=5,
        batch_size=12,
        learning_rate=0.2,
        boundaries=(2, 4),
        factor=0.5,
        momentum=momentum,
        weight_decay=decay,
    )
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(25, CLASSES)) / 5, rng.normal(size=CLASSES)
    params = {"w": jnp.asarray(w, jnp.float32)[None], "b": jnp.asarray(b, jnp.float32)[None]}
    keys = jax.random.split(jax.random.key(0), 1)
    epochs = told(Variables(params, {}), keys, fit_settings, apply=linear, data=(data, data))

    x = data.images.reshape(12, -1).astype(np.float64)
    speed_w, speed_b = np.zeros_like(w), np.zeros_like(b)
    for rate, after in zip((0.2, 0.2, 0.1, 0.1, 0.05), epochs, strict=True):
        fit = after.fit
        # Of the only batch, before its step.
        assert after.loss[0] == pytest.approx(softmax_loss(w, b, x, data.labels), rel=1e-4)
        slope_w, slope_b = softmax_gradient(w, b, x, data.labels)
        speed_w = momentum * speed_w + slope_w + decay * w
        speed_b = momentum * speed_b + slope_b + decay * b
        w, b = w - rate * speed_w, b - rate * speed_b
        np.testing.assert_allclose(fit.model.params["w"][0], w, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(fit.model.params["b"][0], b, rtol=1e-4, atol=1e-6)
        after_it = softmax_loss(w, b, x, data.labels)
        assert after.scores.cross_entropy[0] == pytest.approx(after_it, rel=1e-4)


def test_first_step_of_adam_against_numpy():
    data = examples(12)
    fit_settings = FitSettings(epochs=1, batch_size=12, optimizer="adam", learning_rate=0.01)
    w, b = np.zeros((25, CLASSES)), np.zeros(CLASSES)
    params = {"w": jnp.zeros((1, 25, CLASSES)), "b": jnp.zeros((1, CLASSES))}
    keys = jax.random.split(jax.random.key(0), 1)
    (fit,) = trained(Variables(params, {}), keys, fit_settings, apply=linear, data=(data, data))
    slope, _ = softmax_gradient(w, b, data.images.reshape(12, -1), data.labels)
    # Both moments, corrected for their start, are those of one gradient.
    expected = -0.01 * slope / (np.abs(slope) + 1e-8)
    np.testing.assert_allclose(fit.model.params["w"][0], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 4])
def test_schedule_by_hand(steps):
    fit_settings = FitSettings(
        epochs=6, learning_rate=0.8, boundaries=(2, 5), factor=0.1, momentum=0.0
    )
    optimiser = fit_settings.optimiser(steps)
    state, rates = optimiser.init(jnp.zeros(())), []
    for _ in range(6 * steps):
        update, state = optimiser.update(jnp.ones(()), state, jnp.zeros(()))
        rates.append(-float(update))
    expected = [rate for rate in (0.8, 0.8, 0.08, 0.08, 0.08, 0.008) for _ in range(steps)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert fit_settings.last_learning_rate == pytest.approx(rates[-1])
    by_epoch = [fit_settings.learning_rate_of(epoch, steps) for epoch in range(1, 7)]
    np.testing.assert_allclose(by_epoch, rates[steps - 1 :: steps], rtol=1e-5)
    # A boundary that the training does not reach is none.
    shorter = dataclasses.replace(fit_settings, epochs=5)
    assert shorter.last_learning_rate == pytest.approx(0.08)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 2), (5, 1), (4, 3)])
def test_the_learning_rate_rises_in_warm_up(steps, warmup):
    fit_settings = FitSettings(
        epochs=8, learning_rate=0.6, boundaries=(4, 6), factor=0.5, momentum=0.0, warmup=warmup
    )
    optimiser = fit_settings.optimiser(steps)
    state, rates = optimiser.init(jnp.zeros(())), []
    for _ in range(8 * steps):
        update, state = optimiser.update(jnp.ones(()), state, jnp.zeros(()))
        rates.append(-float(update))
    step = np.arange(8 * steps)
    expected = 0.6 * np.minimum(step / (warmup * steps), 1)
    expected *= 0.5 ** ((step >= 4 * steps) + (step >= 6 * steps).astype(int))
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert fit_settings.last_learning_rate == pytest.approx(rates[-1])
    by_epoch = [fit_settings.learning_rate_of(epoch, steps) for epoch in range(1, 9)]
    np.testing.assert_allclose(by_epoch, rates[steps - 1 :: steps], rtol=1e-5)


def test_momentum_of_nesterov_against_numpy():
    fit_settings = FitSettings(
        epochs=4, learning_rate=0.3, momentum=0.8, nesterov=True, weight_decay=0.1
    )
    optimiser = fit_settings.optimiser(1)
    x = y = jnp.asarray(2.0)
    state, w, speed = optimiser.init(x), 2.0, 0.0
    for _ in range(4):
        # Of half the square: the gradient is the weight.
        update, state = optimiser.update(x, state, x)
        x = x + update
        slope = 1.1 * w
        speed = 0.8 * speed + slope
        w -= 0.3 * (slope + 0.8 * speed)
        np.testing.assert_allclose(x, w, rtol=1e-5)
    assert x != y


def test_every_image_is_seen_at_most_once_an_epoch():
    # Each image moves a parameter of its own.
    count, size = 11, 3
    images = np.zeros((count, count, 1, 1), np.float32)
    images[np.arange(count), np.arange(count), 0, 0] = 1
    data = Examples(images, np.zeros(count, np.int32))
    params = {"w": jnp.zeros((2, count, CLASSES)), "b": jnp.zeros((2, CLASSES))}
    fit_settings = FitSettings(epochs=2, batch_size=size, learning_rate=1.0, momentum=0.0)
    keys = jax.random.split(jax.random.key(3), 2)
    fits = trained(Variables(params, {}), keys, fit_settings, apply=linear, data=(data, data))
    moved = np.asarray(fits[0].model.params["w"])[:, :, 0] > 0
    np.testing.assert_array_equal(moved.sum(axis=1), [9, 9])
    assert (moved[0] != moved[1]).any()


@pytest.mark.parametrize("batch_size", [3, 7, 500])
def test_evaluate_against_numpy(batch_size):
    data = examples(7)
    rng = np.random.default_rng(1)
    w, b = rng.normal(size=(2, 25, CLASSES)), rng.normal(size=(2, CLASSES))
    models = Variables({"w": jnp.asarray(w, jnp.float32), "b": jnp.asarray(b, jnp.float32)}, {})
    scores = evaluate(models, linear, data, batch_size)
    for run in range(2):
        logits = data.images.reshape(7, -1).astype(np.float64) @ w[run] + b[run]
        loss = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(7), data.labels]
        accuracy = (logits.argmax(axis=1) == data.labels).mean()
        assert scores.accuracy[run] == pytest.approx(accuracy)
        assert scores.cross_entropy[run] == pytest.approx(loss.mean(), rel=1e-4)


def test_evaluation_uses_the_running_statistics_and_leaves_them():
    model, data = start(0), examples(6)
    logits, state = NETWORK(model.params, model.state, jnp.asarray(data.images), None)
    variables = {"params": model.params, **model.state}
    np.testing.assert_allclose(logits, TinyNet().apply(variables, data.images), rtol=1e-5)
    assert_same(state, model.state)
    _, after = NETWORK(model.params, model.state, jnp.asarray(data.images), jax.random.key(0))
    assert not np.allclose(
        jax.tree.leaves(after["batch_stats"])[0], jax.tree.leaves(state["batch_stats"])[0]
    )


def test_logits_that_are_not_finite_are_wrong():
    logits = jnp.array(
        [[math.nan, 0.0], [0.0, math.nan], [math.inf, 0.0], [2.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    )
    right, loss = example_scores(logits, jnp.array([0, 0, 0, 0, 0, 1]))
    # Of equal logits the first decides.
    np.testing.assert_array_equal(right, [0, 0, 0, 1, 1, 0])
    np.testing.assert_allclose(loss[3:], [math.log1p(math.exp(-1)), *[math.log(2)] * 2], rtol=1e-6)


def test_no_epochs_train_nothing():
    keys = jax.random.split(jax.random.key(0), 1)
    assert trained(stacked([start(0)]), keys, dataclasses.replace(SETTINGS, epochs=0)) == []


def test_less_than_a_batch_is_refused():
    fit_settings = FitSettings(epochs=1, batch_size=23)
    with pytest.raises(ValueError, match="22 training examples are less than one batch of 23"):
        trained(stacked([start(0)]), jax.random.split(jax.random.key(0), 1), fit_settings)
    assert steps_per_epoch(examples(22), FitSettings(epochs=1, batch_size=22)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "lion"}, "'lion': known are sgd, adam"),
        ({"epochs": -1}, "'epochs' is -1: at least 0"),
        ({"batch_size": 0}, "'batch_size' is 0: at least 1"),
        ({"learning_rate": 0.0}, r"'learning_rate' is 0\.0: above 0 and at most 1000"),
        ({"learning_rate": math.nan}, "'learning_rate' is nan: above 0 and at most 1000"),
        ({"patience": 0}, "'patience' is 0: at least 1"),
        ({"boundaries": (3, 2)}, r"'boundaries' is \(3, 2\): ascending"),
        ({"boundaries": (2, 2)}, r"'boundaries' is \(2, 2\): ascending"),
        ({"boundaries": (0,)}, "'boundaries' has 0: at least 1"),
        ({"warmup": -1}, "'warmup' is -1: at least 0"),
        ({"warmup": 3, "boundaries": (3, 5)}, r"'boundaries' is \(3, 5\): epochs behind warmup 3"),
        ({"nesterov": True, "optimizer": "adam"}, "'nesterov' is True with optimizer 'adam'"),
        (
            {"nesterov": True, "momentum": 0.0},
            r"with optimizer 'sgd', momentum 0\.0",
        ),
        ({"factor": 0.0}, r"'factor' is 0\.0: above 0"),
        ({"momentum": 1.0}, r"'momentum' is 1\.0: at least 0 and below 1"),
        ({"weight_decay": -0.1}, r"'weight_decay' is -0\.1: at least 0 and at most 1000"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        FitSettings(**{"epochs": 1, **changes})


def test_equal_networks_share_compiled_programs():
    assert LinenNetwork(TinyNet()) == NETWORK
    assert hash(LinenNetwork(TinyNet())) == hash(NETWORK)


def test_numbers_are_predicted_by_least_squares():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(48, 3)).astype(np.float32)
    slope = np.array([1.0, -2.0, 0.5], np.float32)
    train = TableExamples(rows[:32], rows[:32] @ slope + 1)
    validation = TableExamples(rows[32:], rows[32:] @ slope + 1)
    network = LinenNetwork(MLP(1, ()))
    variables = network.module.init(jax.random.key(0), jnp.zeros((1, 3)))
    model = stacked([Variables(variables["params"], {})])
    before = evaluate(model, network, validation)
    outputs = np.asarray(network.module.apply(variables, jnp.asarray(rows[32:])))[:, 0]
    assert before.cross_entropy[0] == pytest.approx(
        np.mean((outputs - validation.labels) ** 2), rel=1e-5
    )
    assert np.isnan(before.accuracy[0])
    settings = FitSettings(epochs=60, batch_size=8, learning_rate=0.05)
    keys = jax.random.split(jax.random.key(1), 1)
    fit = trained(model, keys, settings, network, (train, validation))[-1]
    found = fit.best.params["output"]
    np.testing.assert_allclose(found["kernel"][0, :, 0], slope, atol=1e-3)
    np.testing.assert_allclose(found["bias"][0], 1, atol=1e-3)
