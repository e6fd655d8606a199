import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_models import normal, random_variables
from plain_networks import LanguageModel

import tdjax
from tdjax import Rule
from tdjax.params import sequential

pytestmark = pytest.mark.filterwarnings("ignore:too few rows")


class Deep(nn.Module):
    """Layers of some kinds, one after the other; the dense one is called twice."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), name="first")(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=2, strides=2, name="grouped")(x))
        x = nn.relu(nn.ConvTranspose(8, (2, 2), strides=(2, 2), name="up")(x))
        shared = nn.Dense(8, name="shared")
        return nn.DenseGeneral(5, axis=(1, 3), name="head")(shared(nn.relu(shared(x))))


X = normal(0, 32, 6, 6, 4)
RULES = [
    Rule(path="first", method="tucker", compression=0.5),
    Rule(path="up", method="cp", compression=0.5),
    Rule(path="grouped|shared|head", method="svd", compression=0.5),
]


@pytest.fixture(scope="module")
def deep():
    model = Deep()
    variables = random_variables(model, X)
    return model, variables, tdjax.make_plan(model, variables, RULES, X)


def change(model, plan, variables, params):
    outputs = tdjax.factorize(model, plan).apply({"params": params}, X)
    return float(jnp.linalg.norm(outputs - model.apply(variables, X)))


@pytest.mark.parametrize("correct_bias", [False, True])
def test_less_is_lost_than_layer_by_layer(deep, correct_bias):
    model, variables, plan = deep
    options = {"key": jax.random.key(0), "correct_bias": correct_bias, "max_iters": 10}
    moments = tdjax.collect_moments(model, variables, [X])
    alone = tdjax.factorize_params(variables["params"], plan, moments=moments, **options)
    joint = tdjax.factorize_sequentially(model, variables, plan, [X[::2], X[1::2]], **options)
    assert change(model, plan, variables, joint) < 0.95 * change(model, plan, variables, alone)


@pytest.mark.parametrize("stored", [None, "int4"])
def test_second_layer_is_the_reduced_rank_regression(stored):
    """On the inputs that the first layer gives, its factors rounded or not."""

    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(9, name="last")(jnp.tanh(nn.Dense(10, name="first")(x)))

    model, x = Two(), normal(1, 200, 12)
    variables = random_variables(model, x)
    rules = [Rule(path="first", method="svd", rank=3), Rule(path="last", method="svd", rank=2)]
    plan = tdjax.make_plan(model, variables, rules, x).with_dtypes({"first": stored})
    params = tdjax.factorize_sequentially(model, variables, plan, [x])
    dense = tdjax.reconstruct_params(params, plan)

    def hidden(params):
        layer = params["first"]
        return np.asarray(jnp.tanh(x @ layer["kernel"] + layer["bias"]), np.float64)

    wanted = hidden(variables["params"]) @ np.asarray(
        variables["params"]["last"]["kernel"], np.float64
    )
    # With the inputs that it has, the layer can reach the projection; of that, rank 2.
    now = hidden(dense)
    reached = now @ np.linalg.lstsq(now, wanted, rcond=None)[0]
    u, s, vt = np.linalg.svd(reached, full_matrices=False)
    best = np.linalg.norm((u[:, :2] * s[:2]) @ vt[:2] - wanted)
    found = np.linalg.norm(now @ np.asarray(dense["last"]["kernel"], np.float64) - wanted)
    assert found == pytest.approx(best, rel=1e-4)


def test_the_first_layer_is_what_it_is_alone(deep):
    model, variables, _ = deep
    plan = tdjax.make_plan(model, variables, RULES[:1], X)
    moments = tdjax.collect_moments(model, variables, [X])
    alone = tdjax.factorize_params(variables["params"], plan, moments=moments)
    joint = tdjax.factorize_sequentially(model, variables, plan, [X])
    errors = [change(model, plan, variables, params) for params in (alone, joint)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-2)


def test_nnx():
    layers = [nnx.Conv(4, 8, (3, 3), rngs=nnx.Rngs(0)), nnx.Conv(8, 8, (3, 3), rngs=nnx.Rngs(1))]
    model = nnx.Sequential(layers[0], nnx.relu, layers[1])
    rules = [Rule(path=".*", method="tucker", compression=0.6)]
    plan = tdjax.make_plan(model, rules, X)
    moments = tdjax.collect_moments(model, [X])

    def lost(small):
        return float(jnp.linalg.norm(small(X) - model(X)))

    joint = tdjax.factorize_sequentially(model, plan, [X], correct_bias=True)
    assert lost(joint) < lost(tdjax.factorize(model, plan, moments=moments, correct_bias=True))
    assert [type(layer).__name__ for layer in model.layers[::2]] == ["Conv", "Conv"]


def test_stacks_and_embeddings():
    model = LanguageModel()
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 24, (8, 6)))
    variables = random_variables(model, tokens)
    rules = [
        Rule(path="positions", method="svd", rank=2),
        Rule(path=".*", method="svd", compression=0.4),
    ]
    plan = tdjax.make_plan(model, variables, rules, tokens)
    params = tdjax.factorize_sequentially(model, variables, plan, [tokens])
    small = tdjax.factorize(model, plan)
    plain = tdjax.factorize_params(variables["params"], plan)
    logits = model.apply(variables, tokens)
    lost = [jnp.linalg.norm(small.apply({"params": p}, tokens) - logits) for p in (params, plain)]
    assert lost[0] < lost[1]


def test_what_is_refused(deep):
    model, variables, plan = deep
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="no batches"):
        tdjax.factorize_sequentially(model, variables, plan, [], key=key)
    with pytest.raises(ValueError, match="read many times, give a list"):
        tdjax.factorize_sequentially(model, variables, plan, iter([X]), key=key)
    with pytest.raises(ValueError, match="pass key="):
        tdjax.factorize_sequentially(model, variables, plan, [X])


def test_layers_share_programs(monkeypatch):
    made = []

    def program(*arguments):
        made.append(arguments)
        return own(*arguments)

    own = sequential._program
    monkeypatch.setattr(sequential, "_program", program)
    monkeypatch.setattr(sequential, "TOGETHER", 2)
    model, x = nn.Sequential([nn.Dense(6), nn.tanh, nn.Dense(5), nn.Dense(6)]), normal(2, 90, 6)
    variables = random_variables(model, x)
    rules = [Rule(path=".*", method="svd", rank=2)]
    plan = tdjax.make_plan(model, variables, rules, x)
    few = tdjax.factorize_sequentially(model, variables, plan, [x[:40], x[40:80]])
    assert [group for _, group, _ in made] == [[("layers_0",), ("layers_2",)], [("layers_3",)]]
    monkeypatch.setattr(sequential, "TOGETHER", 1)
    alone = tdjax.factorize_sequentially(model, variables, plan, [x[:80]])
    small = tdjax.factorize(model, plan)
    outputs = [small.apply({"params": params}, x) for params in (few, alone)]
    np.testing.assert_allclose(*outputs, atol=1e-2 * float(jnp.abs(outputs[0]).max()))


class Tower(nn.Module):
    """Repeated blocks of two layers, the second called twice, between others."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, name="first")(x)
        for number in range(4):
            x = x + Pair(name=f"block_{number}")(x)
        return nn.Dense(5, name="head")(x)


