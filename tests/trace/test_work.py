"""What one example multiplies where not all of a program runs, or only a share is its own."""

import json
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_models import normal, random_variables

import tdjax
from tdjax import Plan, Rule
from tdjax.trace.products import OTHER, products_of

X = normal(0, 4, 8)
LOW = [Rule(path="a", method="svd", rank=2), Rule(path=".*", method="svd", rank=1)]


class Branches(nn.Module):
    """Layers in the branches of conditions, in turns; of all of them, or of one alone."""

    branch: int | None = None

    def setup(self):
        self.a, self.b, self.c = (nn.Dense(8, use_bias=False) for _ in range(3))

    def __call__(self, x):
        def inner(m, x):
            return nn.cond(x.sum() > 0, lambda m, x: m.b(m.b(x)), lambda m, x: m.c(x), m, x)

        ways = [
            lambda m, x: m.b(m.a(x) @ x.T @ x),
            lambda m, x: m.b(m.c(m.c(m.c(x)))),
            lambda m, x: m.c(m.a(x)) if m.branch is not None else inner(m, m.a(m.a(x))),
        ]
        if self.is_initializing():
            return self.a(self.b(self.c(x)))
        if self.branch is not None:
            return self.a(ways[self.branch](self, x))
        return self.a(nn.switch(x[0, 0].astype(int), ways, self, x))


def saved(plan):
    """A plan that was written and read."""
    again = Plan.from_json(plan.to_json())
    assert (again, str(again), again.macs) == (plan, str(plan), plan.macs)
    return again


def test_of_a_condition_the_costliest_branch_counts(count_macs):
    variables = random_variables(Branches(), X)
    plan = saved(tdjax.make_plan(Branches(), variables, LOW, X))
    alone = [tdjax.make_plan(Branches(k), variables, [], X).macs for k in range(2)]
    # In the third branch the costlier of two inside it: a, a, b, b.
    assert plan.macs_before == max(*alone, 5 * 64) == 5 * 64
    # Factorised, a costs 32 and the others 16; 64 are of the products in the first.
    factors = {"params": tdjax.factorize_params(variables["params"], plan)}
    small = tdjax.factorize(Branches(0), plan)
    assert plan.macs == max(count_macs(small.apply, factors, X) // 4, 4 * 16 + 32, 3 * 32 + 2 * 16)
    text = str(plan)
    assert "of the branches of a condition, the costliest counts" in text
    for budget in (0.4, 0.7):
        found = tdjax.allocate(
            Branches(), variables, X, budget=budget, cost="macs", methods=["svd"]
        )
        assert 0.6 * budget * plan.macs_before < found.macs <= budget * plan.macs_before
    raw = json.loads(plan.to_json())
    raw["work"]["conditions"][0][0]["uses"][0]["path"] = "z"
    with pytest.raises(ValueError, match="'z' is no layer of the plan"):
        Plan.from_json(json.dumps(raw))


class Same(nn.Module):
    """One layer in both branches, in one of them twice, in the turns of a loop."""

    @nn.compact
    def __call__(self, x):
        if self.is_initializing():
            return nn.Dense(8, name="a")(x)

        def turn(m, x, _):
            layer = nn.Dense(8, name="a")
            ways = (lambda m, x: layer(x), lambda m, x: layer(layer(x)))
            return nn.cond(x.sum() > 0, *ways, m, x), None

        axes = {"variable_broadcast": "params", "split_rngs": {"params": False}, "length": 3}
        return nn.scan(turn, **axes)(self, x, None)[0]


def test_a_layer_in_both_branches():
    variables = Same().init(jax.random.key(0), X)
    plan = tdjax.make_plan(Same(), variables, LOW, X)
    assert plan.work is None
    assert (plan.macs_before, plan.macs) == (3 * 2 * 64, 3 * 2 * 32)
    # Where moments are collected, no call is left out for another.
    batch = jnp.ones((100, 8))
    first, second = (
        tdjax.collect_moments(Same(), variables, [sign * batch])["a"].inputs for sign in (1, -1)
    )
    assert float(jnp.trace(first[0])) > 0
    assert float(jnp.trace(second[0])) > 0


class Mapped(nn.Module):
    """Parameters mapped onto themselves, as Flax does it by default for `init`."""

    lift: bool = True

    @nn.compact
    def __call__(self, x):
        cls = nn.map_variables(nn.Dense, "params", init=True) if self.lift else nn.Dense
        return cls(8, name="a")(x)


def test_modules_that_flax_calls_once_more_for_their_variables():
    variables = random_variables(Mapped(lift=False), X)
    found = []
    for model in (Mapped(), Mapped(lift=False)):
        plan = tdjax.make_plan(model, variables, LOW, X)
        assert plan.macs_before == 64
        found.append(tdjax.feature_errors(model, variables, plan, [X])["a"])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


class Shared(nn.Module):
    """A layer of rows that all examples share."""

    @nn.compact
    def __call__(self, x):
        return x.sum() + nn.Dense(16, name="a", use_bias=False)(jnp.ones((5, 8)))


AXES = jnp.ones((4, 5, 8))
PARTS = {
    "rows for all": (Shared(), X, 5 * 8 * 16),
    "rows for three": (Shared(), X[:3], 5 * 8 * 16),
    "two batch axes": (nn.DenseGeneral(16, batch_dims=(0, 1)), AXES, 20 * 8 * 16),
    "one batch axis": (nn.DenseGeneral(16, batch_dims=0), AXES, 20 * 8 * 16),
    "labels": (nn.Einsum((4, 5, 8, 16), "abd,abde->abe", use_bias=False), AXES, 20 * 8 * 16),
}


@pytest.mark.parametrize("name", PARTS)
def test_an_example_has_its_exact_share(name):
    model, x, whole = PARTS[name]
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    shared = isinstance(model, Shared)
    plan = saved(tdjax.make_plan(model, variables, LOW[:1] if shared else [], x))
    assert plan.macs_before == Fraction(whole, len(x))
    if shared:
        assert plan.macs == Fraction(5 * 2 * (8 + 16), len(x))
        arrays = random_variables(model, x)
        found = tdjax.allocate(model, arrays, x, budget=0.376, cost="macs", methods=["svd"])
        assert found.macs == plan.macs_before * Fraction(3, 8)


TRANSPOSED = {"kernel_size": (3, 2), "use_bias": False, "features": 4}
DILATED = {
    "one axis": {"input_dilation": (1, 2), "strides": (2, 1), "padding": 0},
    "both": {"input_dilation": 3, "padding": 1},
    "as transposed": {"input_dilation": (2, 3), "padding": ((2, 2), (1, 2))},
}


@pytest.mark.parametrize("name", DILATED)
def test_zeros_between_inputs_are_not_multiplied(name, count_macs):
    image = normal(1, 2, 7, 6, 3)
    model = nn.Conv(**TRANSPOSED, **DILATED[name])
    variables = random_variables(model, image)
    plan = saved(tdjax.make_plan(model, variables, [Rule(path="", method="svd", rank=1)], image))
    windows = 3 * 6 if name == "one axis" else 7 * 6
    assert plan.macs_before == windows * 3 * 2 * 3 * 4
    small = tdjax.factorize(model, plan)
    factors = {"params": tdjax.factorize_params(variables["params"], plan)}
    assert products_of(jax.make_jaxpr(small.apply)(factors, image))[OTHER] == 2 * plan.macs
    if name == "as transposed":
        other = nn.ConvTranspose(**TRANSPOSED, strides=(2, 3), padding="VALID")
        assert tdjax.make_plan(other, variables, [], image).macs == plan.macs_before
        assert tdjax.make_plan(other, variables, [], image).other_macs == 0


class Score(nnx.Module):
    """The gradient of an energy, whose layers run in the turns of a loop."""

    def __init__(self, rngs):
        self.a = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        def energy(x):
            turns = jax.lax.scan(lambda x, _: (jnp.tanh(self.a(x)), None), x, length=3)
            return turns[0].sum()

        return jax.grad(energy)(x)


class Adapted(nn.Module):
    """A gradient by parameters, inside the model."""

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(8, name="a")
        _, back = nn.vjp(lambda layer, x: jnp.tanh(layer(x)).sum(), layer, x)
        by_params, by_x = back(jnp.ones(()))
        return by_x + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(by_params))


