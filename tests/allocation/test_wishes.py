"""Budgets with rules, two limits, or a rise of the loss, against all combinations of ranks."""

from itertools import pairwise

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx
from plain_budgets import (
    LAYERS,
    MODEL,
    MOMENTS,
    VARIABLES,
    Net,
    X,
    combinations,
    free,
    ranks_of,
)
from plain_models import normal

import tdjax
from tdjax import BudgetRule, LossRise, Rule
from tdjax.allocation.allocate import allocate
from tdjax.allocation.several import budget_curve


def asked(strategy, **options):
    splits = (1,) if strategy == "alds" else None
    return allocate(
        MODEL, strategy=strategy, methods=("svd",), moments=MOMENTS, splits=splits, **options
    )


@pytest.mark.parametrize("strategy", ["energy", "alds", "loss"])
def test_two_limits_are_kept_and_nothing_within_them_loses_less(strategy):
    ranks, params, macs, lost = combinations(strategy)
    whole = params.max(), macs.max()
    for first, second in ((0.5, 0.5), (0.8, 0.4), (0.35, 0.9), (0.6, 0.55)):
        plan = asked(strategy, budget={"params": first, "macs": second})
        assert plan.size <= first * whole[0]
        assert plan.macs <= second * whole[1]
        inside = (params <= first * whole[0]) & (macs <= second * whole[1])
        found = lost[(ranks == ranks_of(plan)).all(axis=1)]
        assert found <= 1.001 * lost[inside].min()
    assert asked(strategy, budget={"macs": 0.5}).macs <= 0.5 * whole[1]


@pytest.mark.parametrize("strategy", ["energy", "loss"])
def test_rules_hold_and_the_rest_is_allocated(strategy):
    rules = (
        BudgetRule(path="head", dense=True),
        BudgetRule(path="wide", min_share=0.3, max_share=0.7, multiple_of=2),
        Rule(path=".*", method="svd", rank=3),
    )

    def allowed(path, entry):
        rank, size, *_ = entry
        if path == "wide":
            return 0.3 <= size / LAYERS[path].size <= 0.7 and rank % 2 == 0
        return rank == {"head": None, "deep": 3}[path]

    ranks, params, macs, lost = combinations(strategy, allowed)
    whole = LAYERS["wide"].size + LAYERS["deep"].size + LAYERS["head"].size + MODEL.other
    for size in np.unique(params):
        plan = asked(strategy, budget=float(size / whole), rules=rules)
        assert plan.size == size
        assert ranks_of(plan) in [tuple(own) for own in ranks[params == size]]
    plan = asked(strategy, budget={"params": 0.6, "macs": 0.65}, rules=rules)
    inside = (params <= 0.6 * whole) & (macs <= 0.65 * plan.macs_before)
    assert lost[(ranks == ranks_of(plan)).all(axis=1)] == lost[inside].min()
    assert plan["head"].reason == "a rule keeps it dense"