class Pair(nn.Module):
    @nn.compact
    def __call__(self, x):
        down = nn.Dense(8, name="down")
        return down(jnp.tanh(down(nn.relu(nn.Dense(8, name="up")(x)))))


TOWER_X = normal(8, 120, 12)


@pytest.fixture(scope="module")
def tower():
    variables = random_variables(Tower(), TOWER_X)
    rules = [Rule(path="block.*|head", method="svd", rank=3)]
    return Tower(), variables, tdjax.make_plan(Tower(), variables, rules, TOWER_X)


def test_blocks_of_one_layer_are_layer_after_layer(tower):
    batches = [TOWER_X[:70], TOWER_X[70:]]
    alone = tdjax.factorize_sequentially(*tower, batches, correct_bias=True)
    found = tdjax.factorize_sequentially(*tower, batches, correct_bias=True, blocks=".*/.*|head")
    jax.tree.map(np.testing.assert_array_equal, found, alone)


def test_layers_of_a_block_see_the_same_compressed_inputs(tower):
    """Both layers of the second block against NumPy, from the network as it is in front of it."""
    _, variables, plan = tower
    found = tdjax.factorize_sequentially(*tower, [TOWER_X], blocks=r"block_\d")
    dense = tdjax.reconstruct_params(found, plan)

    def inputs_of(params):
        """What goes into the layers of the second block."""
        x = TOWER_X @ params["first"]["kernel"] + params["first"]["bias"]
        for name in ("block_0", "block_1"):
            own = params[name]
            up = jax.nn.relu(x @ own["up"]["kernel"] + own["up"]["bias"])
            once = jnp.tanh(up @ own["down"]["kernel"] + own["down"]["bias"])
            last = x
            x = x + once @ own["down"]["kernel"] + own["down"]["bias"]
        return {"up": np.float64(last), "down": np.float64(jnp.concatenate([up, once]))}

    whole = variables["params"]
    before = {**dense, "block_1": whole["block_1"]}
    now, was = inputs_of(before), inputs_of(whole)
    for name in ("up", "down"):
        kernel = np.float64(whole["block_1"][name]["kernel"])
        wanted = np.linalg.lstsq(now[name], was[name] @ kernel, rcond=None)[0]
        left, values, right = np.linalg.svd(now[name] @ wanted, full_matrices=False)
        best = (left[:, :3] * values[:3]) @ right[:3]
        reached = now[name] @ np.float64(dense["block_1"][name]["kernel"])
        np.testing.assert_allclose(reached, best, atol=2e-3 * np.abs(best).max())


