"""What lasts tells how far it is, in the same way everywhere."""

import inspect
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import pytest
from flax import nnx
from plain_models import normal, random_variables

import tdjax
from tdjax.progress import Part, Steps

pytestmark = pytest.mark.filterwarnings("ignore:too few rows")
X = normal(0, 24, 6)
HALVES = [X[:12], X[12:]]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(12, name="first")(x)
        return nn.Dense(5, name="last")(nn.BatchNorm(use_running_average=True)(x))


MODEL = Net()
PARAMS = random_variables(MODEL, X)["params"]
STATISTICS = {"BatchNorm_0": {"mean": jnp.zeros(12), "var": jnp.ones(12)}}
GIVEN = (MODEL, {"params": PARAMS, "batch_stats": STATISTICS})
PLAN = tdjax.make_plan(*GIVEN, [tdjax.Rule(path=".*", method="svd", rank=2)], X)
LINEAR = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
ONE = tdjax.make_plan(LINEAR, [tdjax.Rule(path=".*", method="svd", rank=2)], X)
MOMENTS = {
    name: tdjax.LayerMoments(jnp.eye(n)[None], jnp.zeros((1, n)), None, jnp.ones(()), jnp.ones(()))
    for name, n in (("first", 6), ("last", 12))
}
OTHER = {**PARAMS, "last": {**PARAMS["last"], "kernel": jnp.zeros((12, 5))}}
KERNELS = jnp.stack([PARAMS["last"]["kernel"]] * 2)
BATCHES = "batch 1 of 2"
# And what is told of them first.
CALLS = {
    "allocate": (
        partial(tdjax.allocate, *GIVEN, X, budget={"params": 0.7}, methods=("svd",)),
        "what formats lose: layer 1 of 2",
    ),
    "collect_moments": (partial(tdjax.collect_moments, *GIVEN, HALVES), f"moments: {BATCHES}"),
    "evaluate_candidates": (
        partial(tdjax.evaluate_candidates, *GIVEN, "last", KERNELS, HALVES, lambda y, _: y[:, 0]),
        f"2 candidates: {BATCHES}",
    ),
    "factorize": (partial(tdjax.factorize, LINEAR, ONE), "factors: layer 1 of 1"),
    "factorize_params": (partial(tdjax.factorize_params, PARAMS, PLAN), "factors: layer 1 of 2"),
    "factorize_sequentially": (
        partial(tdjax.factorize_sequentially, *GIVEN, PLAN, HALVES),
        "factors: layer 1 of 2",
    ),
    "feature_errors": (
        partial(tdjax.feature_errors, *GIVEN, OTHER, HALVES),
        f"features: {BATCHES}",
    ),
    "lasso_prune": (partial(tdjax.lasso_prune, PARAMS, MOMENTS, 0.1), "weights: layer 1 of 2"),
    "reestimate_batch_stats": (
        partial(tdjax.reestimate_batch_stats, *GIVEN, HALVES),
        f"statistics: {BATCHES}",
    ),
}
# Of several steps, which are told from their start.
OF_STEPS = {"budget_curve", "compress", "measure_rises", "refine", "time_layers"}


@pytest.mark.parametrize("name", sorted(CALLS))
def test_what_lasts_tells_how_far_it_is(name, monkeypatch):
    call, first = CALLS[name]
    for quiet, told in ((600.0, 0), (1e-9, 2)):
        monkeypatch.setattr("tdjax.progress.QUIET", quiet)
        lines = []
        call(progress=lines.append)
        assert len(lines) == told
    assert lines[0].startswith(f"{name}: {first}, ")


def test_all_are_told_of_that_can_be():
    takers = {
        name
        for name in tdjax.__all__
        if callable(getattr(tdjax, name))
        and "progress" in inspect.signature(getattr(tdjax, name)).parameters
    }
    assert takers == CALLS.keys() | OF_STEPS


def test_the_number_of_batches_may_be_unknown(monkeypatch):
    monkeypatch.setattr("tdjax.progress.QUIET", 1e-9)
    monkeypatch.setattr("tdjax.progress.INTERVAL", 0.0)
    lines, options = [], {"row_weights": lambda batch: batch[1]}
    pairs = ((half, jnp.ones(12)) for half in HALVES)
    tdjax.collect_moments(*GIVEN, pairs, **options, progress=lines.append)
    assert [line.split(",")[0] for line in lines[:2]] == [
        "collect_moments: moments: batch 1",
        "collect_moments: moments: batch 2",
    ]
    # Those that are gone over again are counted again.
    loss = {"loss_fn": "outputs", "kronecker": "nearest"}
    lines.clear()
    tdjax.collect_moments(*GIVEN, HALVES, **loss, progress=lines.append)
    assert ["pass" in line for line in lines] == [False, False, True, True, True, True, True]
    assert "batch 2 of 2" in lines[3]
    assert lines[3].endswith(", pass 2")


def test_work_inside_of_other_work_is_told_once(monkeypatch, capfd):
    monkeypatch.setattr("tdjax.progress.QUIET", 1e-9)
    given = {"budget": 0.8, "refine": False, "rules": [tdjax.BudgetRule(path="last", dense=True)]}
    tdjax.compress(*GIVEN, HALVES, **given, progress=False)
    assert not capfd.readouterr().err
    lines = []
    tdjax.compress(*GIVEN, HALVES, **given, progress=lines.append)
    assert not capfd.readouterr().err
    assert {line.partition(":")[0] for line in lines} == {"compress"}


def test_a_part_of_a_step_is_told_as_that_step(monkeypatch):
    monkeypatch.setattr("tdjax.progress.INTERVAL", 0.0)
    lines = []
    with Steps("work", lines.append).step("factors", "layer") as tick:
        tdjax.factorize_params(PARAMS, PLAN, progress=Part(tick))
    told = [line.partition(", ")[0] for line in lines[:-1]]
    assert told == ["work: factors ...", *(f"work: factors: layer {k} of 2" for k in (1, 2))]
