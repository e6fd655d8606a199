"""Budgets in bytes: ranks and numbers chosen together."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_models import normal

import tdjax
from tdjax.allocation.rounding import bytes_of, dense_parts, parts_of
from tdjax.params.arrays import decompose_array, reconstruct_array
from tdjax.params.options import Options
from tdjax.plan.dtypes import DTYPES

X = normal(0, 512, 4, 4, 8)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(24, (3, 3), name="conv")(x)).mean(axis=(1, 2))
        return nn.Dense(10, name="head")(nn.relu(nn.Dense(48, name="dense")(x)))


class Wide(nn.Module):
    """A wide layer of few directions below a small one that needs all of its own."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10, name="head")(nn.relu(nn.Dense(120, name="wide")(x)))


def falling(array):
    """An array with singular values that fall as those of trained layers do."""
    if array.ndim < 2:
        return array
    left, values, right = jnp.linalg.svd(array.reshape(-1, array.shape[-1]), full_matrices=False)
    values = values * jnp.exp(-0.3 * jnp.arange(len(values)))
    return ((left * values) @ right).reshape(array.shape)


def loss(outputs, batch):
    return (outputs**2).sum(axis=-1)


@pytest.fixture(scope="module")
def measured():
    variables = jax.tree.map(falling, Net().init(jax.random.key(0), X))
    moments = tdjax.collect_moments(Net(), variables, [X], loss_fn=loss)
    return variables, moments


def curve(measured, budgets, net=Net(), x=X, **options):  # noqa: B008
    variables, moments = measured
    return tdjax.budget_curve(
        net, variables, x, budgets, moments=moments, cost="bytes", methods=("svd", "tucker"),
        **options,
    )  # fmt: skip


def test_together_they_lose_less():
    x, budgets = normal(1, 1280, 64), (0.1, 0.25)
    params = Wide().init(jax.random.key(0), x)["params"]
    variables = {"params": {**params, "wide": jax.tree.map(falling, params["wide"])}}
    measured = variables, tdjax.collect_moments(Wide(), variables, [x], loss_fn=loss)
    found = curve(measured, budgets, Wide(), x)
    for dtype in DTYPES:
        alone = curve(measured, [0.25], Wide(), x, dtypes=(dtype,))
        assert alone.bytes[0] <= 0.25 * alone.plans[0].bytes_before
        assert found.rises[1] <= alone.rises[0], dtype
        if dtype in ("float32", "int8"):
            # Ranks alone, and integers alone.
            assert found.rises[1] < 0.9 * alone.rises[0], dtype
    whole = found.plans[0].bytes_before
    assert (found.bytes <= np.array(budgets) * whole).all()
    assert found.rises[0] > found.rises[1]
    assert [plan.bytes for plan in found.plans] == found.bytes.tolist()


def test_predicted_errors_are_those_of_the_factors(measured):
    """What a plan's rounded factors lose in the norm of the moments, multiplied out."""
    variables, moments = measured
    for dtype in ("int8", "int4"):
        found = curve(measured, [0.12], dtypes=(dtype,), rules=[
            tdjax.BudgetRule(path="(conv|dense)", max_share=0.6, methods=("svd",)),
        ])  # fmt: skip
        (plan,) = found.plans
        params = tdjax.factorize_params(variables["params"], plan, moments=moments)
        dense, lost = tdjax.reconstruct_params(params, plan), 0.0
        for entry in plan.layers:
            path, own = entry.layer.path, moments[entry.layer.path]
            kernels = (tree[path]["kernel"] for tree in (variables["params"], dense))
            before, after = (np.asarray(k).reshape(-1, k.shape[-1]) for k in kernels)
            change, inputs, outputs = before - after, own.inputs[0], own.outputs[0]
            rows = float(own.rows) / float(own.examples)
            lost += 0.5 * rows * np.trace(outputs @ change.T @ inputs @ change)
        assert {entry.dtype for entry in plan.layers} == {dtype}
        assert 0.5 < found.rises[0] / lost < 2