@pytest.mark.parametrize("cost", ["params", "macs"])
def test_the_smallest_plan_within_a_rise_of_the_loss(cost):
    pinned = (Rule(path="deep", method="svd", rank=4),)
    for rules in ((), pinned):
        kept = (lambda path, entry: path != "deep" or entry[0] == 4) if rules else free
        ranks, params, macs, lost = combinations("loss", kept)
        sizes, levels = params if cost == "params" else macs, np.sort(lost)
        # Where rounding decides nothing.
        clear = [(low + high) / 2 for low, high in pairwise(levels) if high - low > 1e-3 * high]
        for rise in clear[:: len(clear) // 8]:
            plan = asked("loss", target=LossRise(rise), cost=cost, rules=rules)
            found = plan.size if cost == "params" else plan.macs
            assert found == sizes[lost <= rise].min()
            assert lost[(ranks == ranks_of(plan)).all(axis=1)] <= rise
    with pytest.raises(ValueError, match=r"by 0\.001 is out of reach: .* rules: deep is svd at ra"):
        asked("loss", target=LossRise(1e-3), rules=pinned)


def test_a_curve_of_several_budgets():
    budgets, rules = (0.4, 0.6, 0.8), (Rule(path="head", method="svd", rank=2),)
    given = {"methods": ("svd",), "moments": MOMENTS, "rules": rules}
    found = budget_curve(MODEL, budgets, **given)
    ranks, params, macs, lost = combinations(
        "loss", lambda path, entry: path != "head" or entry[0] == 2
    )
    for k, plan in enumerate(found.plans):
        (at,) = np.flatnonzero((ranks == ranks_of(plan)).all(axis=1))
        assert (found.params[k], found.macs[k]) == (params[at], macs[at])
        inside = params <= budgets[k] * plan.size_before
        assert lost[at] <= 1.001 * lost[inside].min()
        np.testing.assert_allclose(found.rises[k], lost[at], rtol=1e-3)
    both = budget_curve(MODEL, [{"params": own, "macs": 0.5} for own in budgets], **given)
    assert (both.macs <= 0.5 * plan.macs_before).all()
    for wrong, message in (((), "no budgets"), ((0.5, {"macs": 0.5}), "must count the same")):
        with pytest.raises(ValueError, match=message):
            budget_curve(MODEL, wrong, **given)


@pytest.mark.parametrize("method", ["svd", "tucker", "cp", "tt"])
def test_ranks_are_multiples_of_what_is_asked_for(method):
    """Unless a mode stays whole; "uniform" tells from shapes alone."""

    class Wide(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(90, (3, 3), name="second")(nn.Conv(70, (3, 3), name="first")(x))

    shapes = jax.eval_shape(Wide().init, jax.random.key(0), X)
    rules = (BudgetRule(path="second", min_rank=20, multiple_of=5),)
    given = {"budget": {"params": 0.5}, "strategy": "uniform", "methods": (method,)}
    plan = tdjax.allocate(Wide(), shapes, X, multiple_of=8, rules=rules, **given)
    assert 0.4 <= plan.size / plan.size_before <= 0.5
    modes = {"svd": (90,), "tucker": (70, 90), "cp": (0,), "tt": (70, 210, 90)}[method]
    second = plan["second"].ranks
    assert all(r == full or (r % 5 == 0 and r >= 20) for r, full in zip(second, modes, strict=True))
    modes = {"svd": (27,), "tucker": (3, 70), "cp": (0,), "tt": (3, 9, 27)}[method]
    first = plan["first"].ranks
    assert all(r == full or r % 8 == 0 for r, full in zip(first, modes, strict=False))
    assert plan.factorised


def test_nnx_has_the_same_wishes():
    model = nnx.Sequential(*(nnx.Linear(24, 24, rngs=nnx.Rngs(k)) for k in range(2)))
    rules = [BudgetRule(path="layers/0", dense=True), BudgetRule(path="layers/1", max_share=0.5)]
    plan = tdjax.allocate(model, normal(0, 2, 24), budget=0.68, rules=rules)
    assert [entry.ranks for entry in plan.layers] == [(), (4,)]


def test_what_cannot_be_wished_for():
    def refused(message, error=ValueError, **options):
        given = {"budget": 0.5, "methods": ("svd",), **options}
        with pytest.raises(error, match=message):
            tdjax.allocate(Net(), SHAPES, X, **given)

    # Weights are never looked at: all of it is known from shapes.
    SHAPES = jax.eval_shape(lambda: VARIABLES)
    bound = BudgetRule
    refused("BudgetRule 'hed': matches no layer; .* did you mean 'head'", rules=[bound(path="hed")])
    refused(
        r"'deep': no ranks keep 0 to 0\.1 of its weights; the nearest keep 0\.1139",
        rules=[bound(path="deep", max_share=0.1)],
    )
    refused(
        r"reaches 0\.1539 to 0\.349; rules: wide keeps 0.162 to 0.324, deep .*, head is svd at ra",
        rules=[bound(path=".*", max_share=0.4)],
    )
    refused(
        r"budget 0\.5 of the params is out of reach: .* 0\.7794 to 1; rules: deep stays dense",
        rules=[bound(path="deep", dense=True)],
    )
    refused(
        "methods 'tucker': strategy 'alds' does not know it; it knows svd",
        strategy="alds", methods=("svd", "tucker"),
    )  # fmt: skip
    refused(
        "BudgetRule 'head': methods 'tt': strategy 'alds' does not know it",
        strategy="alds", rules=[bound(path="head", methods=["tt"])],
    )  # fmt: skip
    refused(r"Rule .* rank 7 of", rules=[Rule(path="head", method="svd", rank=7)])
    rise = {"budget": None, "target": LossRise(1.0)}
    refused("for strategy 'loss', not 'energy'", strategy="energy", **rise)
    refused("a target takes the place", TypeError, target=LossRise(1.0))
    refused("missing a required argument: 'budget'", TypeError, budget=None)
    refused("leave out cost", budget={"params": 0.5}, cost="params")
    refused(
        "cost 'mac': known are params, macs, bytes, time; did you mean 'macs'", budget={"mac": 0.5}
    )
    refused(r"budget of 'macs' 50 is no share.*pass 0\.5", budget={"params": 0.5, "macs": 50})
    refused("budget names no limit", budget={})
    refused(r"0\.001 of the macs is out of reach", budget={"params": 0.9, "macs": 1e-3})
    refused("target is a float: pass tdjax", TypeError, budget=None, target=0.05)
    refused("multiple_of must be at least 1", multiple_of=0)
    with pytest.raises(TypeError, match="holds a BudgetRule 'head', which bounds what tdjax"):
        tdjax.make_plan(Net(), VARIABLES, [bound(path="head", dense=True)], X)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"path": "("}, r"BudgetRule '\(': the path is not a valid regular expression"),
        ({"dense": True, "min_rank": 2}, "what stays dense has no min_rank"),
        ({"methods": ()}, "must name at least one"),
        ({"methods": ("tuker",)}, "did you mean 'tucker'"),
        ({"min_share": 0.5, "max_share": 0.4}, r"min_share 0\.5 is above max_share 0\.4"),
        ({"max_share": 1.5}, "max_share must lie between 0 and 1"),
        ({"multiple_of": 0}, "multiple_of must be at least 1, got 0"),
    ],
)
def test_rules_that_cannot_mean_anything(values, message):
    with pytest.raises(ValueError, match=message):
        BudgetRule(**{"path": "a", **values})


def test_rises_that_are_none():
    for rise in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="rise must be finite and above 0"):
            LossRise(rise)
