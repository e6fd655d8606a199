from itertools import product

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_models import normal, random_variables

import tdjax
from tdjax.allocation import exact, measures
from tdjax.allocation.allocate import STRATEGIES, allocate
from tdjax.allocation.exact import distinct, nearest
from tdjax.allocation.search import total
from tdjax.linen import inventory

TABLE = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 40).map(lambda n: n / 8)), min_size=1, max_size=5
)


def options(table, scale=1):
    cost, error = zip(*table, (40, 0.0), strict=True)
    return distinct(scale * np.array(cost), np.array(error))


@given(TABLE)
def test_every_cost_below_the_dense_layer_is_there_once(table):
    found = options(table)
    least: dict[int, float] = {}
    for cost, error in table:
        least[cost] = min(error, least.get(cost, np.inf))
    assert dict(zip(found.cost.tolist(), found.error.tolist(), strict=True)) == {**least, 40: 0.0}
    assert (np.diff(found.cost) > 0).all()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(TABLE, min_size=1, max_size=4),
    st.integers(0, 170),
    st.integers(0, 5),
    st.sampled_from([np.add, np.maximum]),
    st.sampled_from([1, 6]),
)
def test_it_is_the_best_of_all_combinations(drawn, budget, width, together, scale):
    tables = [options(table, scale) for table in drawn]
    budget = max(scale * budget, total(tables, [0] * len(tables)))
    places = nearest(tables, budget - scale * width, budget, together)
    lost = lambda at: together.reduce([t.error[p] for t, p in zip(tables, at, strict=True)])  # noqa: E731
    every = [
        (cost, lost(at))
        for at in product(*(range(len(table.cost)) for table in tables))
        if (cost := total(tables, at)) <= budget
    ]
    inside = [error for cost, error in every if cost >= budget - scale * width]
    found = total(tables, places)
    if inside:
        assert budget - scale * width <= found <= budget
        assert lost(places) == min(inside)
    else:
        assert found == max(cost for cost, _ in every)


def test_large_costs_share_cells(monkeypatch):
    """Without a common divisor and with few cells, half a percent is still met."""
    monkeypatch.setattr(exact, "MOST_CELLS", 1_000)
    rng = np.random.default_rng(0)
    for _ in range(10):
        dense = rng.integers(10**6, 10**7, 6)
        tables = [
            distinct(np.append(rng.integers(1, top, 40), top), np.append(rng.random(40), 0.0))
            for top in dense
        ]
        budget = int(0.6 * dense.sum())
        places = nearest(tables, int(0.595 * dense.sum()), budget, np.add)
        assert 0.595 * dense.sum() <= total(tables, places) <= budget


class Wide(nn.Module):
    widths: tuple[int, ...] = (16, 16, 8)

    @nn.compact
    def __call__(self, x):
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return x


@pytest.fixture(scope="module")
def network():
    x = normal(0, 200, 12)
    variables = random_variables(Wide(), x)
    loss = lambda y, _: jnp.sum(y**2, axis=-1)  # noqa: E731
    moments = tdjax.collect_moments(Wide(), variables, [x], loss_fn=loss)
    return inventory(Wide(), variables, x), moments


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("cost", ["params", "macs"])
def test_every_budget_that_can_be_met_is(network, strategy, cost):
    model, moments = network
    shapes = [layer.kernel_shape for layer in model.layers]
    other = model.other if cost == "params" else 0
    whole = sum(a * b for a, b in shapes) + other
    choices = [
        [a * b, *(r * (a + b) for r in range(1, a * b) if r * (a + b) < a * b)] for a, b in shapes
    ]
    sums = {sum(found) + other for found in product(*choices)}
    refused = 0
    # Half percents, in whole numbers: rounding decides nothing.
    for percents in range(20, 100, 3 if cost == "params" else 5):
        budget = percents / 100
        least, most = (2 * percents - 1) * whole, 2 * percents * whole
        within = any(least <= 200 * found <= most for found in sums)
        given = {"strategy": strategy, "methods": ("svd",), "splits": (1,), "moments": moments}
        if within:
            plan = allocate(model, budget=budget, cost=cost, **given)
            found = plan.size if cost == "params" else plan.macs
            assert found in sums
            assert least <= 200 * found <= most
        else:
            refused += 1
            with pytest.raises(ValueError, match=r"cannot be met within 0\.5%|out of reach"):
                allocate(model, budget=budget, cost=cost, **given)
    assert refused


def test_a_budget_that_is_a_whole_number_is_met_exactly():
    """29 of 100 parameters, though 0.29 * 100 is less than 29 in floating point."""
    model, x = nn.Sequential([nn.Dense(9, use_bias=False), nn.Dense(1)]), normal(0, 2, 10)
    variables = random_variables(model, x)
    plan = tdjax.allocate(model, variables, x, budget=0.29, methods=("svd",))
    assert plan.size_before == 100
    assert plan.size == 29


def test_one_large_layer_meets_any_budget(monkeypatch):
    """Shares of whole percents are too far apart for it."""
    layer, x = nn.Dense(1000), normal(0, 1, 1000)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    for budget in (0.5055, 0.5075, 0.5095):
        plan = tdjax.allocate(layer, variables, x, budget=budget, strategy="uniform")
        assert budget - 0.005 <= plan.size / plan.size_before <= budget
    # Rank 102 alone has the right size, which no whole percent asks for.
    monkeypatch.setattr(measures, "SWEEPS", 1)
    layer, x = nn.Conv(48, (9,)), normal(0, 1, 2, 48)
    variables = random_variables(layer, x)
    plan = tdjax.allocate(layer, variables, x, budget=0.518, methods=("cp",))
    assert plan[""].ranks == (102,)
