"""Shared input factors and pairs in fewer bits: stored so, and chosen by budgets in bytes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_models import normal, random_variables

import tdjax
from tdjax import Pair, Rule
from tdjax.allocation.pairs import pair_wholes
from tdjax.allocation.posing import posed
from tdjax.dispatch.models import room_of
from tdjax.params.storing import as_stored

X = normal(0, 64, 5, 16) * jnp.exp(-0.15 * jnp.arange(16))
QKV = tuple(f"attention/{name}" for name in ("query", "key", "value"))
HEADS = Pair(("attention/value",), "attention/out", 3)
SCORES = Pair(("attention/query",), "attention/key", 3, scores=True)
UNITS = Pair(("gate", "up"), "down")
# Largest changes of the outputs by rounding, as shares of their norm.
ROUNDING = {"bfloat16": 0.02, "int8": 0.03, "int4": 0.5}


class Net(nn.Module):
    """Attention and a gated MLP, of odd widths: of four bits a byte is left half empty."""

    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(3, qkv_features=15, name="attention")(x, x)
        hidden = nn.silu(nn.Dense(21, name="gate")(x)) * nn.Dense(21, name="up")(x)
        return x + nn.Dense(16, name="down")(hidden)


@pytest.fixture(scope="module")
def net():
    """The network, and variables in which queries, keys and values are much alike."""
    variables = random_variables(Net(), X[:2])
    base, own = normal(9, 16, 4), variables["params"]["attention"]
    for seed, name in enumerate(("query", "key", "value")):
        kernel = own[name]["kernel"]
        like = base @ normal(seed, 4, 15) / 4
        own[name]["kernel"] = like.reshape(kernel.shape) + kernel / 20
    return Net(), variables


@pytest.fixture(scope="module")
def moments(net):
    return tdjax.collect_moments(*net, [X] * 4, loss_fn="outputs")


@pytest.fixture(scope="module")
def plan(net):
    """Query and key share, value and output are a pair, and so is the MLP."""
    rules = [Rule(path=".*(query|key)", method="svd", rank=5)]
    plan = tdjax.make_plan(*net, rules, X).with_shared([QKV[:2]], rank=7)
    return plan.with_pairs([HEADS], rank=3).with_pairs([UNITS], rank=13)


@pytest.fixture(scope="module")
def run(net):
    """What the network puts out with other dense parameters, as one program."""
    return jax.jit(lambda params: net[0].apply({"params": params}, X))


def held(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def distance(one, other):
    return float(jnp.linalg.norm(one - other) / jnp.linalg.norm(other))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_what_a_plan_says_is_stored(net, plan, moments, run, dtype, tmp_path):
    model, variables = net
    floats = tdjax.factorize_params(variables["params"], plan, moments=moments)
    small = plan.with_dtypes({entry.layer.path: dtype for entry in plan.layers})
    assert tdjax.Plan.from_json(small.to_json()) == small
    assert all(word in str(small) for word in (dtype, "svd shared", "units out", "heads in /3"))
    params = tdjax.factorize_params(variables["params"], small, moments=moments)
    biases = held([leaf for path, leaf in jax.tree.leaves_with_path(params) if "bias" in str(path)])
    assert biases == 4 * small.other
    assert held(params) == small.bytes
    jax.tree.map(np.testing.assert_array_equal, tdjax.quantize(floats, small), params)
    found = tdjax.factorize(model, small).apply({"params": params}, X)
    np.testing.assert_allclose(found, run(tdjax.reconstruct_params(params, small)), atol=1e-4)
    assert distance(found, run(tdjax.reconstruct_params(floats, plan))) < ROUNDING[dtype]
    tdjax.save_factorised(tmp_path, params, small)
    again, known = tdjax.load_factorised(tmp_path)
    assert known == small
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_layers_that_share_are_scaled_against_their_factor_together(net, plan):
    """Numbers that go into an output factor are of one size, over all layers that read them."""
    attention = net[1]["params"]["attention"]
    own = tdjax.Plan(tuple(plan[path] for path in QKV[:2]))
    stored = tdjax.factorize_params({"attention": attention}, own.with_dtypes("int8"))["attention"]
    outputs = [stored[name]["output"]["kernel"].to_array() for name in ("query", "key")]
    sizes = np.sqrt(np.mean(np.concatenate(outputs, axis=1) ** 2, axis=1))
    np.testing.assert_allclose(sizes, 1, atol=0.02)
    assert sorted(stored["key"]) == ["bias", "output"]
    # Layers that are met in turn stand for what is stored.
    floats = tdjax.factorize_params({"attention": attention}, own)["attention"]
    kernels = [{stage: floats[name][stage]["kernel"] for stage in floats[name] if stage != "bias"}
               for name in ("query", "key")]  # fmt: skip
    made = as_stored(kernels, own.with_dtypes("int8").layers)
    for again, known in zip(made, outputs, strict=True):
        np.testing.assert_array_equal(again["output"], known)
    with pytest.raises(KeyError, match="key"):
        tdjax.quantize({"attention": {"query": floats["query"]}}, own.with_dtypes("int8"))


def test_plans_are_the_same_in_whatever_order_they_are_made(net, plan):
    rules = [Rule(path=".*(query|key)", method="svd", rank=5)]
    every = dict.fromkeys((entry.layer.path for entry in plan.layers), "int8")
    dense = tdjax.make_plan(*net, rules, X)
    first = dense.with_dtypes(every).with_pairs([UNITS], rank=13).with_shared([QKV[:2]], rank=7)
    assert first.with_pairs([HEADS], rank=3) == plan.with_dtypes(every)
    assert plan.with_dtypes(every).with_dtypes(None) == plan
    mixed = dense.with_dtypes({QKV[0]: "int8", "up": "int4"})
    for change in (
        lambda: mixed.with_shared([QKV[:2]]),
        lambda: mixed.with_pairs([UNITS]),
        lambda: plan.with_dtypes({QKV[1]: "int8"}),
        lambda: plan.with_dtypes({"down": "bfloat16"}),
        lambda: tdjax.Plan.from_json(
            plan.with_dtypes("int8").to_json().replace('"dtype": "int8"', '"dtype": null', 1)
        ),
    ):
        with pytest.raises(ValueError, match="are stored in the same numbers"):
            change()


def test_a_budget_in_bytes_takes_what_loses_least(net, moments, run):
    model, variables = net
    exact = run(variables["params"])

    def rise(plan):
        params = tdjax.factorize_params(variables["params"], plan, moments=moments)
        found = run(tdjax.reconstruct_params(params, plan))
        return 0.5 * float(jnp.sum((found - exact) ** 2)) / len(X)

    alone, every = (
        tdjax.allocate(
            model, variables, X, target=tdjax.LossRise(2.0), cost="bytes", strategy="loss",
            methods=("svd",), moments=moments, **own,
        )
        for own in ({}, {"shared": "inputs", "pairs": "found"})
    )  # fmt: skip
    # The least bytes for what is predicted to be lost, by one and the same measure.
    assert every.bytes < 0.9 * alone.bytes
    assert any(entry.feeds for entry in every.layers)
    assert {entry.dtype for entry in every.layers} & {"int8", "int4"}
    assert 1 < rise(every) < 4


@pytest.mark.parametrize("pair", [SCORES, HEADS, UNITS], ids=str)
def test_what_rounding_makes_a_pair_lose_is_predicted(net, moments, run, pair):
    model, variables = net
    inventory = room_of(model).inventory(model, variables, X)
    problem = posed(inventory, ("bytes",), "loss", ("svd",), moments)
    (whole,) = pair_wholes(problem, [pair])
    given, rank = whole.given(("float32", "int4")), int(whole.ranks[len(whole.ranks) // 2])
    floats, few = (
        own.where(own.ranks[:, 0] == rank) for own in given.choices(whole.layer, problem.options)
    )
    (predicted,) = whole.lost(few) - whole.lost(floats)
    plan = tdjax.make_plan(model, variables, [], X).with_pairs([pair], rank=rank)
    small = plan.with_dtypes("int4")
    assert few.costs[0, 2] == sum(small[path].bytes for path in pair.paths)
    exact, found = (
        run(tdjax.reconstruct_params(
            tdjax.factorize_params(variables["params"], own, moments=moments), own
        ))
        for own in (plan, small)
    )  # fmt: skip
    assert 0.5 < predicted / (0.5 * float(jnp.sum((found - exact) ** 2)) / len(X)) < 2


def test_all_in_one_call(net):
    model, variables = net
    small = tdjax.compress(
        model, variables, [X], budget={"bytes": 0.2}, shared="inputs", pairs="found",
        methods=("svd",), refine=False, progress=False,
    )  # fmt: skip
    assert held(small.variables) == small.plan.bytes <= 0.2 * small.plan.bytes_before
    assert distance(small.model.apply(small.variables, X), model.apply(variables, X)) < 0.5


class Twin(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(3, 16, 15, rngs=rngs, decode=False)
        self.gate, self.up = (nnx.Linear(16, 21, rngs=rngs) for _ in range(2))
        self.down = nnx.Linear(21, 16, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(x)
        return x + self.down(nnx.silu(self.gate(x)) * self.up(x))


def test_all_in_one_call_of_nnx(net, tmp_path):
    model = Twin(nnx.Rngs(0))
    for name in ("query", "key", "value"):
        own = net[1]["params"]["attention"][name]["kernel"]
        getattr(model.attention, name).kernel[...] = own
    small = tdjax.compress(
        model, [X], budget={"bytes": 0.25}, shared=[QKV[:2]], pairs=[UNITS], methods=("svd",),
        dtypes=("int8", "int4"), refine=False, progress=False,
    )  # fmt: skip
    plan, attention = small.plan, small.model.attention
    assert plan["attention/key"].shares == "attention/query"
    assert attention.key.input is attention.query.input
    assert held(nnx.state(small.model)) == plan.bytes <= 0.25 * plan.bytes_before
    floats = tdjax.dequantize(small.model, plan)
    assert floats.attention.key.input is floats.attention.query.input
    for other in (floats, tdjax.nnx.reconstruct(small.model, plan)):
        np.testing.assert_allclose(other(X), small.model(X), atol=1e-4)
    tdjax.save_factorised(tmp_path, small.model, plan)
    again, _ = tdjax.load_factorised(tmp_path, like=model)
    assert again.attention.key.input is again.attention.query.input
    np.testing.assert_array_equal(again(X[:2]), small.model(X[:2]))
