"""Arrays of one's own in modules that hold several of them, or other modules too."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tdjax
from tdjax.trace.products import products_of


def drawn(rngs, *shape):
    return nnx.Param(jax.random.normal(rngs.params(), shape) / 3)


class Experts(nnx.Module):
    """A mixture of experts: two stacks of matrices beside a router, statistics and keys."""

    def __init__(self, rngs):
        self.wi, self.wo = drawn(rngs, 3, 8, 12), drawn(rngs, 3, 12, 8)
        self.router, self.norm = nnx.Linear(8, 3, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        gates = nnx.softmax(self.router(self.norm(x)))
        hidden = nnx.gelu(jnp.einsum("btd,edf->btef", x, self.wi[...]))
        y = jnp.einsum("btef,efd->bted", hidden, self.wo[...])
        return self.dropout((y * gates[..., None]).sum(2))


class Attention(nnx.Module):
    """Three matrices, and rows that are added."""

    def __init__(self, rngs):
        self.wq, self.wk, self.wv = (drawn(rngs, 8, 8) for _ in range(3))
        self.place = drawn(rngs, 5, 8)

    def __call__(self, x):
        y = x + self.place[...]
        return nnx.softmax(y @ self.wq[...] @ (y @ self.wk[...]).mT) @ (y @ self.wv[...])


class Network(nnx.Module):
    """Both, one of them in a scan, and a matrix of the model itself."""

    def __init__(self, rngs):
        self.experts, self.attention = Experts(rngs), Attention(rngs)

        @nnx.split_rngs(splits=2)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def made(rngs):
            return Attention(rngs)

        self.blocks, self.last = made(rngs), drawn(rngs, 8, 6)

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def turn(block, x):
            return x + block(x)

        x = self.attention(x + self.experts(x))
        return turn(self.blocks, x) @ self.last[...]


X = jax.random.normal(jax.random.key(1), (40, 5, 8))
MODEL = Network(nnx.Rngs(0))
PLAN = tdjax.make_plan(MODEL, [tdjax.Rule(path=".*", method="svd", rank=2)], X)
SMALL = tdjax.factorize(MODEL, PLAN)
NAMES = [f"{path}/{name}" for path in ("attention", "blocks") for name in ("wq", "wk", "wv")]


def test_each_is_a_layer_under_its_own_path():
    paths = {entry.layer.path for entry in PLAN.factorised}
    assert paths == {"experts/router", "experts/wi", "experts/wo", "last", *NAMES}
    assert PLAN["blocks/place"].reason == "it is read otherwise than by a product, by add"
    for model, macs in ((MODEL, PLAN.macs_before), (SMALL, PLAN.macs)):
        graph, state = nnx.split(model)
        count = products_of(jax.make_jaxpr(lambda s, graph=graph: nnx.merge(graph, s)(X))(state))
        assert macs * len(X) == sum(count.values())
    assert PLAN.size == sum(leaf.size for leaf in jax.tree.leaves(nnx.state(SMALL, nnx.Param)))


def test_chains_compute_and_keep_what_their_reconstructions_do(tmp_path):
    small, dense = nnx.clone(SMALL), tdjax.nnx.reconstruct(SMALL, PLAN)
    assert type(dense.experts) is Experts
    assert type(dense.experts.wi) is nnx.Param
    # Statistics and keys go on with each call.
    for _ in range(2):
        np.testing.assert_allclose(nnx.jit(lambda m, x: m(x))(small, X), dense(X), atol=1e-5)
    means = (model.experts.norm.mean[...] for model in (small, dense))
    np.testing.assert_allclose(*means, rtol=1e-5)
    assert int(small.experts.dropout.rngs.count[...]) == int(dense.experts.dropout.rngs.count[...])
    gradients = nnx.grad(lambda model: (model(X) ** 2).mean())(small)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))
    tdjax.save_factorised(tmp_path / "net", SMALL, PLAN)
    for like in (MODEL, SMALL):
        loaded, _ = tdjax.load_factorised(tmp_path / "net", like=like)
        for one, other in zip(
            *(jax.tree.leaves(nnx.state(m, nnx.Param)) for m in (loaded, SMALL)), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    again = pickle.loads(pickle.dumps(SMALL.attention))
    np.testing.assert_allclose(again(X), SMALL.attention(X), atol=1e-6)
    with pytest.raises(ValueError, match=r"'last' of the model is factorised already"):
        tdjax.factorize(SMALL, tdjax.Plan((PLAN["last"],)))


def test_moments_errors_and_candidates():
    model = nnx.clone(MODEL)
    model.eval()
    names = ["experts/w.", "blocks/wq"]
    moments = tdjax.collect_moments(
        model, [X], loss_fn=lambda y, _: (y**2).sum(axis=(1, 2)), paths=names
    )
    assert list(moments) == ["experts/wi", "experts/wo", "blocks/wq"]
    rows = np.asarray(X, np.float64).reshape(-1, 8)
    expected = rows.T @ rows / len(rows)
    np.testing.assert_allclose(moments["experts/wi"].inputs[0], expected, atol=1e-5)
    plan = tdjax.make_plan(model, [tdjax.Rule(path="experts/wi", method="svd", rank=2)], X)
    in_turn = tdjax.factorize_sequentially(model, plan, [X])
    assert bool(jnp.isfinite(in_turn(X)).all())
    other = nnx.clone(model)
    other.attention.wq[...] = 1.1 * model.attention.wq[...]
    errors = tdjax.feature_errors(model, other, [X])
    np.testing.assert_allclose(errors["attention/wq"]["relative"], 0.1, rtol=1e-4)
    kernels = jnp.stack([other.attention.wq[...], model.attention.wq[...]])
    found = tdjax.evaluate_candidates(
        model, "attention/wq", kernels, [X], lambda y, _: y.mean(axis=(1, 2))
    )
    np.testing.assert_allclose(found, [other(X).mean(), model(X).mean()], atol=1e-6)
