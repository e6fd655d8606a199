"""Budgets of measured time, against all combinations of ranks; the timings are made up."""

from dataclasses import replace

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_budgets import LAYERS, MODEL, MOMENTS, VARIABLES, Net, X, combinations, ranks_of
from plain_models import normal

import tdjax
from tdjax import BudgetRule, Form, LossRise, Plan, Rule, Timings
from tdjax.allocation.allocate import allocate
from tdjax.allocation.measured import GroupRises, MeasuredRises
from tdjax.allocation.several import budget_curve
from tdjax.dispatch import clocks
from tdjax.timings.device import this_device
from tdjax.timings.timings import FormTimings, LayerTimings

pytestmark = pytest.mark.filterwarnings("ignore:too few rows")
# By path, milliseconds dense, and at some ranks of low rank: they need not grow with the rank.
MEASURED = {
    "wide": (3.0, {1: 0.9, 2: 1.4, 4: 1.2, 6: 2.8}),
    "deep": (2.0, {1: 0.5, 4: 0.8, 8: 1.85}),
    "head": (0.25, {1: 0.3, 3: 0.4}),
}
REST = 0.75
WAYS = {"wide": ("product", "xla"), "deep": ("xla", "product"), "head": ()}


def low_rank(path, seconds, form="svd"):
    ranks = tuple((rank,) for rank in seconds)
    return FormTimings(
        Form(form), ranks, tuple(1e-3 * own for own in seconds.values()), (WAYS[path],) * len(ranks)
    )


TIMINGS = Timings(
    this_device(), {}, 2, 1e-3 * (REST + sum(dense for dense, _ in MEASURED.values())),
    {
        path: LayerTimings(1e-3 * dense, (low_rank(path, own),), LAYERS[path].group_shape)
        for path, (dense, own) in MEASURED.items()
    },
)  # fmt: skip
# By path, milliseconds at every rank, 0 for dense.
TABLES = {
    path: np.append(dense, np.interp(np.arange(1, 9), list(own), list(own.values())))
    for path, (dense, own) in MEASURED.items()
}
WHOLE = REST + sum(dense for dense, _ in MEASURED.values())


def faster(path, entry):
    return not entry[0] or TABLES[path][entry[0]] < 0.95 * TABLES[path][0]


def times_of(ranks):
    columns = zip(TABLES.values(), ranks.T.astype(int), strict=True)
    return REST + sum(table[own] for table, own in columns)


def shares_gone(ranks):
    """What strategy "uniform" makes least: the greatest share of its time that a layer loses."""
    columns = zip(TABLES.values(), ranks.T.astype(int), strict=True)
    return np.max([1 - table[own] / table[0] for table, own in columns], axis=0)


def asked(strategy, **options):
    splits = (1,) if strategy == "alds" else None
    return allocate(
        MODEL, strategy=strategy, methods=("svd",), moments=MOMENTS, splits=splits,
        **{"timings": TIMINGS, **options},
    )  # fmt: skip


def at(ranks, plan):
    return (ranks == ranks_of(plan)).all(axis=1)


@pytest.mark.parametrize("strategy", ["uniform", "energy", "alds", "loss"])
def test_time_is_kept_and_nothing_within_it_loses_less(strategy):
    kind = "energy" if strategy == "uniform" else strategy
    ranks, _, _, lost = combinations(kind, faster)
    lost = shares_gone(ranks) if strategy == "uniform" else lost
    times = times_of(ranks)
    for share in (0.45, 0.6, 0.8, 0.95):
        plan = asked(strategy, budget={"time": share})
        np.testing.assert_allclose(1e3 * plan.seconds, times[at(ranks, plan)], rtol=1e-9)
        assert 1e3 * plan.seconds <= share * WHOLE * (1 + 1e-9)
        assert lost[at(ranks, plan)] <= 1.001 * lost[times <= share * WHOLE * (1 - 1e-5)].min()
    if strategy == "uniform":
        return
    # What is slower may be smaller.
    ranks, params, _, lost = combinations(kind)
    times = times_of(ranks)
    for time, size in ((0.7, 0.6), (0.5, 0.9), (0.9, 0.3)):
        plan = asked(strategy, budget={"time": time, "params": size})
        inside = (times <= time * WHOLE * (1 - 1e-5)) & (params <= size * params.max())
        assert 1e3 * plan.seconds <= time * WHOLE * (1 + 1e-9)
        assert plan.size <= size * params.max()
        assert lost[at(ranks, plan)] <= 1.001 * lost[inside].min()


