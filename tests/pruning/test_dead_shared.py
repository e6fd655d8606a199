"""Neurons that go into layers which take something else too, in Linen and NNX."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_layers import random_like
from plain_models import normal, random_variables

import tdjax
from tdjax.pruning.dead import _taken

WIDTH = 6


def same_function(model, variables, x):
    """The removal, checked to be the same function."""
    found = tdjax.remove_dead(model, variables, x)
    expected, got = model.apply(variables, x), found.model.apply(found.variables, x)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    return found


def without(variables, path, rows=(1, 4)):
    """Variables with some rows of a layer's kernel set to zero."""
    own = variables["params"][path]
    kernel = own["kernel"].at[jnp.array(rows)].set(0)
    return {**variables, "params": {**variables["params"], path: {**own, "kernel": kernel}}}


class Towers(nn.Module):
    """Two layers into one head; `kind` says what else is done with their neurons."""

    kind: str = "two"

    @nn.compact
    def __call__(self, x):
        head = nn.Dense(4, name="head")
        a = nn.relu(nn.Dense(WIDTH, name="a")(x))
        b = nn.relu(nn.Dense(WIDTH, name="b")(x))
        if self.kind == "two":
            return head(a) + 2 * head(b)
        if self.kind == "raw":
            return head(a) + head(x) + nn.Dense(4, name="other")(b)
        if self.kind == "elsewhere":
            return head(a) + 2 * head(b) + nn.Dense(4, name="other")(b)
        if self.kind == "alone":
            return head(a) + head(2 * a) + nn.Dense(4, name="other")(b)
        raise ValueError(self.kind)


@pytest.mark.parametrize("kind", ["two", "raw", "elsewhere"])
def test_a_head_that_takes_other_inputs_too(kind):
    x = normal(0, 3, WIDTH)
    model = Towers(kind)
    found = same_function(model, without(random_variables(model, x), "head"), x)
    assert found.kept == {}
    assert found.obstacles["a"] == "layer 'head' takes other inputs too"


def test_a_head_that_takes_one_layer_twice():
    x, model = normal(0, 3, WIDTH), Towers("alone")
    variables = without(without(random_variables(model, x), "head"), "other", (0, 1, 2))
    found = same_function(model, variables, x)
    assert {path: stay.tolist() for path, stay in found.kept.items()} == {
        "a": [0, 2, 3, 5],
        "b": [3, 4, 5],
    }


class Looped(nn.Module):
    """A layer called by itself, and in a scan."""

    @nn.compact
    def __call__(self, x):
        inner = nn.Dense(WIDTH, name="inner")
        head = nn.Dense(WIDTH, name="head")
        start = head(nn.relu(inner(x)))
        turns = nn.scan(
            lambda head, carry, _: (nn.tanh(head(carry)), None),
            variable_broadcast="params", split_rngs={"params": False}, length=2,
        )  # fmt: skip
        return turns(head, start, None)[0]


def test_a_head_that_a_loop_calls_too():
    x = normal(0, 3, WIDTH)
    found = same_function(Looped(), without(random_variables(Looped(), x), "head"), x)
    assert found.kept == {}
    assert "inner" in found.obstacles


class Reader(nn.Module):
    """A vector of the neurons is read for something else."""

    what: str

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.normal(), (WIDTH,))
        first = nn.Dense(WIDTH, name="first")
        y = nn.relu(first(x)) * (scale if self.what == "scale" else 1.0)
        out = nn.Dense(3, name="last")(y)
        if self.what == "scale":
            return out + jnp.sum(scale**2)
        if self.what == "bias":
            return out + jnp.sum(first.variables["params"]["bias"] ** 2)
        return out / y.shape[-1] if self.what == "width" else out + jnp.mean(x * scale)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("scale", "a parameter of its neurons is read elsewhere too"),
        ("bias", "a parameter of its neurons is read elsewhere too"),
        ("width", "the model computes with the number of its neurons"),
    ],
)
def test_what_else_depends_on_the_neurons(what, reason):
    x, model = normal(0, 3, WIDTH), Reader(what)
    found = same_function(model, without(random_variables(model, x), "last"), x)
    assert found.kept == {}
    assert found.obstacles["first"] == reason


