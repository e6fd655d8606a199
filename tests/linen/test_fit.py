"""A plan that was made for another model is refused when the model is first called."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_models import MLP, Autoencoder, Classifier, ConvNet, Scanned, normal, random_variables

import tdjax
from tdjax import Plan, Rule

ALL = (Rule(path=".*", method="svd", rank=1),)
X = normal(1, 3, 8)
IMAGES = normal(2, 2, 9, 9, 3)


def planned(model, *sample, rules=ALL):
    """Variables, a plan, variables with the factors."""
    variables = random_variables(model, *sample)
    plan = tdjax.make_plan(model, variables, rules, sample)
    assert plan.factorised
    params = tdjax.factorize_params(variables["params"], plan)
    return variables, plan, {**variables, "params": params}


def shapes_of(model, *sample, **options):
    return jax.eval_shape(lambda key: model.init(key, *sample, **options), jax.random.key(0))


class Named(nn.Module):
    """Dense layers under names, of a width."""

    names: tuple[str, ...]
    width: int = 8

    @nn.compact
    def __call__(self, x):
        for name in self.names:
            x = nn.Dense(self.width, name=name)(x)
        return x


class AsConvolution(nn.Module):
    """A convolution where the plan has a dense layer."""

    @nn.compact
    def __call__(self, x):
        return nn.Conv(8, (1,), name="first")(x)


class AsBlock(nn.Module):
    """Layers of its own where the plan has a dense layer."""

    @nn.compact
    def __call__(self, x):
        return Named(("inner",), name="first")(x)


FIRST = Named(("first", "second"))
# The model that a plan of `FIRST` meets, and what it is answered with.
MISFITS = {
    "other names": (Named(("frist", "third")), "no layer 'first', 'second'.*did you mean 'frist'"),
    "fewer layers": (Named(("first",)), "the model has no layer 'second': make the plan with"),
    "other width": (
        Named(("first", "second"), 12),
        r"layer 'first' of the model is dense of kernel shape \(8, 12\), .* made for .*\(8, 8\)",
    ),
    "other kind": (
        AsConvolution(),
        r"layer 'first' of the model is conv of kernel shape \(1, 8, 8\), .* made for dense of",
    ),
    "a block": (AsBlock(), "layer 'first' has inner, not the factors input, output"),
}


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("call", ["init", "apply", "jit", "inside"])
def test_plan_of_another_model_is_refused(misfit, call):
    model, message = MISFITS[misfit]
    _, plan, _ = planned(FIRST, X)
    small, dense = tdjax.factorize(model, plan), random_variables(model, X)
    calls = {
        "init": lambda: small.init(jax.random.key(0), X),
        "inside": lambda: shapes_of(Classifier(small), X),
        "jit": lambda: jax.jit(small.apply)(dense, X),
        "apply": lambda: small.apply(dense, X),
    }
    with pytest.raises(ValueError, match=message if call in ("init", "inside") else "'first'"):
        calls[call]()


def test_dense_parameters_are_refused():
    variables, plan, _ = planned(FIRST, X)
    small = tdjax.factorize(FIRST, plan)
    with pytest.raises(ValueError, match=r"layer 'first' has .*kernel.*, not the factors input"):
        small.apply(variables, X)


def test_plan_of_an_nnx_model_is_refused_unless_it_fits():
    class Network(nnx.Module):
        def __init__(self, names, rngs):
            for name in names:
                setattr(self, name, nnx.Linear(8, 8, rngs=rngs))
            self.names = names

        def __call__(self, x):
            for name in self.names:
                x = getattr(self, name)(x)
            return x

    variables, _, _ = planned(FIRST, X)
    other = tdjax.make_plan(Network(("linear0", "linear1"), nnx.Rngs(0)), ALL, X)
    with pytest.raises(ValueError, match="the model has no layer 'linear0', 'linear1'"):
        tdjax.factorize(FIRST, other).apply(variables, X)
    same = tdjax.make_plan(Network(("first", "second"), nnx.Rngs(0)), ALL, X)
    params = tdjax.factorize_params(variables["params"], same)
    dense = tdjax.reconstruct_params(params, same)
    found = tdjax.factorize(FIRST, same).apply({"params": params}, X)
    expected = FIRST.apply({"params": dense}, X)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_layer_is_factorised_once():
    _, plan, _ = planned(FIRST, X)
    small = tdjax.factorize(FIRST, plan)
    with pytest.raises(ValueError, match="layer 'first' of the model is factorised already"):
        tdjax.factorize(small, plan)
    with pytest.raises(ValueError, match="factorised already"):
        tdjax.factorize(tdjax.factorize(FIRST, Plan(plan.layers[:1])), plan)
    # Another layer of it may be factorised later.
    twice = tdjax.factorize(tdjax.factorize(FIRST, Plan(plan.layers[:1])), Plan(plan.layers[1:]))
    assert jax.tree.map(jnp.shape, shapes_of(twice, X)) == jax.tree.map(
        jnp.shape, shapes_of(small, X)
    )


def test_other_feature_groups_and_masks_are_refused():
    x = normal(1, 2, 6, 4)
    for other, message in (
        (nn.Conv(8, (3,), feature_group_count=2), r"made for conv of kernel shape \(3, 4, 8\)"),
        (nn.Conv(8, (3,), mask=jnp.ones((3, 4, 8))), "its kernel is masked"),
    ):
        _, plan, _ = planned(nn.Conv(8, (3,)), x)
        with pytest.raises(ValueError, match=message):
            shapes_of(tdjax.factorize(other, plan), x)


def test_embeddings_of_another_size_are_refused():
    tokens = jnp.zeros((2, 3), jnp.int32)
    _, plan, _ = planned(nn.Embed(24, 12), tokens)
    with pytest.raises(ValueError, match=r"is embed of kernel shape \(30, 12\)"):
        shapes_of(tdjax.factorize(nn.Embed(30, 12), plan), tokens)


# ---------------------------------------------------------------- calls that are right


def test_methods_that_call_a_part():
    model, x = Autoencoder(), normal(4, 3, 10)
    _, plan, variables = planned(model, x, rules=[Rule(path="decoder/.*", method="svd", rank=2)])
    small = tdjax.factorize(model, plan)
    code = small.apply(variables, x, method="encode")
    part = {name: variables["params"][name] for name in ("encoder_0", "encoder_1")}
    # What is not called need not be there.
    np.testing.assert_array_equal(small.apply({"params": part}, x, method="encode"), code)
    assert set(shapes_of(small, x, method="encode")["params"]) == set(part)
    with pytest.raises(ValueError, match="the model has no layer 'decoder/layers_0'"):
        small.apply({"params": part}, x)
    other = {"params": {"body": part["encoder_0"]}}
    with pytest.raises(ValueError, match="the model has no layer 'decoder/layers_0'"):
        small.apply(other, x, method="encode")


class Auxiliary(nn.Module):
    """A head that only training calls."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8, name="body")(x)
        aside = nn.Dense(4, name="aside")(x).sum() if train else 0.0
        return nn.Dense(8, name="head")(x) + aside


