"""Decoders with attention of several kinds: whole sequences, and token by token with a cache."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tdjax
from tdjax import BudgetRule, Pair
from tdjax.params.kernels import Weights
from tdjax.params.pairs import losses, passage, seen

WORDS, WIDTH, HEADS, KEYS, SIZE, LONGEST, HIDDEN = 24, 16, 4, 2, 4, 5, 24
IDS = jnp.asarray(np.random.default_rng(0).integers(0, WORDS, (8, LONGEST)))
SHARED = (
    ("grouped/query", "grouped/key", "grouped/value"),
    ("attention/query", "attention/key", "attention/value"),
)

MEET = Pair(("grouped/query",), "grouped/key", KEYS, scores=True, repeats=HEADS // KEYS)
VALUES = Pair(("grouped/value",), "grouped/out", KEYS, repeats=HEADS // KEYS)
UNITS = Pair(("up",), "down")
SCORES = Pair(("attention/query",), "attention/key", HEADS, scores=True)
PAIRS = (MEET, VALUES, SCORES, Pair(("attention/value",), "attention/out", HEADS), UNITS)


def attended(query, key, value, mask):
    """Several heads of queries to each of the keys."""
    groups = query.reshape(*query.shape[:2], KEYS, -1, SIZE)
    scores = jnp.einsum("btkge,bske->bkgts", groups, key)
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e9))
    return jnp.einsum("bkgts,bske->btkge", weights, value).reshape(query.shape)


def written(cache, rows, place):
    return jax.lax.dynamic_update_slice(cache, rows, (0, place, 0, 0))


def causal(length):
    return jnp.tril(jnp.ones((length, length), bool))


class Grouped(nn.Module):
    decode: bool

    @nn.compact
    def __call__(self, x):
        general = {"use_bias": False}
        query = nn.DenseGeneral((HEADS, SIZE), name="query", **general)(x)
        key = nn.DenseGeneral((KEYS, SIZE), name="key", **general)(x)
        value = nn.Einsum((WIDTH, KEYS, SIZE), "btd,dke->btke", name="value", **general)(x)
        mask = causal(x.shape[1])
        if self.decode:
            shape = (x.shape[0], LONGEST, KEYS, SIZE)
            keys, values = (self.variable("cache", n, jnp.zeros, shape) for n in ("keys", "values"))
            place = self.variable("cache", "place", jnp.zeros, (), int)
            keys.value = key = written(keys.value, key, place.value)
            values.value = value = written(values.value, value, place.value)
            mask = jnp.arange(LONGEST) <= place.value
            place.value += 1
        merged = attended(query, key, value, mask)
        return nn.DenseGeneral(WIDTH, axis=(-2, -1), name="out", **general)(merged)


class Decoder(nn.Module):
    decode: bool = False

    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(WORDS, WIDTH, name="embed")
        x = embed(ids)
        x = x + Grouped(self.decode, name="grouped")(x)
        mask = None if self.decode else nn.make_causal_mask(ids)
        x = x + nn.MultiHeadDotProductAttention(HEADS, decode=self.decode, name="attention")(
            x, mask=mask
        )
        hidden = nn.silu(nn.Dense(HIDDEN, name="up")(x))
        return embed.attend(x + nn.Dense(WIDTH, name="down")(hidden))


class NnxGrouped(nnx.Module):
    def __init__(self, decode, rngs):
        general = {"use_bias": False, "rngs": rngs}
        self.query = nnx.LinearGeneral(WIDTH, (HEADS, SIZE), **general)
        self.key = nnx.LinearGeneral(WIDTH, (KEYS, SIZE), **general)
        self.value = nnx.Einsum("btd,dke->btke", (WIDTH, KEYS, SIZE), rngs=rngs)
        self.out = nnx.LinearGeneral((HEADS, SIZE), WIDTH, axis=(-2, -1), **general)
        self.decode = decode
        if decode:
            shape = (len(IDS), LONGEST, KEYS, SIZE)
            self.keys, self.values = nnx.Cache(jnp.zeros(shape)), nnx.Cache(jnp.zeros(shape))
            self.place = nnx.Cache(jnp.zeros((), int))

    def __call__(self, x):
        query, key, value, mask = self.query(x), self.key(x), self.value(x), causal(x.shape[1])
        if self.decode:
            self.keys[...] = key = written(self.keys[...], key, self.place[...])
            self.values[...] = value = written(self.values[...], value, self.place[...])
            mask = jnp.arange(LONGEST) <= self.place[...]
            self.place[...] += 1
        return self.out(attended(query, key, value, mask))


class NnxDecoder(nnx.Module):
    def __init__(self, decode=False):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(WORDS, WIDTH, rngs=rngs)
        self.grouped = NnxGrouped(decode, rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=decode, rngs=rngs)
        self.up = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)
        self.decode = decode

    def __call__(self, ids):
        x = self.embed(ids)
        x = x + self.grouped(x)
        x = x + self.attention(x, mask=None if self.decode else nnx.make_causal_mask(ids))
        return self.embed.attend(x + self.down(nnx.silu(self.up(x))))


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def allocated(*given, moments, budget=0.6, **asked):
    """A plan by the loss in which the table of words is not left dense."""
    rules = [BudgetRule(path="embed", max_share=0.6)]
    return tdjax.allocate(
        *given, IDS, budget=budget, strategy="loss", moments=moments, methods=("svd",),
        rules=rules, **asked,
    )  # fmt: skip


@pytest.fixture(scope="module")
def linen():
    model = Decoder()
    variables = jax.jit(model.init)(jax.random.key(0), IDS)
    with pytest.warns(UserWarning, match="too few rows"):
        return model, variables, tdjax.collect_moments(model, variables, [IDS], loss_fn="sampled")


@pytest.mark.filterwarnings("ignore:too few rows")
def test_linen_decodes_what_the_whole_sequence_gives(linen, tmp_path):
    model, variables, moments = linen
    assert tdjax.shared_inputs(model, variables, IDS) == SHARED
    assert tdjax.paired_layers(model, variables, IDS) == PAIRS
    plan = allocated(model, variables, moments=moments, shared="inputs")
    plan = plan.with_pairs([VALUES], rank=2).with_pairs([UNITS], rank=HIDDEN // 2)
    table = plan["embed"].layer
    assert (table.lookups, table.positions) == (LONGEST, LONGEST)
    assert plan["grouped/value"].layer.kernel_shape == (WIDTH, KEYS * SIZE)
    assert {"embed", "attention/query"} <= {own.layer.path for own in plan.factorised}
    params = tdjax.factorize_params(variables["params"], plan, moments=moments)
    whole = jax.jit(tdjax.factorize(model, plan).apply)({"params": params}, IDS)
    dense = tdjax.reconstruct_params(params, plan)
    close(whole, jax.jit(model.apply)({"params": dense}, IDS))
    # A table that is read and attended to is decomposed once.
    assert set(params["embed"]) == {"input", "output"}

    tdjax.save_factorised(tmp_path / "kept", params, plan)
    loaded, same = tdjax.load_factorised(tmp_path / "kept")
    cached = tdjax.factorize(Decoder(decode=True), same)
    shapes = jax.eval_shape(cached.init, jax.random.key(0), IDS)["cache"]
    cache = jax.tree.map(lambda own: jnp.zeros(own.shape, own.dtype), shapes)

    @jax.jit
    def step(cache, ids):
        return cached.apply({"params": loaded, "cache": cache}, ids, mutable="cache")

    for place in range(LONGEST):
        found, changed = step(cache, IDS[:, place : place + 1])
        cache = changed["cache"]
        close(found[:, 0], whole[:, place])


@pytest.mark.filterwarnings("ignore:too few rows")
def test_nnx_decodes_what_the_whole_sequence_gives():
    model, large = NnxDecoder(), NnxDecoder(decode=True)
    assert tdjax.shared_inputs(model, IDS) == SHARED
    assert tdjax.paired_layers(model, IDS) == PAIRS
    moments = tdjax.collect_moments(model, [IDS], loss_fn="sampled")
    plan = allocated(model, moments=moments, shared="inputs")
    plan = plan.with_pairs([VALUES], rank=2).with_pairs([UNITS], rank=HIDDEN // 2)
    small = tdjax.factorize(model, plan, moments=moments)
    whole = small(IDS)
    close(whole, tdjax.nnx.reconstruct(small, plan)(IDS))
    cached = tdjax.factorize(large, plan, moments=moments)
    cached.attention.init_cache((len(IDS), LONGEST, WIDTH))
    step = nnx.jit(lambda model, ids: model(ids))
    for place in range(LONGEST):
        close(step(cached, IDS[:, place : place + 1])[:, 0], whole[:, place])


def of_heads(kernel, heads):
    """The kernel of what reads heads, each with its rows."""
    return np.asarray(kernel, np.float64).reshape(heads, -1, WIDTH)


@pytest.fixture(scope="module")
def narrowed(linen):
    """A plan in which two numbers of each head pass, and the kernels before and after."""
    model, variables, moments = linen
    plan = tdjax.make_plan(model, variables, [], IDS).with_pairs([VALUES, MEET], rank=2)
    params = tdjax.factorize_params(variables["params"], plan, moments=moments)
    after = tdjax.reconstruct_params(params, plan)
    return plan, variables["params"]["grouped"], after["grouped"]


def test_heads_that_all_pass_are_the_network_as_it_was(linen, narrowed):
    model, variables, moments = linen
    plan, *_ = narrowed
    assert [plan[path].format for path in VALUES.paths] == ["heads out /2", "heads in /4"]
    assert plan["grouped/value"].size == WIDTH * KEYS * 2
    assert plan["grouped/out"].size == HEADS * 2 * WIDTH
    assert [plan[path].format for path in MEET.paths] == ["scores out /4", "scores in /2"]
    assert plan["grouped/query"].size == WIDTH * HEADS * 2
    assert plan["grouped/key"].size == WIDTH * KEYS * 2
    assert tdjax.Plan.from_json(plan.to_json()) == plan
    full = tdjax.make_plan(model, variables, [], IDS).with_pairs([VALUES, MEET], rank=SIZE)
    params = tdjax.factorize_params(variables["params"], full, moments=moments)
    same = tdjax.reconstruct_params(params, full)
    close(model.apply({"params": same}, IDS), model.apply(variables, IDS))


def test_a_head_of_values_hands_on_what_all_queries_make_most_of(linen, narrowed):
    (*_, moments), (plan, before, after) = linen, narrowed

    def through(params):
        """Of each head of queries the product of the two kernels."""
        values = np.repeat(of_heads(np.moveaxis(params["value"]["kernel"], 0, 2), KEYS), 2, axis=0)
        return values.swapaxes(1, 2) @ of_heads(params["out"]["kernel"], HEADS)

    inputs, outputs = (
        np.asarray(getattr(moments["grouped/out"], end)[0], np.float64)
        for end in ("inputs", "outputs")
    )
    inputs += 1e-6 * np.trace(inputs) / len(inputs) * np.eye(len(inputs))
    values, vectors = np.linalg.eigh(outputs)
    weigh = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    kernel = np.asarray(before["out"]["kernel"], np.float64).reshape(-1, WIDTH)
    basis = np.zeros((HEADS * SIZE, HEADS * 2))
    for head in range(KEYS):
        rows = [slice(SIZE * (2 * head + k), SIZE * (2 * head + k + 1)) for k in range(2)]
        root = np.linalg.cholesky(sum(inputs[own, own] for own in rows)).T
        both = np.concatenate([root @ kernel[own] @ weigh for own in rows], axis=1)
        found = np.linalg.solve(root, np.linalg.svd(both)[0][:, :2])
        for k, own in enumerate(rows):
            basis[own, 2 * (2 * head + k) :][:, :2] = found
    root = np.linalg.cholesky(inputs).T
    fitted = basis @ np.linalg.lstsq(root @ basis, root @ kernel, rcond=None)[0]
    wanted = {**before, "out": {"kernel": fitted}}
    np.testing.assert_allclose(through(after), through(wanted), atol=1e-3)
    weights = Weights(moments["grouped/out"].inputs, moments["grouped/out"].outputs)
    (own,) = seen(before["out"]["kernel"], plan["grouped/out"].layer, weights)
    lost = np.sum((root @ (kernel - fitted) @ weigh) ** 2)
    assert losses(own, passage(own, VALUES))[2] == pytest.approx(lost, rel=1e-4)


def test_a_head_of_keys_changes_least_where_several_queries_meet_it(linen, narrowed):
    (_, variables, moments), (_, before, after) = linen, narrowed
    x = np.asarray(variables["params"]["embed"]["embedding"], np.float64)[IDS.reshape(-1)]

    def put_out(params, name, heads):
        return (x @ np.asarray(params[name]["kernel"], np.float64).reshape(WIDTH, -1)).reshape(
            len(x), heads, SIZE
        )

    outputs = np.asarray(moments["grouped/key"].outputs[0], np.float64)
    for head in range(KEYS):
        (k, narrow), *queries = (
            [put_out(own, name, number)[:, place] for own in (before, after)]
            for name, number, place in (
                ("key", KEYS, head), ("query", HEADS, 2 * head), ("query", HEADS, 2 * head + 1)
            )
        )  # fmt: skip
        changes = [
            np.linalg.lstsq(k, narrow, rcond=None)[0] @ np.linalg.lstsq(q, small, rcond=None)[0].T
            for q, small in queries
        ]
        np.testing.assert_allclose(*changes, atol=1e-3)
        part = slice(SIZE * head, SIZE * (head + 1))
        left = np.linalg.cholesky(k.T @ k / len(k)).T
        right = np.linalg.cholesky(outputs[part, part])
        lost = np.sum((left @ (np.eye(SIZE) - changes[0]) @ right) ** 2)
        least = np.sum(np.linalg.svd(left @ right, compute_uv=False)[2:] ** 2)
        assert lost == pytest.approx(least, rel=1e-2)


@pytest.mark.filterwarnings("ignore:too few rows")
def test_a_budget_gives_heads_of_values_what_all_their_queries_cost(linen):
    plan = allocated(*linen[:2], moments=linen[2], budget=0.4, pairs="found")
    assert plan["grouped/value"].feeds == "grouped/out"
    assert plan.size <= 0.4 * plan.size_before
