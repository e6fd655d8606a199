"""From moments to factors at several budgets: nothing is compiled twice, and nothing is stale."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_models import normal, random_variables, scaled_normal

import tdjax
from tdjax.params.arrays import reconstruct_array
from tdjax.params.bias import lost_output, mean_output
from tdjax.params.check import factor_shapes

pytestmark = pytest.mark.filterwarnings("ignore:too few rows")
X, OTHER = normal(0, 40, 6, 6, 8), normal(1, 40, 6, 6, 8) * jnp.geomspace(1, 0.01, 8)
METHODS = ("svd", "tucker")
compiled = []


def heard(event, *_, **about):
    if event == "/jax/core/compile/backend_compile_duration":
        compiled.append(about.get("fun_name"))


class Net(nn.Module):
    """Convolutions and matrices of one shape each, with biases."""

    @nn.compact
    def __call__(self, x):
        """Images to features."""
        for k in range(3):
            x = nn.relu(nn.Conv(8, (3, 3), name=f"conv{k}")(x))
        x = x.mean(axis=(1, 2))
        for k in range(3):
            x = nn.relu(nn.Dense(8, name=f"dense{k}")(x))
        return x


@pytest.fixture(scope="module")
def variables():
    return random_variables(Net(), X)


def moments_of(variables, x):
    return tdjax.collect_moments(Net(), variables, [x], loss_fn=lambda y, _: jnp.sum(y**2, axis=1))


def test_a_further_budget_compiles_nothing(variables):
    moments = moments_of(variables, X)

    def factors_at(budget):
        plan = tdjax.allocate(
            Net(), variables, X, budget=budget, strategy="loss", methods=METHODS, moments=moments
        )
        options = {"moments": moments, "correct_bias": True}
        return plan, tdjax.factorize_params(variables["params"], plan, **options)

    plan, _ = factors_at(0.7)
    assert {entry.method for entry in plan.factorised} >= {"svd"}
    rules = [
        tdjax.Rule(path=path, method=m, rank=3) for path, m in (("conv.*", "tucker"), (".*", "svd"))
    ]
    plan = tdjax.make_plan(Net(), variables, rules, X)
    tdjax.factorize_params(variables["params"], plan, moments=moments, correct_bias=True)
    jax.monitoring.register_event_duration_secs_listener(heard)
    compiled.clear()
    for budget in (0.55, 0.4):
        factors_at(budget)
    assert compiled == []


def test_factors_are_those_of_the_moments_given(variables):
    """Whichever were used before, on the same weights and plan."""
    rules = [tdjax.Rule(path="conv1", method="svd", rank=3)]
    plan = tdjax.make_plan(Net(), variables, rules, X)
    kernel = variables["params"]["conv1"]["kernel"]
    both = [moments_of(variables, x) for x in (X, OTHER)]
    errors = np.empty((2, 2))
    for k, moments in enumerate(both):
        found = tdjax.factorize_params(variables["params"], plan, moments=moments)
        dense = tdjax.reconstruct_params(found, plan)["conv1"]["kernel"]
        for j, other in enumerate(both):
            own = other["conv1"]
            norm = tdjax.Kronecker(own.inputs[0], own.outputs[0])
            errors[k, j] = norm.relative_error(kernel, dense)
    # In each norm its own factors are the best.
    assert errors[0, 0] < 0.99 * errors[1, 0]
    assert errors[1, 1] < 0.99 * errors[0, 1]


@pytest.mark.parametrize(
    ("method", "groups"), [("svd", 1), ("tucker", 1), ("tt", 1), ("cp", 1), ("tucker", 2)]
)
def test_what_biases_take_on_is_the_same_at_rounded_ranks(method, groups):
    model, x = nn.Conv(10, (3, 3), feature_group_count=groups), normal(0, 2, 5, 5, 8)
    params = random_variables(model, x)
    rules = [tdjax.Rule(path=".*", method=method, compression=0.5)]
    (entry,) = tdjax.make_plan(model, params, rules, x).layers
    factors = {
        name: scaled_normal(k, shape, np.float32)
        for k, (name, shape) in enumerate(factor_shapes(entry).items())
    }
    array, mean = params["params"]["kernel"], normal(3, groups, 72 // groups)
    expected = mean_output(array - reconstruct_array(factors, entry), entry, mean)
    found = lost_output(array, factors, entry, mean)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