def test_a_number_is_met_or_refused():
    times = times_of(combinations("energy", faster)[0])
    refused = 0
    for percents in range(40, 100, 4):
        # Timings are no multiples of these.
        share = percents / 100 + 0.00123
        if ((times >= (share - 0.005) * WHOLE) & (times <= share * WHOLE)).any():
            plan = asked("energy", budget=share, cost="time")
            assert share - 0.005 <= plan.seconds / plan.seconds_before <= share
        else:
            refused += 1
            with pytest.raises(ValueError, match=r"of the time (cannot be met|is out of reach)"):
                asked("energy", budget=share, cost="time")
    assert 0 < refused < 10


def test_the_fastest_plan_within_a_rise_and_a_curve():
    ranks, _, _, lost = combinations("loss", faster)
    times = times_of(ranks)
    for rise in np.quantile(lost, [0.1, 0.4, 0.8]):
        plan = asked("loss", target=LossRise(1.0001 * rise), cost="time")
        np.testing.assert_allclose(1e3 * plan.seconds, times[lost <= rise].min(), rtol=1e-5)
    budgets = [{"time": 0.5}, {"time": 0.8}]
    found = budget_curve(MODEL, budgets, methods=("svd",), moments=MOMENTS, timings=TIMINGS)
    plans = [asked("loss", budget=own) for own in budgets]
    assert found.plans == tuple(plans)
    assert found.seconds.tolist() == [plan.seconds for plan in plans]
    # Measured rises that say what was predicted change nothing.
    some = np.array([0.1, 1.0])
    group = GroupRises(("wide", "deep"), some, some, 0 * some)
    measured = MeasuredRises((group,), group)
    options = {"moments": MOMENTS, "methods": ("svd",), "measured": measured, "timings": TIMINGS}
    assert tdjax.allocate(Net(), VARIABLES, X, budget=budgets[0], **options) == plans[0]


def test_a_plan_in_time():
    plan = asked("energy", budget={"time": 0.5})
    assert plan["head"].reason == "no format is faster on this device"
    assert plan["deep"].ways == WAYS["deep"]
    lines = str(plan).splitlines()
    assert lines[0].endswith("time")
    (rest,) = (line for line in lines if line.startswith("(the rest)"))
    assert rest.split() == ["(the", "rest)", "0.75", "ms"]
    assert "6 -> " in lines[-6]
    assert f"2 examples on {this_device()}" in str(plan)
    assert "beyond its parts" not in str(plan)
    again = Plan.from_json(plan.to_json())
    assert (again, again.predicted, again.seconds) == (plan, plan.predicted, plan.seconds)
    assert str(again) == str(plan)
    # What was predicted is for these ways, and makes no other plan.
    assert plan.with_ways({"deep": "xla"}).seconds is None
    assert replace(plan, predicted=None) == plan
    for field, was, wrong in (
        ("layers", '"path": "wide", "before"', '"path": "deep", "before"'),
        ("rest", '"rest": 0.0', '"rest": -0.0'),
        ("batch", '"batch": 2', '"batch": 0'),
        ("network", '"network": 0', '"network": -0'),
    ):
        text = plan.to_json()
        assert was in text
        with pytest.raises(ValueError, match=rf"not a plan: field 'predicted\.{field}'"):
            Plan.from_json(text.replace(was, wrong))
    # With timings any plan tells what it takes.
    counted = asked("energy", budget={"macs": 0.5})
    assert counted.seconds == pytest.approx(1e-3 * times_of(np.array([ranks_of(counted)]))[0])


