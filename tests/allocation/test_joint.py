from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdjax.allocation import joint
from tdjax.allocation.exact import smallest
from tdjax.allocation.joint import joint_table, within_both
from tdjax.allocation.search import frontier, least_maximum, least_sum, total

COST = st.integers(0, 12)
TABLE = st.lists(
    st.tuples(COST, COST, st.integers(0, 40).map(lambda n: n / 8)), min_size=1, max_size=5
)
SEARCH = {"add": (np.add, least_sum), "maximum": (np.maximum, least_maximum)}


@settings(max_examples=60, deadline=None)
@given(st.lists(TABLE, min_size=1, max_size=4), COST, COST, st.sampled_from(["add", "maximum"]))
def test_it_is_the_best_of_all_combinations_within_both(drawn, first, second, name):
    together, search = SEARCH[name]
    arrays = [np.array(table) for table in drawn]
    tables = [joint_table(own[:, :2].astype(int), own[:, 2]) for own in arrays]
    most = len(drawn) * np.array([first, second])
    every = [
        together.reduce([errors for *_, errors in entries])
        for entries in product(*drawn)
        if (np.sum([entry[:2] for entry in entries], axis=0) <= most).all()
    ]
    places = within_both(tables, most, search, together)
    assert (places is None) == (not every)
    if places is not None:
        taken = [
            own[table.which[at]] for own, table, at in zip(arrays, tables, places, strict=True)
        ]
        assert (np.sum([own[:2] for own in taken], axis=0) <= most).all()
        assert together.reduce([own[2] for own in taken]) == min(every)


def dual_bound(tables, most):
    """What no choices within both limits lose less than: the best of multipliers, ever nearer."""
    centre, width = np.log([0.01, 0.01]), 5.0
    for _ in range(8):
        grid = [
            np.exp(centre + width * np.array(at)) for at in product((-1, -0.5, 0, 0.5, 1), repeat=2)
        ]
        bounds = [
            sum(np.min(own.error + own.costs @ slopes) for own in tables) - slopes @ most
            for slopes in grid
        ]
        centre, width = np.log(grid[int(np.argmax(bounds))]), width / 2
    return max(bounds)


@pytest.mark.parametrize("name", SEARCH)
def test_many_small_steps_come_near_the_relaxed_optimum(monkeypatch, name):
    """Without looking at combinations: near the bound of duality, or of the least level."""
    monkeypatch.setattr(joint, "MOST_ENTRIES", 0)
    together, search = SEARCH[name]
    rng, tables = np.random.default_rng(0), []
    for _ in range(20):
        steps = np.arange(51)
        costs = np.stack([steps * rng.integers(1, 9), steps * rng.integers(1, 9)], axis=1)
        tables.append(joint_table(costs, rng.uniform(1, 9) * (1 - steps / 50) ** 2))
    whole = sum(table.costs.max(axis=0) for table in tables)
    for shares in ((0.5, 0.5), (0.8, 0.4)):
        most = (whole * shares).astype(int)
        places = within_both(tables, most, search, together)
        chosen = list(zip(tables, places, strict=True))
        assert (sum(table.costs[at] for table, at in chosen) <= most).all()
        found = together.reduce([table.error[at] for table, at in chosen])
        if name == "add":
            bound = dual_bound(tables, most)
        else:
            levels = np.unique(np.concatenate([own.error for own in tables]))
            fits = [
                (sum(own.costs[own.error <= level].min(axis=0) for own in tables) <= most).all()
                for level in levels
            ]
            bound = levels[np.argmax(fits)]
        assert bound - 1e-9 <= found <= 1.02 * bound


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(COST, COST), min_size=1, max_size=5), min_size=1, max_size=4),
    st.integers(0, 40),
)
def test_the_smallest_within_a_sum_of_errors(drawn, most):
    arrays = [np.array(table) for table in drawn]
    tables = [frontier(own[:, 0], own[:, 1].astype(float)) for own in arrays]
    fitting = [
        sum(cost for cost, _ in entries)
        for entries in product(*drawn)
        if sum(error for _, error in entries) <= most
    ]
    if fitting:
        places = smallest(tables, float(most))
        assert sum(own.error[at] for own, at in zip(tables, places, strict=True)) <= most
        assert total(tables, places) == min(fitting)
