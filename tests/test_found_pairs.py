"""Pairs of heads as the traced program tells them, where several heads of queries share one."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from plain_models import normal

import tdjax
from tdjax import Pair

X = normal(0, 64, 5, 12)
UNITS = Pair(("gate", "up"), "down")
NAMES = ("query", "key", "value")


def turned(x):
    """Queries or keys with positions turned into them."""
    angles = jnp.outer(jnp.arange(5), jnp.arange(1, 3))[:, None]
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


# Ways to give four heads of queries two of keys and values, each the next two.
IN_TURN = {
    "repeat": lambda v: jnp.repeat(v, 2, axis=-2),
    "broadcast": lambda v: jnp.broadcast_to(v[:, :, :, None], (64, 5, 2, 2, 4)).reshape(
        64, 5, 4, 4
    ),
    "grouped": None,
    "jax": None,
}
# All of them twice, one after the other, and one head for all queries.
OTHERWISE = {"tiled": lambda v: jnp.tile(v, (1, 1, 2, 1)), "grouped otherwise": None}
ALONE = {"one": lambda v: jnp.tile(v, (1, 1, 4, 1)), "one grouped": None}
EACH = {"each": lambda v: v}


class Llama(nn.Module):
    """Queries and keys, of which several may share one, rotated or not, and a gated MLP."""

    kind: str
    rotated: bool

    @nn.compact
    def __call__(self, x):
        shared = 1 if self.kind in ALONE else 4 if self.kind in EACH else 2
        y = nn.RMSNorm()(x)
        q, k, v = (
            nn.DenseGeneral((heads, 4), use_bias=False, name=name)(y)
            for name, heads in zip(NAMES, (4, shared, shared), strict=True)
        )
        if self.rotated:
            q, k = turned(q), turned(k)
        if self.kind == "jax":
            heads = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        elif "grouped" in self.kind:
            # Of queries the heads that share a key lie behind it, or in front.
            own = "gh" if "otherwise" in self.kind else "hg"
            q = q.reshape(64, 5, *(shared if axis == "h" else 4 // shared for axis in own), 4)
            weights = jax.nn.softmax(jnp.einsum(f"bt{own}d,bshd->b{own}ts", q, k))
            heads = jnp.einsum(f"b{own}ts,bshd->bt{own}d", weights, v).reshape(64, 5, 16)
        else:
            handed = {**IN_TURN, **OTHERWISE, **ALONE, **EACH}[self.kind]
            heads = nn.dot_product_attention(q, handed(k), handed(v))
        y = x + nn.Dense(12, use_bias=False, name="out")(heads.reshape(64, 5, 16))
        z = nn.RMSNorm()(y)
        z = nn.silu(nn.Dense(20, name="gate")(z)) * nn.Dense(20, name="up")(z)
        return y + nn.Dense(12, name="down")(z)


@pytest.mark.parametrize(
    ("kind", "rotated"),
    [
        *((kind, False) for kind in (*IN_TURN, *OTHERWISE, *ALONE, *EACH)),
        ("repeat", True),
        ("each", True),
    ],
)
def test_heads_that_several_queries_share_are_told_by_their_order(kind, rotated):
    model = Llama(kind, rotated)
    variables = jax.eval_shape(model.init, jax.random.key(0), X)
    numbers = ((IN_TURN, 2), (ALONE, 1), (EACH, 4))
    heads = next((heads for kinds, heads in numbers if kind in kinds), None)
    read = (
        Pair(("query",), "key", heads, scores=True, repeats=4 // (heads or 4)),
        Pair(("value",), "out", heads, repeats=4 // (heads or 4)),
    )
    found = read[1 if rotated else 0 :] if heads else ()
    assert tdjax.paired_layers(model, variables, X) == (*found, UNITS)


@pytest.mark.skipif(
    "num_kv_heads" not in inspect.signature(nnx.MultiHeadAttention.__init__).parameters,
    reason="later versions of Flax have it",
)
def test_the_attention_of_nnx_has_heads_that_several_queries_read():
    model = nnx.MultiHeadAttention(4, 12, num_kv_heads=2, rngs=nnx.Rngs(0), decode=False)
    scores = Pair(("query",), "key", 2, scores=True, repeats=2)
    assert tdjax.paired_layers(model, X[:2]) == (scores, Pair(("value",), "out", 2, repeats=2))
