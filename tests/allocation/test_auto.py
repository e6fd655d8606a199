import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_models import Scanned, TwoConvs, normal, random_variables

import tdjax
from tdjax import Rule
from tdjax.params.factorize import replace_kernel
from tdjax.plan.decide import plan_layer

RULE = Rule(path=".*", method="auto", compression=0.6)


def weight_error(params, plan, path):
    dense = tdjax.reconstruct_params(
        tdjax.factorize_params(params, plan, key=jax.random.key(0)), plan
    )
    return float(tdjax.weight_errors(params[path]["kernel"], dense[path]["kernel"])["relative"])


def test_the_best_of_all_methods_is_taken():
    model, x = TwoConvs(), normal(1, 2, 7, 7, 3)
    variables = random_variables(model, x)
    rule = Rule(path="second", method="auto", compression=0.6)
    plan = tdjax.make_plan(model, variables, [rule], x)
    found = weight_error(variables["params"], plan, "second")
    for method in ("cp", "tucker", "tt", "svd"):
        other = tdjax.make_plan(
            model, variables, [Rule(path="second", method=method, compression=0.6)], x
        )
        # CP starts from other random factors each time, and may end elsewhere.
        slack = 0.1 if "cp" in (method, plan["second"].method) else 1e-5
        assert found <= weight_error(variables["params"], other, "second") + slack


@pytest.mark.parametrize("method", ["cp", "tucker", "tt", "svd"])
def test_a_kernel_of_low_rank_in_one_format_gets_that_format(method):
    model, x = nn.Conv(16, (3, 3)), normal(1, 2, 7, 7, 12)
    variables = random_variables(model, x)
    (layer,) = tdjax.layer_table(model, variables, x)
    entry = plan_layer(layer, Rule(path="", method=method, compression=0.6))
    small = tdjax.factorize(model, tdjax.Plan((entry,)))
    params = small.init(jax.random.key(3), x)["params"]
    kernel = tdjax.reconstruct_params(params, tdjax.Plan((entry,)))["kernel"]
    params = replace_kernel(variables["params"], "", kernel)
    plan = tdjax.make_plan(model, {"params": params}, [RULE], x)
    assert plan[""].method == method


def test_a_matrix_of_kronecker_structure_becomes_a_tt_matrix():
    model, x = nn.Dense(64), normal(1, 2, 64)
    variables = random_variables(model, x)
    first, second = normal(2, 8, 8), normal(3, 8, 8)
    kernel = jnp.asarray(np.kron(first, second))
    params = replace_kernel(variables["params"], "", kernel)
    rule = Rule(path="", method="auto", compression=0.5)
    assert tdjax.make_plan(model, {"params": params}, [rule], x)[""].method == "tt"
    low = replace_kernel(params, "", normal(2, 64, 16) @ normal(3, 16, 64))
    assert tdjax.make_plan(model, {"params": low}, [rule], x)[""].method == "svd"


def test_a_stack_is_judged_as_a_whole():
    model, x = Scanned(), normal(1, 2, 8)
    variables = random_variables(model, x)
    plan = tdjax.make_plan(model, variables, [RULE], x)
    assert plan["stack/dense"].method in ("svd", "tt")


def test_what_cannot_be_judged_is_refused():
    model, x = TwoConvs(), normal(1, 2, 7, 7, 3)
    variables = random_variables(model, x)
    shapes = jax.eval_shape(lambda: variables)
    with pytest.raises(ValueError, match=r"'\.\*' \(auto\): layer 'first': needs the kernel"):
        tdjax.make_plan(model, shapes, [RULE], x)
    params = replace_kernel(variables["params"], "first", jnp.full((3, 3, 3, 6), jnp.nan))
    with pytest.raises(ValueError, match="layer 'first': the kernel holds NaN or Inf"):
        tdjax.make_plan(model, {"params": params}, [RULE], x)
    with pytest.raises(ValueError, match="compared at equal size, give compression"):
        Rule(path=".*", method="auto", rank=3)


def test_a_kernel_of_low_rank_with_the_window_as_one_mode_gets_that_form():
    model, x = nn.Conv(16, (3, 3)), normal(1, 2, 7, 7, 12)
    variables = random_variables(model, x)
    spatial, inputs, outputs = (normal(k, size, 20) for k, size in enumerate((9, 12, 16)))
    kernel = jnp.einsum("kr,cr,tr->kct", spatial, inputs, outputs).reshape(3, 3, 12, 16)
    params = replace_kernel(variables["params"], "", kernel)
    rules = [Rule(path=".*", method="auto", compression=0.5)]
    plans = [
        tdjax.make_plan(model, {"params": params}, rules, x),
        tdjax.allocate(model, {"params": params}, x, budget={"params": 0.5}, methods=("cp", "svd")),
    ]
    assert [str(plan[""].form) for plan in plans] == ["cp merged"] * 2
