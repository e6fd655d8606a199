import time

import flax.linen as nn
import jax
import pytest
from plain_models import normal

import tdjax
from tdjax import Plan, Rule
from tdjax.plan.timing import Profile, profile_calls


def test_the_slower_call_is_the_slower_one():
    calls = []

    def call(name, seconds):
        calls.append(name)
        time.sleep(seconds)

    found = profile_calls(lambda: call("dense", 0.02), lambda: call("small", 0.001), rounds=3)
    # Once untimed, then in turns.
    assert calls == ["dense", "small"] * 4
    assert found.rounds == 3
    assert found.before > found.after
    assert 1 < found.least <= found.speedup <= found.most
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        profile_calls(int, int, rounds=0)


def test_a_plan_shows_what_was_measured():
    model, x = nn.Dense(8), normal(1, 4, 8)
    variables = model.init(jax.random.key(0), x)
    plan = tdjax.make_plan(model, variables, [Rule(path="", method="svd", rank=2)], x)
    params = tdjax.factorize_params(variables["params"], plan)
    small = tdjax.factorize(model, plan)
    profiled = plan.profile(
        lambda: model.apply(variables, x), lambda: small.apply({"params": params}, x), rounds=2
    )
    assert isinstance(profiled.measured, Profile)
    # What was measured makes no other plan, and no other model class.
    assert profiled == plan
    assert tdjax.factorize(model, profiled) == small
    assert str(profiled).startswith(str(plan))
    assert "times as fast" in str(profiled)
    assert "times as fast" in profiled._repr_html_()
    assert Plan.from_json(profiled.to_json()).measured == profiled.measured
    assert "measured" not in plan.to_json()
    with pytest.raises(ValueError, match="not a plan"):
        Plan.from_json(profiled.to_json().replace('"measured": [', '"measured": [1, 2, 3, '))


def test_a_plan_is_a_table_in_a_notebook():
    model, x = nn.Dense(8), normal(1, 4, 8)
    variables = model.init(jax.random.key(0), x)
    plan = tdjax.make_plan(model, variables, [Rule(path="", method="svd", rank=2)], x)
    page = plan._repr_html_()
    assert page.startswith('<div class="tdjax-plan"><table>')
    assert page.count("<tr>") == 3
    assert "64 &rarr; 32" in page
    assert "<ul>" not in page