class Stated(nn.Module):
    """The shape that it flattens to is written out; in front of it is a layer that may shrink."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(WIDTH, (2, 2), name="first")(x))
        x = nn.relu(nn.Conv(WIDTH, (2, 2), name="second")(x))
        return nn.Dense(3, name="last")(x.reshape(-1, 4 * WIDTH))


def test_a_model_that_cannot_run_with_fewer_neurons():
    x = normal(0, 3, 2, 2, 2)
    variables = random_variables(Stated(), x)
    variables = without(variables, "last", (1, 1 + WIDTH, 1 + 2 * WIDTH, 1 + 3 * WIDTH))
    kernel = variables["params"]["second"]["kernel"].at[:, :, 2].set(0)
    variables["params"]["second"] = {**variables["params"]["second"], "kernel": kernel}
    found = same_function(Stated(), variables, x)
    assert {path: stay.tolist() for path, stay in found.kept.items()} == {"first": [0, 1, 3, 4, 5]}
    assert found.obstacles["second"].startswith("the model cannot run with fewer of its neurons")


def test_neurons_that_do_not_lie_along_an_axis():
    with pytest.raises(ValueError, match="layer 'a': its 6 neurons do not lie along axis 0"):
        _taken(jnp.ones((4, 3)), np.arange(2), 6, 0, "a")


def graph(rng, x, layer, vector):
    """A random network: layers, some called again, branches, sums, concatenations.

    Arguments:
        layer: (name, features, input) -> output.
        vector: (name, features) -> a vector of parameters.
    """
    values, made = [x], {}
    for step in range(int(rng.integers(3, 8))):
        value = values[int(rng.integers(max(0, len(values) - 2), len(values)))]
        again = [name for name, (inputs, _) in made.items() if inputs == value.shape[-1]]
        if again and rng.random() < 0.4:
            name = again[int(rng.integers(len(again)))]
        else:
            name = f"dense{step}"
            made[name] = value.shape[-1], int(rng.choice([4, WIDTH]))
        value = layer(name, made[name][1], value)
        what = rng.choice(["relu", "tanh", "scale", "add", "join", "flip"])
        others = [other for other in values if other.shape == value.shape]
        if what == "scale":
            value = value * vector(f"scale{step}", value.shape[-1])
        elif what == "add" and others:
            value = value + others[-1]
        elif what == "join":
            value = jnp.concatenate([value, values[-1]], axis=-1)
        elif what == "flip":
            value = nn.relu(value)[:, ::-1]
        else:
            value = nn.tanh(value) if what == "tanh" else nn.relu(value)
        values.append(value)
    return layer("out", 3, values[-1])


class Drawn(nn.Module):
    seed: int

    @nn.compact
    def __call__(self, x):
        layers = {}

        def layer(name, features, inputs):
            if name not in layers:
                layers[name] = nn.Dense(features, name=name)
            return layers[name](inputs)

        vector = lambda name, size: self.param(name, nn.initializers.normal(), (size,))  # noqa: E731
        return graph(np.random.default_rng(self.seed), x, layer, vector)


def thinned(variables, seed):
    """Variables with a third of the rows of all kernels set to zero."""
    rng = np.random.default_rng(seed)

    def cut(leaf):
        if leaf.ndim < 2:
            return leaf
        return jnp.where(jnp.asarray(rng.random((leaf.shape[0], 1)) < 0.35), 0, leaf)

    return jax.tree.map(cut, variables)


@pytest.mark.parametrize("seeds", [range(8), range(8, 16)])
def test_random_linen_networks_stay_what_they_are(seeds):
    x, fewer = normal(1, 2, WIDTH), 0
    for seed in seeds:
        model = Drawn(seed)
        variables = random_like(jax.eval_shape(model.init, jax.random.key(0), x))
        found = same_function(model, thinned(variables, seed), x)
        fewer += len(found.kept)
    assert fewer


class DrawnNnx(nnx.Module):
    def __init__(self, seed, x):
        self.seed = seed
        self.layers, self.vectors = nnx.Dict(), nnx.Dict()
        self.keys = nnx.Rngs(0)
        self(x)
        del self.keys

    def __call__(self, x):
        def layer(name, features, inputs):
            if name not in self.layers:
                self.layers[name] = nnx.Linear(inputs.shape[-1], features, rngs=self.keys)
            return self.layers[name](inputs)

        def vector(name, size):
            if name not in self.vectors:
                self.vectors[name] = nnx.Param(jax.random.normal(self.keys.params(), (size,)))
            return self.vectors[name][...]

        return graph(np.random.default_rng(self.seed), x, layer, vector)


def test_random_nnx_networks_stay_what_they_are():
    x, fewer = normal(1, 2, WIDTH), 0
    for seed in range(5):
        model = DrawnNnx(seed, x)
        nnx.update(model, thinned(nnx.state(model), seed))
        found = tdjax.remove_dead(model, x)
        got = found.model(x)
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, model(x), rtol=1e-5, atol=1e-5)
        fewer += len(found.kept)
    assert fewer