def test_gradients_that_the_model_takes():
    plan = tdjax.make_plan(Score(nnx.Rngs(0)), [], X)
    assert (plan["a"].layer.macs, plan.other_macs) == (3 * 64, 3 * 64)
    variables = random_variables(Adapted(), X)
    # By the parameters, and by the input.
    plan = tdjax.make_plan(Adapted(), variables, [], X)
    assert (plan["a"].layer.macs, plan.other_macs, plan.macs) == (64, 2 * 64, 3 * 64)


class Asking(nn.Module):
    """Asks for a layer's kernel in a way that leaves nothing in a program."""

    way: str = ""

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(8, name="a")
        before = self.way == "before" and not layer.has_variable("params", "kernel")
        y = layer(x)
        if self.way == "get" and not self.is_initializing():
            return y / layer.get_variable("params", "kernel").shape[0]
        after = self.way == "has" and not layer.has_variable("params", "kernel")
        return y * 0 if (before or after) and not self.is_initializing() else y


class Stepping(nnx.Module):
    """Takes a gradient by its layer, and asks for the kernel's."""

    def __init__(self, rngs):
        self.a = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        gradient = nnx.grad(lambda layer: layer(x).sum())(self.a)
        return self.a(x) - x @ gradient["kernel"][...]


def test_a_kernel_that_the_model_asks_for_by_name():
    variables = random_variables(Asking(), X)
    plain = tdjax.make_plan(Asking(), variables, LOW, X)
    factors = {"params": tdjax.factorize_params(variables["params"], plain)}
    for way in ("get", "has", "before"):
        model = Asking(way)
        assert "the model asks for it" in tdjax.make_plan(model, variables, LOW, X)["a"].reason
        with pytest.raises(ValueError, match=r"leave that layer out.*factorised are 'a'"):
            tdjax.factorize(model, plain).apply(factors, X)
    np.testing.assert_allclose(
        tdjax.factorize(Asking(), plain).apply(factors, X),
        Asking().apply({"params": tdjax.reconstruct_params(factors["params"], plain)}, X),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    assert "takes a gradient by it" in tdjax.make_plan(Stepping(nnx.Rngs(0)), LOW, X)["a"].reason
