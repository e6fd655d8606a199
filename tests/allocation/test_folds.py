"""Foldings of a convolution's kernel as what a strategy chooses from, against NumPy."""

import flax.linen as nn
import numpy as np
import pytest
from plain_models import normal, random_variables

import tdjax
from tdjax.allocation.measures import operator_bound
from tdjax.plan.low_rank import folds_of

ORDERS = {
    "channel": ((0, 1, 2), (3,)),
    "rows": ((0, 2), (1, 3)),
    "columns": ((1, 2), (0, 3)),
    "window": ((2,), (0, 1, 3)),
}
MODEL, X = nn.Sequential([nn.Conv(9, (3, 3)), nn.relu, nn.Conv(8, (3, 3))]), normal(0, 1, 6, 6, 6)


def folded(kernel, fold):
    rows, columns = ORDERS[fold]
    kernel = np.asarray(kernel, np.float64)
    return kernel.transpose(*rows, *columns).reshape(np.prod([kernel.shape[k] for k in rows]), -1)


def unfolded(matrix, fold, shape):
    order = sum(ORDERS[fold], ())
    return matrix.reshape([shape[k] for k in order]).transpose(np.argsort(order))


def low_rank(fold, rank, shape, seed):
    rows, columns = folded(np.zeros(shape), fold).shape
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))
    return unfolded(matrix, fold, shape).astype(np.float32)


@pytest.mark.parametrize("folds", [("rows", "window"), ("columns", "channel")])
def test_each_layer_takes_the_fold_in_which_it_is_of_low_rank(folds):
    variables = random_variables(MODEL, X)
    for k, (name, fold) in enumerate(zip(("layers_0", "layers_2"), folds, strict=True)):
        own = variables["params"][name]
        own["kernel"] = low_rank(fold, 2, own["kernel"].shape, k)
    plan = tdjax.allocate(
        MODEL, variables, X, budget={"params": 0.3}, strategy="alds+", splits=(1,)
    )
    assert tuple(entry.form.fold for entry in plan.factorised) == folds
    dense = tdjax.reconstruct_params(tdjax.factorize_params(variables["params"], plan), plan)
    for name in ("layers_0", "layers_2"):
        np.testing.assert_allclose(
            dense[name]["kernel"], variables["params"][name]["kernel"], atol=1e-4
        )


def test_the_bound_holds_in_every_fold_and_is_no_worse_than_without_them():
    variables, worst = random_variables(MODEL, X), {}
    for strategy in ("alds", "alds+"):
        plan = tdjax.allocate(MODEL, variables, X, budget=0.5, strategy=strategy)
        dense = tdjax.reconstruct_params(tdjax.factorize_params(variables["params"], plan), plan)
        bounds = [0.0]
        for entry in plan.factorised:
            own, made = (t[entry.layer.path]["kernel"] for t in (variables["params"], dense))
            whole, lost = (folded(a, entry.form.fold) for a in (own, own - made))
            bounds.append(operator_bound(own, entry))
            assert np.linalg.norm(lost, 2) <= 1.001 * bounds[-1] * np.linalg.norm(whole, 2)
        worst[strategy] = max(bounds)
    assert worst["alds+"] <= worst["alds"]


def test_only_folds_that_differ_are_tried():
    assert folds_of((3, 3)) == ("channel", "rows", "columns", "window")
    assert folds_of((1, 7)) == ("channel", "rows")
    assert folds_of((7, 1)) == ("channel", "columns")
    assert folds_of((5,)) == ("channel", "window")
    assert folds_of((1, 1)) == folds_of(()) == ("channel",)
    assert folds_of((2, 3, 3)) == ("channel", "window")
