"""Rises of the loss that were measured, and plans that know them."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_models import normal, random_variables

import tdjax
from tdjax.allocation.measured import GroupRises, MeasuredRises
from tdjax.evaluate.rises import mean_and_error

X = np.asarray(normal(0, 340, 24))
SIZES = {"first": (24, 32), "middle": (32, 32), "last": (32, 16)}
KERNELS = {
    name: np.asarray(normal(k, *shape)) / 4 for k, (name, shape) in enumerate(SIZES.items(), 1)
}
ZERO = {name: np.zeros(shape[1], np.float32) for name, shape in SIZES.items()}


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        for name, (_, columns) in SIZES.items():
            x = nn.tanh(nn.Dense(columns, name=name)(x))
        return x


class Nnx(nnx.Module):
    def __init__(self):
        for name, shape in SIZES.items():
            layer = nnx.Linear(*shape, rngs=nnx.Rngs(0))
            layer.kernel[...] = jnp.asarray(KERNELS[name])
            setattr(self, name, layer)

    def __call__(self, x):
        for name in SIZES:
            x = nnx.tanh(getattr(self, name)(x))
        return x


def function(params, x):
    for name in SIZES:
        x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"])
    return x


PARAMS = {name: {"kernel": KERNELS[name], "bias": ZERO[name]} for name in SIZES}
TARGETS = np.asarray(function(PARAMS, X))
BATCHES = [(X[:200], TARGETS[:200]), (X[200:], TARGETS[200:])]
OPTIONS = {"methods": ("svd",), "budgets": (0.6, 0.4), "progress": False}


def loss(outputs, batch):
    return 0.5 * ((outputs - batch[1]) ** 2).sum(axis=1)


def drawn(outputs, batch):
    """Its gradient has the curvature of `loss` as its second moment."""
    return (outputs * jax.random.rademacher(jax.random.key(7), outputs.shape)).sum(axis=1)


@pytest.fixture(scope="module")
def moments():
    return tdjax.collect_moments(Linen(), {"params": PARAMS}, BATCHES, loss_fn=drawn)


@pytest.fixture(scope="module")
def measured(moments):
    return tdjax.measure_rises(
        Linen(), {"params": PARAMS}, BATCHES, loss, moments=moments, groups=["first|last", ".*"],
        **OPTIONS,
    )  # fmt: skip


def test_what_is_measured_is_the_loss_with_the_kernels_of_a_group(moments, measured):
    assert [group.paths for group in measured.groups] == [("first", "last"), ("middle",)]
    names = [line.partition(":")[0] for line in repr(measured).splitlines()[1:]]
    assert names == ["first and 1 more", "middle", "all"]
    for number, budget in enumerate(OPTIONS["budgets"]):
        plan = tdjax.allocate(
            Linen(), {"params": PARAMS}, X, budget={"params": budget}, strategy="loss",
            methods=("svd",), moments=moments,
        )  # fmt: skip
        factors = tdjax.factorize_params(PARAMS, plan, moments=moments, correct_bias=True)
        other = jax.tree.map(np.asarray, tdjax.reconstruct_params(factors, plan))
        for group in [*measured.groups, measured.together]:
            y = X.astype(np.float64)
            for name in SIZES:
                own = (other if name in group.paths else PARAMS)[name]
                y = np.tanh(y @ own["kernel"] + own["bias"])
            expected = loss(y, (None, TARGETS))
            np.testing.assert_allclose(group.measured[number], expected.mean(), rtol=1e-4)
            error = expected.std(ddof=1) / np.sqrt(len(X))
            np.testing.assert_allclose(group.errors[number], error, rtol=1e-4)
    corrected = sum(group.points[1] for group in measured.groups)
    np.testing.assert_allclose(measured.together.predicted, corrected)


def test_all_kinds_of_models_are_measured_alike(measured, moments):
    other = {f"{path}/kernel": own for path, own in moments.items()}
    found = tdjax.measure_rises(Nnx(), BATCHES, loss, moments=moments, **OPTIONS)
    apart = tdjax.measure_rises(function, PARAMS, BATCHES, loss, moments=other, **OPTIONS)
    for one in (found, apart):
        assert len(one.groups) == 3
    # Of a function biases are not known, and not corrected.
    np.testing.assert_allclose(found.together.measured, measured.together.measured, rtol=1e-3)
    np.testing.assert_allclose(apart.together.measured, measured.together.measured, rtol=0.3)


def test_a_plan_spends_where_losses_were_higher_than_predicted(moments, measured):
    first, middle = measured.groups
    options = {"budget": 0.5, "strategy": "loss", "methods": ("svd",), "moments": moments}
    plan = tdjax.allocate(Linen(), {"params": PARAMS}, X, **options)
    for group, share in ((middle, 8.0), (first, 0.125)):
        worse = dataclasses.replace(group, measured=group.predicted * share, errors=np.zeros(2))
        groups = tuple(worse if own is group else own for own in (first, middle))
        known = MeasuredRises(groups, measured.together)
        other = tdjax.allocate(Linen(), {"params": PARAMS}, X, **options, measured=known)
        assert other["middle"].ranks[0] > plan["middle"].ranks[0]
        assert abs(other.size / other.size_before - 0.5) <= 0.005


def test_a_target_is_met_better_by_what_was_measured(moments, measured):
    call = {"model": Linen(), "variables": {"params": PARAMS}, "sample": X, "moments": moments}
    # Between what was measured at 0.6 and 0.4 of the parameters.
    assert measured.together.measured[0] < 0.8 < measured.together.measured[1]
    found = {}
    for known in (None, measured):
        plan = tdjax.allocate(
            **call, target=tdjax.LossRise(0.8), methods=("svd",), measured=known, strategy="loss"
        )
        factors = tdjax.factorize_params(PARAMS, plan, moments=moments, correct_bias=True)
        answers = function(tdjax.reconstruct_params(factors, plan), X)
        found[known] = abs(float(loss(answers, (None, TARGETS)).mean()) - 0.8)
    assert found[measured] < 0.2 * 0.8
    assert found[measured] < found[None] / 2


def group_of(predicted, measured, errors):
    return GroupRises((), *map(np.array, (predicted, measured, errors)))


def test_exact_rises_are_taken_as_they_are_and_interpolated():
    group = group_of([0.4, 0.1], [0.8, 0.4], [0.0, 0.0])
    for rise, expected in ((0.1, 0.4), (0.4, 0.8), (0.2, 0.4 * 2**0.5), (0.05, 0.2), (0.8, 1.6)):
        assert group.corrected(rise) == pytest.approx(expected)
    assert group.corrected(0.0) == 0.0
    # Between the points the corrected rise is 0.4 (rise / 0.1)^(1/2).
    low, high = 0.2 / 1.5, 0.2 * 1.5
    slope = 0.4 * ((high / 0.1) ** 0.5 - (low / 0.1) ** 0.5) / (high - low)
    assert group.slope(0.2) == pytest.approx(slope)


@pytest.mark.parametrize(
    ("measured", "error", "expected"),
    [
        (1.6, 0.0, 1.6),
        (1.6, 1.6, 0.8),  # As large as its error: half of the logarithm, 0.4 * 4^(1/2).
        (-1.0, 0.1, 0.2),  # Below zero: as its error, a quarter of the prediction, by half.
        (-1.0, 0.0, 0.04),  # A tenth at least.
        (50.0, 0.0, 4.0),  # Ten times at most.
    ],
)
def test_noise_is_shrunk_to_the_prediction(measured, error, expected):
    assert group_of([0.4], [measured], [error]).corrected(0.4) == pytest.approx(expected)


def test_corrected_rises_never_fall_and_plans_without_a_group_count_for_nothing():
    group = group_of([0.0, 0.1, 0.2], [0.3, 0.5, 0.1], [0.0, 0.0, 0.0])
    rises = [group.corrected(x) for x in np.geomspace(0.01, 1, 30)]
    assert (np.diff(rises) >= 0).all()
    assert group.slope(0.15) > 0
    nothing = group_of([0.0], [0.1], [0.0])
    assert nothing.corrected(0.3) == 0.3
    assert nothing.slope(0.3) == 1.0


def test_means_of_batches_have_an_error_too():
    values, counts = np.array([1.0, 3.0, 2.0]), np.array([2.0, 1.0, 1.0])
    mean, error = mean_and_error(values, counts)
    assert mean == 7 / 4
    assert error == pytest.approx(np.sqrt((4 * 0.75**2 + 1.25**2 + 0.25**2) / 16 * 3 / 2))
    assert mean_and_error(np.array([-2.0]), np.ones(1)) == (-2.0, 2.0)


def test_what_is_refused(moments, measured):
    call = {"model": Linen(), "variables": {"params": PARAMS}, "sample": X, "measured": measured}
    with pytest.raises(ValueError, match="those of strategy 'loss', not 'energy': leave out one"):
        tdjax.allocate(**call, budget=0.5, strategy="energy")
    wishes = [tdjax.BudgetRule(path="middle", max_share=0.9)]
    target = tdjax.LossRise(1e-9)
    with pytest.raises(ValueError, match="a rise of the loss by 1e-09 is out of reach"):
        tdjax.allocate(**call, target=target, moments=moments, rules=wishes, methods=("svd",))
    with pytest.raises(TypeError, match=r"measured is .*: pass what tdjax.measure_rises returned"):
        tdjax.allocate(**{**call, "measured": moments}, budget=0.5)
    given = (Linen(), {"params": PARAMS}, BATCHES, loss)
    with pytest.raises(ValueError, match=r"groups 'lst': matches no layer .* 'last'"):
        tdjax.measure_rises(*given, moments=moments, **OPTIONS, groups=["first", "lst"])
    with pytest.raises(ValueError, match=r"budget 0.01 of the params is out of reach"):
        tdjax.measure_rises(*given, moments=moments, budgets=[0.01])
    with pytest.raises(TypeError, match="read more than once: pass a list"):
        tdjax.measure_rises(*given[:2], iter(BATCHES), loss, moments=moments)
    with pytest.raises(ValueError, match="batch_stats 'renew'"):
        tdjax.measure_rises(*given, moments=moments, batch_stats="renew")

    def infinite(outputs, batch):
        return loss(outputs, batch) / 0.0

    with pytest.raises(
        ValueError, match=r"with batch 1 .* the loss of the dense network is NaN or Inf"
    ):
        tdjax.measure_rises(*given[:3], infinite, moments=moments, **OPTIONS)


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(32, name="first")(x))
        return nn.Dense(16, name="last")(nn.BatchNorm(use_running_average=True, name="norm")(x))


class NnxNormalised(nnx.Module):
    def __init__(self, variables):
        self.first = nnx.Linear(24, 32, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(32, use_running_average=True, rngs=nnx.Rngs(0))
        self.last = nnx.Linear(32, 16, rngs=nnx.Rngs(0))
        for name, own in variables["params"].items():
            for leaf, value in own.items():
                getattr(getattr(self, name), leaf)[...] = value
        for leaf, value in variables["batch_stats"]["norm"].items():
            getattr(self.norm, leaf)[...] = value

    def __call__(self, x):
        return self.last(self.norm(nnx.relu(self.first(x))))


def test_batch_statistics_are_renewed_with_each_group():
    model = Normalised()
    variables = random_variables(model, X)
    variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])
    batches = [(X, model.apply(variables, X))]
    options = {"moments": tdjax.collect_moments(model, variables, batches, loss_fn=drawn)}
    wide = {"budgets": (0.5,), "methods": ("svd",), "progress": False, "groups": ["first"]}
    plan = tdjax.allocate(
        model, variables, X, budget={"params": 0.5}, strategy="loss", methods=("svd",), **options
    )
    params = tdjax.factorize_params(variables["params"], plan, **options, correct_bias=True)
    dense = tdjax.reconstruct_params(params, plan)
    changed = {**variables, "params": {**variables["params"], "first": dense["first"]}}
    renewed = tdjax.reestimate_batch_stats(model, changed, [X])
    for found, expected in (
        (tdjax.measure_rises(model, variables, batches, loss, **options, **wide), changed),
        (
            tdjax.measure_rises(
                model, variables, batches, loss, **options, **wide, batch_stats="renewed"
            ),
            renewed,
        ),
        (
            tdjax.measure_rises(
                NnxNormalised(variables), batches, loss, **options, **wide, batch_stats="renewed"
            ),
            renewed,
        ),
    ):
        rise = loss(model.apply(expected, X), batches[0]).mean()
        np.testing.assert_allclose(found.groups[0].measured, [rise], rtol=1e-3)
