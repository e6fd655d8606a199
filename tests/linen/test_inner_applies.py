"""A model that is applied inside another's call is another model, however their names agree."""

import copy
import functools
import pickle
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_models import normal

import tdjax

X = normal(0, 6, 12)
RULES = [tdjax.Rule(path=".*Dense_0", method="svd", rank=3)]


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(12)(nn.tanh(nn.Dense(20)(x)))


class Step(nn.Module):
    """A block as `nn.scan` takes it."""

    @nn.compact
    def __call__(self, x, _):
        return Block(name="block")(x), None


def scanned(x):
    scan = nn.scan(Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
    return scan(name="lifted")(x, None)[0]


def branched(module, x):
    inner = Block(name="lifted")
    if module.is_initializing():
        return inner(x)
    return nn.cond(x.sum() > -1e9, lambda m, x: m(x), lambda m, x: m(-x), inner, x)


LIFTED = {
    "plain": lambda _, x: Block(name="lifted")(x),
    "jit": lambda _, x: nn.jit(Block)(name="lifted")(x),
    "remat": lambda _, x: nn.remat(Block)(name="lifted")(x),
    "remat of jit": lambda _, x: nn.remat(nn.jit(Block))(name="lifted")(x),
    "vmap": lambda _, x: nn.vmap(
        Block, variable_axes={"params": None}, split_rngs={"params": False}
    )(name="lifted")(x),
    "scan": lambda _, x: scanned(x),
    "cond": branched,
}


class Student(nn.Module):
    """A block inside a transformation and one outside, and a teacher of the same names."""

    how: str = "plain"
    teacher: object = None

    @nn.compact
    def __call__(self, x):
        y = Block(name="own")(LIFTED[self.how](self, x))
        if self.teacher is None:
            return y
        model, variables = self.teacher
        return y, model.apply(variables, 100.0 * x)


@functools.lru_cache
def parts(how):
    """A student alone, one with a teacher, the student's variables, and the teacher's output."""
    alone = Student(how)
    variables = alone.init(jax.random.key(1), X)
    known = alone.init(jax.random.key(2), X)
    return alone, Student(how, (alone, known)), variables, alone.apply(known, 100.0 * X)


def close(a, b, tol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tol, atol=tol), a, b)


@pytest.mark.filterwarnings("ignore:too few rows")
@pytest.mark.parametrize("how", LIFTED)
def test_a_teacher_in_the_call_changes_nothing(how):
    alone, taught, variables, taught_output = parts(how)
    plan = tdjax.make_plan(taught, variables, RULES, X)
    assert plan.layers == tdjax.make_plan(alone, variables, RULES, X).layers
    assert len(plan.factorised) == 2
    params = tdjax.factorize_params(variables["params"], plan)
    dense = {"params": tdjax.reconstruct_params(params, plan)}
    found = tdjax.factorize(taught, plan).apply({"params": params}, X)
    close(found, (alone.apply(dense, X), taught_output))
    made = tdjax.factorize(taught, plan).init(jax.random.key(0), X)["params"]
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, params)


@pytest.mark.filterwarnings("ignore:too few rows")
@pytest.mark.parametrize("how", ["jit", "scan"])
def test_moments_and_errors_are_of_the_student_alone(how):
    alone, taught, variables, _ = parts(how)
    close(*(tdjax.collect_moments(m, variables, [X]) for m in (alone, taught)))
    dense = jax.tree.map(lambda x: x * 1.1, variables["params"])
    if how != "scan":
        found = [tdjax.feature_errors(m, variables, dense, [X]) for m in (alone, taught)]
        assert found[0] == found[1]


class Averaged(nn.Module):
    """Beside its own output that of itself with the average of its parameters."""

    average: object = None
    inside: bool = False

    def setup(self):
        self.block = Block()

    def __call__(self, x):
        y = self.block(x)
        if self.average is None or self.inside:
            return y
        return (
            y,
            self.clone(average=None).apply(self.average, x),
            self.block.apply({"params": self.average["params"]["block"]}, x),
        )


