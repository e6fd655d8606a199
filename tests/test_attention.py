"""Decoders with attention of several kinds: whole sequences, and token by token with a cache."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tdjax
from tdjax import BudgetRule

WORDS, WIDTH, HEADS, KEYS, SIZE, LONGEST = 24, 16, 4, 2, 4, 5
IDS = jnp.asarray(np.random.default_rng(0).integers(0, WORDS, (8, LONGEST)))
SHARED = (
    ("grouped/query", "grouped/key", "grouped/value"),
    ("attention/query", "attention/key", "attention/value"),
)


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
        return embed.attend(x)


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
        self.decode = decode

    def __call__(self, ids):
        x = self.embed(ids)
        x = x + self.grouped(x)
        x = x + self.attention(x, mask=None if self.decode else nnx.make_causal_mask(ids))
        return self.embed.attend(x)


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def allocated(*given, moments):
    """A plan by the loss in which the table of words is not left dense."""
    rules = [BudgetRule(path="embed", max_share=0.6)]
    return tdjax.allocate(
        *given, IDS, budget=0.6, strategy="loss", moments=moments, methods=("svd",), rules=rules,
        shared="inputs",
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:too few rows")
def test_linen_decodes_what_the_whole_sequence_gives(tmp_path):
    model = Decoder()
    variables = model.init(jax.random.key(0), IDS)
    assert tdjax.shared_inputs(model, variables, IDS) == SHARED
    moments = tdjax.collect_moments(model, variables, [IDS], loss_fn="sampled")
    plan = allocated(model, variables, moments=moments)
    table = plan["embed"].layer
    assert (table.lookups, table.positions) == (LONGEST, LONGEST)
    assert plan["grouped/value"].layer.kernel_shape == (WIDTH, KEYS * SIZE)
    assert {"embed", "attention/query"} <= {own.layer.path for own in plan.factorised}
    params = tdjax.factorize_params(variables["params"], plan, moments=moments)
    whole = tdjax.factorize(model, plan).apply({"params": params}, IDS)
    dense = tdjax.reconstruct_params(params, plan)
    close(whole, model.apply({"params": dense}, IDS))
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
    moments = tdjax.collect_moments(model, [IDS], loss_fn="sampled")
    plan = allocated(model, moments=moments)
    small = tdjax.factorize(model, plan, moments=moments)
    whole = small(IDS)
    close(whole, tdjax.nnx.reconstruct(small, plan)(IDS))
    cached = tdjax.factorize(large, plan, moments=moments)
    cached.attention.init_cache((len(IDS), LONGEST, WIDTH))
    step = nnx.jit(lambda model, ids: model(ids))
    for place in range(LONGEST):
        close(step(cached, IDS[:, place : place + 1])[:, 0], whole[:, place])
