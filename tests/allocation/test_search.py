from itertools import product

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tdjax.allocation.search import exchanged, frontier, least_maximum, least_sum, total

TABLE = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 40).map(lambda n: n / 8)), min_size=1, max_size=5
)


def options(table):
    cost, error = zip(*table, strict=True)
    return frontier(np.array(cost), np.array(error))


def every(tables, budget):
    """All combinations within a budget, with their errors."""
    for places in product(*(range(len(table.cost)) for table in tables)):
        if total(tables, places) <= budget:
            yield [table.error[place] for table, place in zip(tables, places, strict=True)]


@given(TABLE)
def test_frontier_has_all_that_is_not_beaten(table):
    found = options(table)
    assert (np.diff(found.cost) > 0).all()
    assert (np.diff(found.error) < 0).all()
    for which, cost, error in zip(found.which, found.cost, found.error, strict=True):
        assert table[which] == (cost, error)
    for cost, error in table:
        assert any((found.cost <= cost) & (found.error <= error))


@settings(max_examples=200, deadline=None)
@given(st.lists(TABLE, min_size=1, max_size=4), st.integers(0, 100))
def test_least_maximum_is_that_of_all_combinations(drawn, budget):
    tables = [options(table) for table in drawn]
    assume(total(tables, [0] * len(tables)) <= budget)
    places = least_maximum(tables, budget)
    assert total(tables, places) <= budget
    found = max(table.error[place] for table, place in zip(tables, places, strict=True))
    assert found == min(max(errors) for errors in every(tables, budget))
    # Nothing that fits any more is left undone.
    left = budget - total(tables, places)
    for table, place in zip(tables, places, strict=True):
        assert place + 1 == len(table.cost) or table.cost[place + 1] - table.cost[place] > left


@settings(max_examples=200, deadline=None)
@given(st.lists(TABLE, min_size=1, max_size=4), st.integers(0, 100))
def test_least_sum_is_within_one_step_of_all_combinations(drawn, budget):
    tables = [options(table) for table in drawn]
    assume(total(tables, [0] * len(tables)) <= budget)
    places = least_sum(tables, budget)
    assert total(tables, places) <= budget
    found = sum(table.error[place] for table, place in zip(tables, places, strict=True))
    best = min(sum(errors) for errors in every(tables, budget))
    # The multiplier's solution loses at most what one layer can gain.
    assert best <= found <= best + max(table.error[0] - table.error[-1] for table in tables) + 1e-9


def test_many_small_steps_come_near_the_relaxed_optimum():
    """Convex curves with fine steps: the sum meets the bound of Lagrangian duality."""
    rng = np.random.default_rng(0)
    tables = []
    for _ in range(30):
        gains = np.sort(rng.exponential(size=200))[::-1] * rng.uniform(0.1, 10)
        error = np.concatenate([[gains.sum()], gains.sum() - np.cumsum(gains)])
        price = int(rng.integers(1, 5))
        tables.append(frontier(price * np.arange(201), np.maximum(error, 0)))
    for budget in (1_000, 5_000, 10_000):
        places = least_sum(tables, budget)
        found = sum(table.error[place] for table, place in zip(tables, places, strict=True))
        bound = max(
            sum(float(np.min(table.error + slope * table.cost)) for table in tables)
            - slope * budget
            for slope in np.geomspace(1e-4, 10, 2_000)
        )
        assert bound - 1e-6 <= found <= 1.001 * bound


@settings(max_examples=100, deadline=None)
@given(st.lists(TABLE, min_size=2, max_size=3), st.integers(0, 60), st.integers(0, 5))
def test_an_exchange_is_the_best_that_changes_two_layers(drawn, budget, width):
    tables = [options(table) for table in drawn]
    places = [0] * len(tables)
    places[0] = len(tables[0].cost) - 1
    found = exchanged(tables, places, budget - width, budget, lambda e: np.sum(e, axis=-1))
    fitting = [
        sum(table.error[place] for table, place in zip(tables, other, strict=True))
        for other in product(*(range(len(table.cost)) for table in tables))
        if budget - width <= total(tables, other) <= budget
        and 1 <= sum(a != b for a, b in zip(places, other, strict=True)) <= 2
        and sum(b > a for a, b in zip(places, other, strict=True)) <= 1
    ]
    if found is not None:
        assert budget - width <= total(tables, found) <= budget
        lost = sum(table.error[place] for table, place in zip(tables, found, strict=True))
        assert not fitting or lost <= min(fitting) + 1e-9
    else:
        assert not fitting