def test_shares_are_of_the_network_as_it_is():
    # What a plan keeps dense takes less than in a network that is compiled badly.
    slow = replace(TIMINGS, network=2e-3 * WHOLE, rest=1e-3 * REST)
    plan = asked("energy", budget={"time": 0.3}, timings=slow)
    assert plan.layers == asked("energy", budget={"time": 0.6}).layers
    assert plan.seconds_before == slow.network
    assert plan.seconds <= 0.3 * slow.network
    found = budget_curve(MODEL, [{"time": 0.3}], methods=("svd",), moments=MOMENTS, timings=slow)
    assert found.seconds[0] <= 0.3 * slow.network
    (beyond,) = (line for line in str(plan).splitlines() if line.startswith("(beyond its parts)"))
    assert beyond.split()[-4:] == ["6", "->", "0", "ms"]
    assert "12 -> " in str(plan)
    # One that was timed while it was faster than its parts takes nothing less than nothing.
    fast = str(asked("energy", budget={"time": 0.9}, timings=replace(slow, network=8e-4 * WHOLE)))
    assert "beyond its parts" not in fast
    assert "the parts add up to 25 % more than the network took" in fast
    # More than all layers take, dense, nothing spends.
    plan = asked("energy", budget=0.7, cost="time", timings=slow)
    assert plan.factorised == ()
    np.testing.assert_allclose(plan.seconds, 1e-3 * WHOLE)


def test_rules_count_in_time():
    rules = (
        Rule(path="wide", method="svd", rank=2),
        BudgetRule(path="head", max_share=0.9),
        BudgetRule(path="deep", multiple_of=2),
    )
    plan = asked("energy", budget={"time": 0.6}, rules=rules)
    # Though slower, it is as small as asked for.
    assert plan["head"].kept <= 0.9
    assert (plan["wide"].ranks, plan["wide"].ways) == ((2,), WAYS["wide"])
    assert plan["deep"].ranks[0] % 2 == 0
    np.testing.assert_allclose(
        1e3 * plan.seconds, times_of(np.array([ranks_of(plan)]))[0], rtol=1e-9
    )
    with pytest.raises(ValueError, match="'wide': tucker at rank 2, 2 is not timed, so that"):
        asked("energy", budget=0.6, rules=[Rule(path="wide", method="tucker", rank=2)])
    with pytest.raises(
        ValueError, match=r"0\.1 of the time is .* reaches 0\.4 to 1; 1 of 3 layers"
    ):
        asked("energy", budget={"time": 0.1})


def test_a_format_that_was_not_timed_is_no_choice():
    both = ("svd", "tucker")
    assert {entry.method for entry in allocate(MODEL, budget=0.5, methods=both).factorised} > {
        "svd"
    }
    plan = allocate(MODEL, budget=0.5, methods=both, timings=TIMINGS)
    assert {entry.method for entry in plan.factorised} == {"svd"}
    layers = {**TIMINGS.layers, "deep": replace(TIMINGS.layers["deep"], forms=())}
    plan = asked("energy", budget={"time": 0.8}, timings=replace(TIMINGS, layers=layers))
    assert plan["deep"].reason == "no format of it was timed"


def test_timings_that_do_not_fit():
    def refused(message, error=ValueError, **options):
        given = {"budget": 0.6, "cost": "time", "methods": ("svd",), "timings": TIMINGS, **options}
        with pytest.raises(error, match=message):
            tdjax.allocate(Net(), VARIABLES, X, **given)

    layers = dict(TIMINGS.layers)
    other = replace(TIMINGS, layers={**layers, "tail": layers["head"]})
    refused("timings: 'tail' is no layer of this network: take those of the model", timings=other)
    other = replace(TIMINGS, layers={"wide": layers["wide"]})
    refused("timings: none of layer 'deep'", timings=other)
    other = replace(TIMINGS, layers={**layers, "deep": replace(layers["deep"], shape=(3, 3, 8, 9))})
    refused(r"'deep' has a kernel of shape \(3, 3, 8, 10\), timed was one of \(3,", timings=other)
    refused("timings are those of 'gpu: X', this is", timings=replace(TIMINGS, device="gpu: X"))
    refused("timings are those of batch 2, asked for is 8", batch=8)
    refused("those of batch 2, asked for is 1", cost="latency at batch 1")
    refused("'latency at batch 1' and batch 8", cost="latency at batch 1", batch=8)
    refused("batch 8 says whose time", cost="macs", batch=8, timings=None)
    refused("two limits at most", budget={"params": 0.5, "macs": 0.5, "time": 0.5}, cost=None)
    refused("is a str: pass tdjax.Timings.load", TypeError, timings="timings.json")
    refused("batch must be at least 1", batch=0)
    with pytest.raises(ValueError, match="time needs timings of the layers"):
        allocate(MODEL, budget=0.5, cost="time")
    with pytest.raises(ValueError, match="shares of parameters or of multiply-accumulates"):
        tdjax.measure_rises(
            Net(), VARIABLES, [X], jnp.sum, moments=MOMENTS, budgets=[{"time": 0.5}]
        )