def test_bytes_of_choices_are_those_of_plans():
    layers = (
        tdjax.Layer("conv", "conv", (3, 3, 9, 16), 1, (8, 8), (8, 8)),
        tdjax.Layer("groups", "conv", (3, 1, 6, 16), 2, (8, 8), (8, 8)),
        tdjax.Layer("dense", "dense", (24, 36)),
    )
    forms = {
        tdjax.Form("svd"): (3,), tdjax.Form("svd", fold="rows"): (4,), tdjax.Form("cp"): (5,),
        tdjax.Form("tucker"): (3, 5), tdjax.Form("tt"): (3, 4, 5),
        tdjax.Form("svd", splits=3): (3,),
    }  # fmt: skip
    for layer in layers:
        for form, ranks in forms.items():
            if layer.is_matrix and form != tdjax.Form("svd"):
                continue
            many = np.array([ranks, np.array(ranks) + 1, np.array(ranks) + 2])
            for dtype in ("bfloat16", "int8", "int4"):
                found = bytes_of(layer, form, many, dtype)
                for own, expected in zip(many.tolist(), found.tolist(), strict=True):
                    made = tdjax.Form(form.method, tuple(own), splits=form.splits, fold=form.fold)
                    assert tdjax.PlannedLayer(layer, made, dtype=dtype).bytes == expected


def test_compressed_model(measured):
    variables, _ = measured
    small = tdjax.compress(
        Net(), variables, [X], budget=0.2, cost="bytes", refine=False, progress=False
    )
    assert small.plan.bytes <= 0.2 * small.plan.bytes_before
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(small.variables))
    assert held == small.plan.bytes
    exact, found = Net().apply(variables, X), small.model.apply(small.variables, X)
    assert float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)) < 0.1


def test_what_is_refused(measured):
    variables, _ = measured

    def allocate(**options):
        return tdjax.allocate(Net(), variables, X, budget={"bytes": 0.2}, **options)

    with pytest.raises(ValueError, match="dtypes 'int3': known are float32"):
        allocate(dtypes=("int3",))
    with pytest.raises(ValueError, match="must name at least one"):
        allocate(dtypes=())
    with pytest.raises(ValueError, match="strategy 'uniform' does not know what rounding loses"):
        allocate(strategy="uniform", dtypes=("int8",))
    with pytest.raises(ValueError, match="no bytes are counted: pass cost='bytes'"):
        tdjax.allocate(Net(), variables, X, budget=0.5, dtypes=("int8",))
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    with pytest.raises(ValueError, match="holds bfloat16: bytes are counted of networks in"):
        tdjax.allocate(Net(), halves, X, budget={"bytes": 0.2})
    assert {entry.dtype for entry in allocate(strategy="uniform").layers} == {None}


@pytest.mark.parametrize(
    ("form", "groups"),
    [
        (tdjax.Form("cp", (3,)), 2),
        (tdjax.Form("cp", (3,), spatial="merged"), 1),
        (tdjax.Form("svd", (1,), splits=4, fold="rows"), 1),
        (tdjax.Form("svd", (3,), fold="rows"), 1),
        (tdjax.Form("tucker", (2, 3), nonzeros=5), 1),
    ],
)
def test_factors_are_multiplied_out_as_programs_do(form, groups):
    layer = tdjax.Layer("conv", "conv", (3, 3, 4, 6), groups, (8, 8), (8, 8))
    entry, array = tdjax.PlannedLayer(layer, form), normal(0, 3, 3, 4, 6)
    factors = decompose_array(array, entry, Options(key=jax.random.key(0), max_iters=2))
    expected = parts_of(reconstruct_array(factors, entry), layer)
    np.testing.assert_allclose(dense_parts(factors, entry), expected, atol=1e-5)
