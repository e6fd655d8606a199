"""Arrays of one's own in modules that hold several of them, or other modules too."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import tdjax
from tdjax.trace.products import products_of

INIT = nn.initializers.normal(0.3)
MATRICES = ("wq", "wk", "wv", "wo")


class Experts(nn.Module):
    """A mixture of experts: two stacks of matrices beside a router, and statistics."""

    @nn.compact
    def __call__(self, x, train=False):
        wi, wo = self.param("wi", INIT, (3, 8, 12)), self.param("wo", INIT, (3, 12, 8))
        x = nn.BatchNorm(not train, name="norm")(x)
        gates = nn.softmax(nn.Dense(3, name="router")(x))
        hidden = nn.gelu(jnp.einsum("btd,edf->btef", x, wi))
        y = jnp.einsum("btef,efd->bted", hidden, wo)
        return nn.Dropout(0.5, deterministic=not train)((y * gates[..., None]).sum(2))


class Attention(nn.Module):
    """Made in `setup`: four matrices, rows that are added, and a method beside its call."""

    def setup(self):
        self.wq, self.wk, self.wv, self.wo = (self.param(n, INIT, (8, 8)) for n in MATRICES)
        self.place = self.param("place", INIT, (5, 8))
        self.norm = nn.LayerNorm()

    def __call__(self, x):
        y = self.norm(x) + self.place
        return nn.softmax(y @ self.wq @ (y @ self.wk).mT) @ self.values(y) @ self.wo

    def values(self, x):
        return x @ self.wv


class Network(nn.Module):
    """Both, one of them in a scan, and a matrix of the model itself."""

    @nn.compact
    def __call__(self, x, train=False):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return x + Attention()(x), None

        x = x + Attention(name="attention")(x + Experts(name="experts")(x, train))
        axes, split = {"params": 0}, {"params": True}
        blocks = nn.scan(Block, variable_axes=axes, split_rngs=split, length=2)(name="blocks")
        x, _ = blocks(x, None)
        return nn.Dense(4)(x) @ self.param("last", INIT, (4, 6))


MODEL, X = Network(), jax.random.normal(jax.random.key(1), (40, 5, 8))
VARIABLES = jax.jit(MODEL.init)(jax.random.key(0), X)
PLAN = tdjax.make_plan(MODEL, VARIABLES, [tdjax.Rule(path=".*", method="svd", rank=2)], X)
FACTORS = tdjax.factorize_params(VARIABLES, PLAN)
SMALL = tdjax.factorize(MODEL, PLAN)
OWN = [f"{path}/{name}" for path in ("attention", "blocks/Attention_0") for name in MATRICES]


def test_each_is_a_layer_under_its_own_path():
    paths = [entry.layer.path for entry in PLAN.factorised]
    others = ["experts/wi", "experts/wo", "experts/router", "Dense_0", "last"]
    assert sorted(paths) == sorted([*OWN, *others])
    reasons = {e.layer.path: e.reason for e in PLAN.layers if e.reason}
    assert reasons == {
        f"{path}/place": "it is read otherwise than by a product, by add"
        for path in ("attention", "blocks/Attention_0")
    }
    assert FACTORS["params"]["experts"]["wo"]["input"]["kernel"].shape == (3, 12, 2)
    for model, own, macs in ((MODEL, VARIABLES, PLAN.macs_before), (SMALL, FACTORS, PLAN.macs)):
        count = products_of(jax.make_jaxpr(lambda v, model=model: model.apply(v, X))(own))
        assert macs * len(X) == sum(count.values())
    assert PLAN.size == sum(leaf.size for leaf in jax.tree.leaves(FACTORS["params"]))
    assert tdjax.Plan.from_json(PLAN.to_json()) == PLAN


def test_chains_compute_and_keep_what_their_reconstructions_do(tmp_path):
    dense, rngs = tdjax.reconstruct_params(FACTORS, PLAN), {"dropout": jax.random.key(3)}
    assert jax.tree.map(jnp.shape, dense) == jax.tree.map(jnp.shape, VARIABLES)

    def run(model, variables):
        def loss(params):
            own = {**variables, "params": params}
            y, kept = model.apply(own, X, True, rngs=rngs, mutable=["batch_stats"])
            return (y**2).mean(), (y, kept)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    (_, found), gradients = jax.jit(lambda v: run(SMALL, v))(FACTORS)
    (_, expected), _ = jax.jit(lambda v: run(MODEL, v))(dense)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, FACTORS["params"])
    tdjax.save_factorised(tmp_path / "net", FACTORS, PLAN)
    loaded, plan = tdjax.load_factorised(tmp_path / "net", like=VARIABLES)
    assert plan == PLAN
    jax.tree.map(np.testing.assert_array_equal, loaded, FACTORS)


def test_the_model_makes_its_own_factors():
    made = jax.eval_shape(SMALL.init, jax.random.key(2), X)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, FACTORS)
    # A model whose arrays are its own.
    model, params = Experts(), VARIABLES["params"]["experts"]
    variables = {"params": params, "batch_stats": VARIABLES["batch_stats"]["experts"]}
    rules = [tdjax.Rule(path="w.", method="svd", rank=2)]
    plan = tdjax.make_plan(model, variables, rules, X)
    own = tdjax.factorize(model, plan).init(jax.random.key(2), X)["params"]
    dense = tdjax.reconstruct_params(own, plan)
    for name in ("wi", "wo"):
        assert 0.7 < float(jnp.std(dense[name]) / jnp.std(params[name])) < 1.4


def test_parts_and_other_methods_find_them():
    class Holder(nn.Module):
        def setup(self):
            self.inner = Attention()

        def __call__(self, x):
            return self.inner(x)

    params = VARIABLES["params"]["attention"]
    variables, x = {"params": {"inner": params}}, X[:2]
    rules = [tdjax.Rule(path="inner/w[qv]", method="svd", rank=2)]
    plan = tdjax.make_plan(Holder(), variables, rules, x)
    factors = tdjax.factorize_params(variables, plan)
    small, dense = tdjax.factorize(Holder(), plan), tdjax.reconstruct_params(factors, plan)
    inner = small.bind(factors).inner
    np.testing.assert_allclose(inner(x), Holder().apply(dense, x), atol=1e-5)
    expected = x @ dense["params"]["inner"]["wv"]
    np.testing.assert_allclose(inner.values(x), expected, atol=1e-5)


def test_moments_errors_and_candidates_are_those_of_the_function():
    def loss(y, _):
        return (y**2).sum(axis=(1, 2))

    names = ["attention/wq", "experts/wo", "blocks/Attention_0/wk"]
    moments = tdjax.collect_moments(MODEL, VARIABLES, [X], loss_fn=loss, paths=names)
    paths = [f"params/{path}" for path in names]
    expected = tdjax.collect_moments(MODEL.apply, VARIABLES, [X], loss_fn=loss, paths=paths)
    for name, path in zip(names, paths, strict=True):
        for one, other in zip(*map(jax.tree.leaves, (moments[name], expected[path])), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    halved = tdjax.allocate(MODEL, VARIABLES, X, budget=0.5, methods=("svd",))
    assert halved.size <= 0.5 * halved.size_before
    other = jax.tree.map(lambda leaf: leaf, VARIABLES["params"])
    other["attention"]["wq"] = 1.1 * other["attention"]["wq"]
    errors = tdjax.feature_errors(MODEL, VARIABLES, other, [X])
    np.testing.assert_allclose(errors["attention/wq"]["relative"], 0.1, rtol=1e-4)
    kernels = jnp.stack([other["attention"]["wq"], VARIABLES["params"]["attention"]["wq"]])
    found = tdjax.evaluate_candidates(
        MODEL, VARIABLES, "attention/wq", kernels, [X], lambda y, _: y.mean(axis=(1, 2))
    )
    changed = MODEL.apply({**VARIABLES, "params": other}, X)
    np.testing.assert_allclose(found, [changed.mean(), MODEL.apply(VARIABLES, X).mean()], atol=1e-6)