def matrices(paths):
    svd = FormTimings(Form("svd"), ((1,), (24,)), (1e-4, 2.4e-3), ((), ()))
    return Timings(
        this_device(), {}, 1, 4.5e-3, {path: LayerTimings(2e-3, (svd,), (24, 24)) for path in paths}
    )


def test_all_kinds_of_models_have_budgets_in_time():
    first, second = (nnx.Linear(24, 24, use_bias=False, rngs=nnx.Rngs(k)) for k in range(2))
    model, x = nnx.Sequential(first, second), normal(0, 8, 24)
    arrays = [own.kernel[...] for own in (first, second)]
    linen = nn.Sequential([nn.Dense(24, use_bias=False), nn.Dense(24, use_bias=False)])
    params = {f"layers_{k}": {"kernel": own} for k, own in enumerate(arrays)}
    given = {"budget": {"latency at batch 1": 0.5}, "methods": ("svd",)}
    plans = [
        tdjax.allocate(model, x, timings=matrices(["layers/0", "layers/1"]), **given),
        tdjax.allocate(
            linen, {"params": params}, x, timings=matrices(["layers_0", "layers_1"]), **given
        ),
        tdjax.allocate(
            lambda own, x: x @ own["a"] @ own["b"], dict(zip("ab", arrays, strict=True)), x,
            timings=matrices("ab"), **given,
        ),
    ]  # fmt: skip
    assert all(ranks_of(plan) == ranks_of(plans[0]) for plan in plans)
    assert all(2.19e-3 <= plan.seconds <= 2.25e-3 for plan in plans)
    small = tdjax.compress(
        model, [x], budget={"time": 0.5}, timings=matrices(["layers/0", "layers/1"]), refine=False,
        progress=False,
    )  # fmt: skip
    assert small.plan.seconds <= 2.25e-3
    assert small.model(x).shape == (8, 24)


def test_timings_are_taken_once_all_else_is_checked(monkeypatch):
    taken = []

    def take(model, sample, **options):
        taken.append(options)
        return matrices(["layers/0", "layers/1"])

    monkeypatch.setattr(clocks, "time_layers", take)
    model = nnx.Sequential(*(nnx.Linear(24, 24, use_bias=False, rngs=nnx.Rngs(k)) for k in (0, 1)))
    x, rules = normal(0, 8, 24), [BudgetRule(path="layers/0", methods=("tucker", "svd"))]
    given = {"budget": {"time": 0.5}, "batch": 1, "progress": False}
    plan = tdjax.allocate(model, x, methods=("svd",), rules=rules, **given)
    assert plan.seconds <= 2.25e-3
    grouped = tdjax.allocate(model, x, strategy="alds", splits=(1, 2, 3), **given)
    assert grouped.seconds <= 2.25e-3
    assert [own["methods"] for own in taken] == [("svd", "tucker"), ("svd",)]
    assert [own["splits"] for own in taken] == [None, (2, 3)]
    assert all(own["batch"] == 1 and own["progress"] is False for own in taken)
    for options, message in (
        ({"methods": ("pca",)}, "methods 'pca': known are"),
        ({"rules": [BudgetRule(path="layer", dense=True)]}, "matches no layer"),
        ({"strategy": "loss"}, "needs moments of the gradient"),
        ({"rules": [Rule(path=".*", method="svd", rank=2, splits=8)]}, r"svd /8 at .* not timed"),
    ):
        with pytest.raises(ValueError, match=message):
            tdjax.allocate(model, x, **{**given, **options})
    assert len(taken) == 2