def test_a_factorised_model_applied_to_itself():
    net = Averaged()
    variables, average = (net.init(jax.random.key(k), X) for k in range(2))
    plan = tdjax.make_plan(net, variables, RULES, X)
    small = [{"params": tdjax.factorize_params(v["params"], plan)} for v in (variables, average)]
    dense = [{"params": tdjax.reconstruct_params(p["params"], plan)} for p in small]
    model = tdjax.factorize(net, plan)

    class Both(nn.Module):
        model: nn.Module

        @nn.compact
        def __call__(self, x):
            return self.model(x), self.model.clone().apply(small[1], x), model.apply(small[1], x)

    around = {"params": {"model": small[0]["params"]}}
    expected = net.apply(dense[0], X), net.apply(dense[1], X), net.apply(dense[1], X)
    close(Both(model).apply(around, X), expected)
    close(jax.jit(Both(model).apply)(around, X), expected)
    # Its own layers too, with dense parameters from elsewhere.
    own = tdjax.factorize(Averaged(average), plan)
    with pytest.raises(ValueError, match="layer 'block/Dense_0' has kernel"):
        own.apply(small[0], X)


class Tied(nn.Module):
    """A head that is applied to the table of an embedding, as in language models."""

    def setup(self):
        self.table, self.head = nn.Embed(9, 12), nn.Dense(9, use_bias=False)
        self.mid = nn.Dense(12)

    def __call__(self, ids):
        x = self.mid(self.table(ids))
        return self.head.apply({"params": {"kernel": self.table.embedding.T}}, x)


def test_a_layer_applied_to_arrays_of_another():
    net, ids = Tied(), jnp.arange(6).reshape(2, 3)
    variables = net.init(jax.random.key(0), ids)
    rules = [tdjax.Rule(path="mid", method="svd", rank=2)]
    plan = tdjax.make_plan(net, variables, rules, ids)
    assert [entry.layer.path for entry in plan.layers] == ["table", "mid"]
    params = tdjax.factorize_params(variables["params"], plan)
    dense = {"params": tdjax.reconstruct_params(params, plan)}
    close(tdjax.factorize(net, plan).apply({"params": params}, ids), net.apply(dense, ids))


class Backbone(nn.Module):
    def setup(self):
        self.stem, self.rest = nn.Dense(14), [nn.Dense(14), nn.Dense(14)]
        self.table = nn.Embed(5, 14)

    def __call__(self, x):
        return self.features(x) + self.table(jnp.zeros(len(x), jnp.int32))

    def features(self, x):
        for layer in (self.stem, *self.rest):
            x = nn.tanh(layer(x))
        return x


class Whole(nn.Module):
    backbone: nn.Module = Backbone()

    def setup(self):
        self.head = nn.Dense(3)

    def __call__(self, x):
        return self.head(self.backbone(x))


@functools.lru_cache
def taken_out():
    net = Whole()
    variables = net.init(jax.random.key(0), X)
    rules = [tdjax.Rule(path="backbone/.*", method="svd", rank=3)]
    plan = tdjax.make_plan(net, variables, rules, X)
    assert len(plan.factorised) == 4
    small = {"params": tdjax.factorize_params(variables["params"], plan)}
    dense = {"params": tdjax.reconstruct_params(small["params"], plan)}
    return net, tdjax.factorize(net, plan), dense, small


PLACES = {
    "a submodule": lambda m, x: m.backbone(x),
    "its method": lambda m, x: m.backbone.features(x),
    "a layer": lambda m, x: m.backbone.stem(x),
    "a layer of a list": lambda m, x: m.backbone.rest[1](m.backbone.stem(x)),
    "an embedding": lambda m, x: m.backbone.table.attend(m.backbone.stem(x)),
    "the model after it": lambda m, x: (m.backbone(x), m(x)),
}


@pytest.mark.parametrize("place", PLACES)
def test_modules_called_from_outside(place):
    net, small, dense, params = taken_out()
    call = PLACES[place]

    def ready(model, variables):
        bound = model.bind(variables)
        bound(X)
        return bound

    expected = call(ready(net, dense), X)
    close(call(ready(small, params), X), expected)
    close(small.apply(params, X, method=call), net.apply(dense, X, method=call))
    close(nn.apply(call, small)(params, X), nn.apply(call, net)(dense, X))
    made = small.init(jax.random.key(0), X, method=call)["params"]["backbone"]
    assert not any("kernel" in own and own["kernel"].shape[-1] == 14 for own in made.values())


def test_a_model_of_its_own_from_a_part():
    net, small, dense, params = taken_out()
    bound = small.bind(params)
    bound(X)
    backbone, own = bound.backbone.unbind()
    expected = Backbone().apply({"params": dense["params"]["backbone"]}, X)
    close(backbone.apply(own, X), expected)
    close(small.backbone.apply(own, X), expected)
    head = Whole(small.backbone)
    close(head.apply(params, X), net.apply(dense, X))
    assert small == small.clone()
    assert small != net
    assert bound.unbind()[0] == small
    for model in (small, backbone):
        for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            assert again == model
            assert type(again) is type(model)


