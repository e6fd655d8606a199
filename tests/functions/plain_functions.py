"""Networks as pure functions of their parameters, as people write them without modules."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def drawn(seed, **shapes):
    rng = np.random.default_rng(seed)
    arrays = {name: rng.normal(size=shape) / 3 for name, shape in shapes.items()}
    return {name: jax.device_put(array.astype(np.float32)) for name, array in arrays.items()}


def images(params, x):
    """Layouts of channels last and first, strides, dilation, groups, transposed convolutions."""
    x = lax.conv_general_dilated(
        x, params["first"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jnp.tanh(x).transpose(0, 3, 1, 2)
    x = lax.conv_general_dilated(x, params["second"], (2, 2), [(1, 1), (0, 2)], rhs_dilation=(1, 2))
    x = lax.conv_general_dilated(x, params["wise"], (1, 1), "SAME", feature_group_count=12)
    x = x.transpose(0, 2, 3, 1)
    x = lax.conv_transpose(x, params["up"], (2, 2), "SAME")
    x = lax.conv_transpose(x, params["back"], (2, 2), "SAME", transpose_kernel=True)
    return x.mean((1, 2)) @ params["head"]


IMAGES = drawn(
    0, first=(3, 3, 3, 8), second=(12, 8, 3, 3), wise=(12, 1, 3, 3), up=(2, 2, 12, 6),
    back=(3, 3, 4, 6), head=(4, 5),
)  # fmt: skip


def block(x, own):
    """A block of a transformer: queries, keys and values in one array, heads as its axes."""
    queries, keys, values = jnp.moveaxis(jnp.einsum("btd,dchk->btchk", x, own["qkv"]), 2, 0)
    shares = jax.nn.softmax(jnp.einsum("bqhk,bmhk->bhqm", queries, keys))
    mixed = jnp.einsum("bhqm,bmhk->bqhk", shares, values)
    x = x * own["scale"] + jnp.einsum("bqhk,hkd->bqd", mixed, own["out"])
    return x + jax.nn.gelu(x @ own["up"] + own["shift"]) @ own["down"].T, None


def tokens(params, ids):
    """Tied embeddings around a scan over blocks that are computed again."""
    x = params["embed"][ids] + params["positions"][: ids.shape[1]]
    x, _ = lax.scan(jax.checkpoint(block), x, params["blocks"])
    return x @ params["embed"].T


TOKENS = {
    **drawn(1, embed=(24, 16), positions=(6, 16)),
    "blocks": drawn(
        2, qkv=(3, 16, 3, 2, 8), out=(3, 2, 8, 16), up=(3, 16, 32), down=(3, 16, 32),
        shift=(3, 32), scale=(3, 16),
    ),
}  # fmt: skip


@jax.custom_vjp
def doubled(x, w):
    """A product with twice its gradient."""
    return x @ w


doubled.defvjp(lambda x, w: (x @ w, (x, w)), lambda xw, g: (2 * g @ xw[1].T, 2 * xw[0].T @ g))


@jax.custom_jvp
def tripled(x, w):
    """A product with three times its derivative."""
    return x @ w.T


@tripled.defjvp
def _tripled(primals, tangents):
    (x, w), (dx, dw) = primals, tangents
    return x @ w.T, 3 * (dx @ w.T + x @ dw.T)


def paths(params, x):
    """Every way of a kernel to its product, in a pytree of lists and tuples."""
    (first, bias), [left, turned, (either, looped)], indexed, ruled, experts = params
    x = jnp.tanh(x @ first.astype(jnp.float32) + bias)
    x = jax.vmap(lambda row: left @ row)(x)
    x = jnp.tanh(x) @ turned.reshape(2, 4, 8).transpose(2, 0, 1).reshape(8, 8)
    x = lax.cond(x.sum() > 0, lambda x: x @ either, lambda x: -x, x)

    def turn(carry):
        number, x, kernel = carry
        return number + 1, jnp.tanh(x @ kernel), kernel

    x = x + lax.while_loop(lambda carry: carry[0] < 2, turn, lax.stop_gradient((0, x, looped)))[1]
    x = lax.fori_loop(0, 3, lambda k, x: jnp.tanh(x @ indexed[k]), x)
    x = jnp.tanh(doubled(x, ruled[0]))
    x = tripled(x, ruled[1])
    each = jax.vmap(lambda kernel, x: x @ kernel, in_axes=(0, None))(experts["in"], x)
    return jnp.einsum("ebd,edf->bf", jnp.tanh(each), experts["out"])


_SQUARES = drawn(3, **dict.fromkeys(("left", "turned", "either", "vjp", "jvp"), (8, 8)))
PATHS = (
    (drawn(4, w=(6, 8))["w"], jnp.ones(8)),
    [
        _SQUARES["left"],
        _SQUARES["turned"],
        (_SQUARES["either"], drawn(5, w=(8, 8))["w"]),
    ],
    drawn(6, w=(3, 8, 8))["w"],
    [_SQUARES["vjp"], _SQUARES["jvp"]],
    drawn(7, **{"in": (4, 8, 8), "out": (4, 8, 8)}),
)


class Turned(nn.Module):
    """A dense layer with a kernel of its own, (outputs, inputs), as in language models of old."""

    features: int

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.normal(0.3)
        kernel = self.param("kernel", init, (self.features, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return lax.dot_general(x, kernel.T, (((x.ndim - 1,), (0,)), ((), ()))) + bias


class Perceptron(nn.Module):
    """Two such layers around a dropout."""

    @nn.compact
    def __call__(self, x, deterministic=True):
        x = nn.Dropout(0.5, deterministic=deterministic)(nn.gelu(Turned(12, name="fc")(x)))
        return Turned(5, name="proj")(nn.LayerNorm()(x))


def inputs(seed, *shape):
    return jax.device_put(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


ROWS = inputs(10, 4, 7, 6)
PERCEPTRON = Perceptron()
IDS = jax.device_put(np.random.default_rng(11).integers(24, size=(4, 6), dtype=np.int32))
# By name: a function, its parameters and an input.
FUNCTIONS = {
    "images": (images, IMAGES, inputs(12, 4, 8, 8, 3)),
    "tokens": (tokens, TOKENS, IDS),
    "paths": (paths, PATHS, inputs(13, 4, 6)),
    "perceptron": (PERCEPTRON.apply, PERCEPTRON.init(jax.random.key(0), ROWS), ROWS),
}