def test_layers_that_only_some_calls_reach():
    model = Auxiliary()
    variables = jax.tree.map(
        lambda leaf: normal(leaf.size, *leaf.shape), shapes_of(model, X, train=True)
    )
    plan = tdjax.make_plan(model, variables, ALL, {"x": X, "train": True})
    assert len(plan.factorised) == 3
    params = tdjax.factorize_params(variables["params"], plan)
    dense = tdjax.reconstruct_params(params, plan)
    small = tdjax.factorize(model, plan)
    for train in (False, True):
        found = small.apply({"params": params}, X, train)
        expected = model.apply({"params": dense}, X, train)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert set(shapes_of(small, X, train=True)["params"]) == {"body", "aside", "head"}
    with pytest.raises(ValueError, match=r"no layer 'aside'.*only some calls reach"):
        shapes_of(small, X)


class Longer(Named):
    """Goes on behind the layers of the class that it extends."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="last")(super().__call__(x))

    def hint(self):
        """Of no use to any layer."""
        return self.width + 1


def test_subclass_that_calls_its_super_class():
    model = Longer(("first", "second"))
    _, plan, variables = planned(model, X)
    small = tdjax.factorize(model, plan)
    assert jax.tree.map(jnp.shape, shapes_of(small, X)) == jax.tree.map(jnp.shape, variables)
    assert small.apply(variables, X).shape == (3, 3)
    # A method that needs no variables, on a model without any.
    assert small.hint() == 9


class Step(nn.Module):
    """A model as the step of a scan."""

    model: nn.Module

    @nn.compact
    def __call__(self, x, _):
        return self.model(x), None


@pytest.mark.parametrize("transformed", ["remat", "jit", "scan", "vmap"])
def test_factorised_models_inside_transformations(transformed):
    _, plan, one = planned(FIRST, X)
    small = tdjax.factorize(FIRST, plan)

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            if transformed in ("remat", "jit"):
                make = {"remat": nn.remat, "jit": nn.jit}[transformed](type(small))
                return make(FIRST.names, name="inner")(x)
            axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            if transformed == "scan":
                return nn.scan(Step, length=2, **axes)(small, name="inner")(x, None)[0]
            many = nn.vmap(type(small), in_axes=None, axis_size=2, **axes)
            return many(FIRST.names, name="inner")(x)

    variables = jax.jit(Outer().init)(jax.random.key(0), X)
    copies = 1 if transformed in ("remat", "jit") else 2
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (one, variables)]
    assert sizes[1] == copies * sizes[0]
    for _ in range(2):
        assert jnp.isfinite(jax.jit(Outer().apply)(variables, X)).all()


def test_layers_inside_a_scan_of_the_model():
    model = Scanned()
    _, plan, variables = planned(model, X)
    assert plan["stack/dense"].layer.copies == 3
    small = tdjax.factorize(model, plan)
    assert jax.tree.map(jnp.shape, shapes_of(small, X)) == jax.tree.map(jnp.shape, variables)
    dense = tdjax.reconstruct_params(variables["params"], plan)
    expected = model.apply({"params": dense}, X)
    np.testing.assert_allclose(small.apply(variables, X), expected, rtol=1e-3, atol=1e-4)


def test_tables_captures_and_bound_models():
    model = ConvNet()
    _, plan, variables = planned(model, IMAGES)
    small = tdjax.factorize(model, plan)
    table = small.tabulate(jax.random.key(0), IMAGES, console_kwargs={"width": 200})
    assert "conv0/input" in table
    expected = small.apply(variables, IMAGES)
    seen, state = small.apply(
        variables, IMAGES, capture_intermediates=True, mutable=["intermediates"]
    )
    np.testing.assert_array_equal(seen, expected)
    assert "head" in state["intermediates"]
    np.testing.assert_array_equal(small.bind(variables)(IMAGES), expected)


def test_models_without_their_dead_neurons():
    """Their layers are narrower than the model's own text says."""
    model = MLP((8, 8, 8))
    params = random_variables(model, X)["params"]
    kernel = params["dense1"]["kernel"].at[:3].set(0)
    params = {**params, "dense1": {**params["dense1"], "kernel": kernel}}
    found = tdjax.remove_dead(model, {"params": params}, X)
    assert len(found.kept["dense0"]) == 5
    for narrow, variables in (
        (found.model, found.variables),
        (Classifier(found.model), random_variables(Classifier(found.model), X)),
    ):
        plan = tdjax.make_plan(narrow, variables, ALL, X)
        params = tdjax.factorize_params(variables["params"], plan)
        dense = {"params": tdjax.reconstruct_params(params, plan)}
        small = tdjax.factorize(narrow, plan)
        expected = narrow.apply(dense, X)
        np.testing.assert_allclose(small.apply({"params": params}, X), expected, 1e-4, 1e-4)
    wide = tdjax.make_plan(model, random_variables(model, X), ALL, X)
    with pytest.raises(
        ValueError, match=r"'dense0' of the model is dense of kernel shape \(8, 5\)"
    ):
        shapes_of(tdjax.factorize(found.model, wide), X)


def test_module_that_is_shared():
    class Twice(nn.Module):
        model: nn.Module

        @nn.compact
        def __call__(self, x):
            return self.model(self.model(x))

    _, plan, variables = planned(MLP((8, 8)), X)
    small = tdjax.factorize(MLP((8, 8)), plan)
    found = Twice(small).apply({"params": {"model": variables["params"]}}, X)
    np.testing.assert_allclose(found, small.apply(variables, small.apply(variables, X)), rtol=1e-5)