class Headed(nn.Module):
    backbone: nn.Module

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(self.backbone(x))


class TwoHeaded(nn.Module):
    def setup(self):
        backbone = Backbone()
        self.first = Headed(backbone)
        self.second = Headed(backbone)

    def __call__(self, x):
        return self.first(x) + self.second(x)


class Around(nn.Module):
    net: nn.Module

    def __call__(self, x):
        return self.net.second.backbone.rest[1](self.net.second.backbone(x))


class Sharing(nn.Module):
    net: nn.Module

    def setup(self):
        nn.share_scope(self, self.net)

    def __call__(self, x):
        return self.net(x)


def test_a_model_whose_scope_another_shares():
    net, small, dense, params = taken_out()
    close(Sharing(small).apply(params, X), net.apply(dense, X))


def test_a_submodule_that_two_modules_use():
    net = TwoHeaded()
    variables = net.init(jax.random.key(0), X)
    rules = [tdjax.Rule(path=".*/(backbone/.*|Dense_0)", method="svd", rank=2)]
    plan = tdjax.make_plan(net, variables, rules, X)
    shared = {"stem", "rest_0", "rest_1", "table"}
    assert {entry.layer.path for entry in plan.factorised} == {
        *(f"first/backbone/{name}" for name in shared), "first/Dense_0", "second/Dense_0",
    }  # fmt: skip
    small, params = tdjax.factorize(net, plan), tdjax.factorize_params(variables, plan)
    dense = tdjax.reconstruct_params(params, plan)
    bound, expected = small.bind(params), net.bind(dense)
    close(bound.second(X), expected.second(X))
    expected = expected.second.backbone(X)
    close(bound.second.backbone(X), expected)
    backbone, own = bound.second.backbone.unbind()
    close(backbone.apply(own, X), expected)
    inside = [
        Around(model).apply({"params": {"net": own["params"]}}, X)
        for model, own in ((small, params), (net, dense))
    ]
    close(*inside)


def recorded(cls):
    """A decorator as libraries of models have them: `__init__` writes down what it was given."""
    init = cls.__init__

    @functools.wraps(init)
    def wrapped(self, *args, **kwargs):
        self.register(dict(kwargs))
        init(self, *args, **kwargs)

    cls.__init__ = wrapped
    return cls


class Registering:
    """What is mixed in."""

    def register(self, given):
        object.__setattr__(self, "given", given)

    @property
    def config(self):
        return self.given


@recorded
class Recorded(nn.Module, Registering):
    width: int = 12
    extra: tuple = ()

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.config["width"])(x)

    def __eq__(self, other):
        return type(self) is type(other) and self.width == other.width

    def __hash__(self):
        return self.width


class Registered(nn.Module):
    registry: ClassVar = {}

    def __init_subclass__(cls, *, tag):
        super().__init_subclass__()
        cls.tag = tag
        Registered.registry[cls.__name__] = cls


class Tagged(Registered, tag=2.0):
    @nn.compact
    def __call__(self, x):
        return self.tag * nn.Dense(12)(x)


def test_a_class_does_not_hear_of_its_factorised_subclass():
    net = Tagged()
    variables = net.init(jax.random.key(0), X)
    plan = tdjax.make_plan(net, variables, RULES, X)
    params = tdjax.factorize_params(variables["params"], plan)
    dense = {"params": tdjax.reconstruct_params(params, plan)}
    close(tdjax.factorize(net, plan).apply({"params": params}, X), net.apply(dense, X))
    assert Registered.registry == {"Tagged": Tagged}


def test_what_a_class_does_when_it_is_made():
    net = Recorded(width=12)
    variables = net.init(jax.random.key(0), X)
    plan = tdjax.make_plan(net, variables, RULES, X)
    small = tdjax.factorize(net, plan)
    assert small.config == {"width": 12}
    assert hash(small) == 12
    assert small == tdjax.factorize(Recorded(width=12, extra=(1,)), plan)
    assert small != net
    params = tdjax.factorize_params(variables["params"], plan)
    dense = {"params": tdjax.reconstruct_params(params, plan)}
    close(small.apply({"params": params}, X), net.apply(dense, X))
    assert small.clone(width=7).config["width"] == 7