def test_blocks_by_themselves(tower):
    """One block of all layers knows nothing of what others lose; "auto" finds the modules."""
    model, variables, plan = tower
    whole = tdjax.factorize_sequentially(*tower, [TOWER_X], blocks="")
    moments = tdjax.collect_moments(model, variables, [TOWER_X])
    alone = tdjax.factorize_params(variables["params"], plan, moments=moments)
    one, other = (tdjax.reconstruct_params(params, plan) for params in (whole, alone))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), one, other)
    auto = tdjax.factorize_sequentially(*tower, [TOWER_X], blocks="auto")
    named = tdjax.factorize_sequentially(*tower, [TOWER_X], blocks=r"block_\d")
    jax.tree.map(np.testing.assert_array_equal, auto, named)
    with pytest.raises(ValueError, match=r"blocks 'blok_.*matches no module around a layer"):
        tdjax.factorize_sequentially(*tower, [TOWER_X], blocks="blok_.*")


def test_blocks_of_a_function(tower):
    _, variables, _ = tower
    rules = [Rule(path="params/(block.*|head).*", method="svd", rank=3)]
    plan = tdjax.make_plan(Tower().apply, variables, rules, TOWER_X)
    options = {"blocks": r"params/block_\d"}
    found = tdjax.factorize_sequentially(Tower().apply, variables, plan, [TOWER_X], **options)
    assert len(plan.factorised) == len(tower[2].factorised) == 9
    linen = tdjax.factorize_sequentially(*tower, [TOWER_X], blocks=r"block_\d")
    small = tdjax.factorize(Tower().apply, plan)(found, TOWER_X)
    own = tdjax.factorize(Tower(), tower[2]).apply({"params": linen}, TOWER_X)
    np.testing.assert_allclose(small, own, atol=1e-3 * float(jnp.abs(own).max()))
