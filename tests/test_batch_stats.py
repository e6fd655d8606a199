import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_models import normal, random_variables

import tdjax

BATCHES = [normal(k, n, 6, 6, 3) * (1 + k) + k for k, n in enumerate((8, 8, 4))]


class Network(nn.Module):
    """Normalisation that is told its mode at the call, and one that is told when it is made."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="first")(x)
        x = nn.Conv(5, (3, 3), name="conv")(x)
        x = nn.BatchNorm(momentum=0.5, name="second")(x, use_running_average=not train)
        return nn.relu(x).mean(axis=(1, 2))


def by_hand(model, variables):
    """Mean and variance over all batches, each normalised by itself."""
    seen = {"first": [], "second": []}
    for x in BATCHES:
        mutable = ["intermediates", "batch_stats"]
        _, state = model.apply(
            variables, x, train=True, capture_intermediates=True, mutable=mutable
        )
        seen["first"].append(np.asarray(x, np.float64).reshape(-1, 3))
        inside = state["intermediates"]["conv"]["__call__"][0]
        seen["second"].append(np.asarray(inside, np.float64).reshape(-1, 5))
    rows = {name: np.concatenate(parts) for name, parts in seen.items()}
    return {name: (x.mean(axis=0), x.var(axis=0)) for name, x in rows.items()}


def test_statistics_of_all_batches():
    model = Network()
    variables = random_variables(model, BATCHES[0])
    found = tdjax.reestimate_batch_stats(model, variables, BATCHES)
    for name, (mean, var) in by_hand(model, variables).items():
        np.testing.assert_allclose(found["batch_stats"][name]["mean"], mean, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found["batch_stats"][name]["var"], var, rtol=1e-3)
    assert found["params"] is variables["params"]


def test_a_factorised_network():
    model = Network()
    variables = random_variables(model, BATCHES[0])
    rules = [tdjax.Rule(path="conv", method="tucker", rank=(2, 3))]
    plan = tdjax.make_plan(model, variables, rules, BATCHES[0])
    small = tdjax.factorize(model, plan)
    params = tdjax.factorize_params(variables["params"], plan)
    found = tdjax.reestimate_batch_stats(small, {**variables, "params": params}, BATCHES)
    dense = {**variables, "params": tdjax.reconstruct_params(params, plan)}
    expected = tdjax.reestimate_batch_stats(model, dense, BATCHES)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        found["batch_stats"],
        expected["batch_stats"],
    )


class NNXNetwork(nnx.Module):
    """As `Network`."""

    def __init__(self, rngs):
        self.first = nnx.BatchNorm(3, momentum=0.9, use_running_average=True, rngs=rngs)
        self.conv = nnx.Conv(3, 5, (3, 3), rngs=rngs)
        self.second = nnx.BatchNorm(5, momentum=0.5, use_running_average=True, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.second(self.conv(self.first(x)))).mean(axis=(1, 2))


def test_nnx():
    model = NNXNetwork(nnx.Rngs(0))
    linen = Network()
    params = {"conv": {"kernel": model.conv.kernel[...], "bias": model.conv.bias[...]}}
    for name in ("first", "second"):
        layer = getattr(model, name)
        params[name] = {"scale": layer.scale[...], "bias": layer.bias[...]}
    variables = {**random_variables(linen, BATCHES[0]), "params": params}
    found = tdjax.reestimate_batch_stats(model, BATCHES)
    for name, (mean, var) in by_hand(linen, variables).items():
        layer = getattr(found, name)
        np.testing.assert_allclose(layer.mean[...], mean, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(layer.var[...], var, rtol=1e-3)
        assert layer.use_running_average
    assert not np.asarray(model.first.mean[...]).any()


def test_what_is_refused():
    model = Network()
    variables = random_variables(model, BATCHES[0])
    with pytest.raises(ValueError, match="no batches"):
        tdjax.reestimate_batch_stats(model, variables, [])
    with pytest.raises(ValueError, match="no batch statistics"):
        tdjax.reestimate_batch_stats(nn.Dense(2), {"params": {}}, BATCHES)
    with pytest.raises(ValueError, match="no batch statistics"):
        tdjax.reestimate_batch_stats(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), [jnp.ones((2, 2))])
    with pytest.raises(ValueError, match=r"no 'batch_stats', .*'batch_stats/first/mean': pass"):
        tdjax.collect_moments(model, {"params": variables["params"]}, BATCHES)


class Shifted(nn.BatchNorm):
    """A subclass with a call of its own, which passes on to that of Flax."""

    momentum: float = 1.0

    @nn.compact
    def __call__(self, x, train=False):
        return super().__call__(x, use_running_average=not train) + 1.0


class Turns(nn.Module):
    """One layer in all turns of a loop."""

    @nn.compact
    def __call__(self, x, _):
        nn.BatchNorm(use_running_average=True, name="norm")(x)
        return x, None


class Subclasses(nn.Module):
    how: str

    @nn.compact
    def __call__(self, x):
        if self.how == "loop":
            carried = {"variable_broadcast": "params", "variable_carry": "batch_stats"}
            scan = nn.scan(Turns, **carried, split_rngs={"params": False}, length=3)
            return scan(name="lifted")(x, None)[0]
        cls = {"jit": nn.jit(Shifted), "remat": nn.remat(Shifted)}.get(self.how, Shifted)
        layer = cls(name="lifted")
        return layer(x) if self.how != "twice" else layer(x) + layer(x)


@pytest.mark.parametrize("how", ["twice", "jit", "remat", "loop"])
def test_subclasses_and_loops(how):
    model = Subclasses(how)
    vectors = (
        {"scale": jnp.ones(3), "bias": jnp.zeros(3)},
        {"mean": jnp.ones(3), "var": jnp.ones(3)},
    )
    params, stats = ({"lifted": {"norm": x} if how == "loop" else x} for x in vectors)
    variables = {"params": params, "batch_stats": stats}
    found = tdjax.reestimate_batch_stats(model, variables, BATCHES)["batch_stats"]["lifted"]
    found = found["norm"] if how == "loop" else found
    rows = np.concatenate([np.asarray(x, np.float64).reshape(-1, 3) for x in BATCHES])
    np.testing.assert_allclose(found["mean"], rows.mean(axis=0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["var"], rows.var(axis=0), rtol=1e-4)


class ShiftedNNX(nnx.BatchNorm):
    def __call__(self, x):
        return super().__call__(x, use_running_average=True) + 1.0


class Unlike(nnx.BatchNorm):
    def __call__(self, x):
        return (x - self.mean[...]) / self.var[...]


class NNXSubclass(nnx.Module):
    def __init__(self, cls):
        self.norm = cls(3, momentum=1.0, rngs=nnx.Rngs(0))
        self.unused = nnx.BatchNorm(3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return nnx.remat(lambda norm, x: norm(x))(self.norm, self.norm(x) * 0.0 + x)


def test_subclasses_of_nnx():
    model = NNXSubclass(ShiftedNNX)
    found = tdjax.reestimate_batch_stats(model, BATCHES)
    rows = np.concatenate([np.asarray(x, np.float64).reshape(-1, 3) for x in BATCHES])
    np.testing.assert_allclose(found.norm.mean[...], rows.mean(axis=0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.norm.var[...], rows.var(axis=0), rtol=1e-4)
    assert type(found.norm) is ShiftedNNX
    assert found.norm.momentum == 1.0
    np.testing.assert_array_equal(found.unused.var[...], np.ones(3))


class Own(nn.Module):
    """Statistics in a way of its own, in Linen."""

    @nn.compact
    def __call__(self, x):
        own = self.variable("batch_stats", "mean", jnp.zeros, 3)
        return nn.BatchNorm(use_running_average=True)(x - own.value)


class OwnNNX(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
        self.largest = nnx.BatchStat(jnp.zeros(3))


def test_statistics_of_another_kind_are_refused():
    model = Own()
    variables = model.init(jax.random.key(0), BATCHES[0])
    with pytest.raises(ValueError, match=r"layer '' \(Own\) keeps statistics in a way of its own"):
        tdjax.reestimate_batch_stats(model, variables, BATCHES)
    for other, name in ((NNXSubclass(Unlike), "'norm' .Unlike"), (OwnNNX(), "'' .OwnNNX")):
        with pytest.raises(ValueError, match=f"layer {name}.*a way of its own"):
            tdjax.reestimate_batch_stats(other, BATCHES)


class Sometimes(nn.Module):
    """A layer in a branch that not all batches take, or in a condition of JAX's own."""

    own: bool = False

    def setup(self):
        self.norm = nn.BatchNorm(use_running_average=True)

    def __call__(self, x):
        if self.is_initializing():
            return self.norm(x)
        large = x.mean() > 0.5
        if self.own:
            return jax.lax.cond(large, lambda x: self.norm(x), lambda x: x, x)
        return nn.cond(large, lambda m, x: m.norm(x), lambda m, x: x, self, x)


class SometimesNNX(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return jax.lax.cond(x.mean() > 0.5, lambda x: self.norm(x), lambda x: x, x)


def test_layers_inside_conditions():
    variables = jax.tree.map(lambda x: x + 9, Sometimes().init(jax.random.key(0), BATCHES[0]))
    found = tdjax.reestimate_batch_stats(Sometimes(), variables, BATCHES)["batch_stats"]["norm"]
    rows = np.concatenate([np.asarray(x, np.float64).reshape(-1, 3) for x in BATCHES[1:]])
    np.testing.assert_allclose(found["mean"], rows.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found["var"], rows.var(axis=0), rtol=1e-4)
    message = "^reestimate_batch_stats: a layer .* inside a condition, .* call it inside Flax's"
    with pytest.raises(ValueError, match=message):
        tdjax.reestimate_batch_stats(Sometimes(own=True), variables, BATCHES)
    with pytest.raises(ValueError, match=message):
        tdjax.reestimate_batch_stats(SometimesNNX(), BATCHES)


class Masked(nn.Module):
    """A layer that is called with a mask, then without."""

    @nn.compact
    def __call__(self, x, mask):
        layer = nn.BatchNorm(use_running_average=True, name="norm")
        layer(x, mask=mask)
        return nn.BatchNorm(use_running_average=True, name="plain")(x)


class MaskedNNX(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(3, use_running_average=True, rngs=nnx.Rngs(0))

    def __call__(self, x, mask):
        return self.norm(x, mask=mask)


def test_masked_rows_do_not_count():
    shares = (0.1, 0.9, 0.0)
    masks = [normal(9, *x.shape[:3], 1) < np.quantile(normal(9, *x.shape[:3], 1), share)
             for x, share in zip(BATCHES, shares, strict=True)]  # fmt: skip
    batches = list(zip(BATCHES, masks, strict=True))
    variables = Masked().init(jax.random.key(0), *batches[0])
    found = tdjax.reestimate_batch_stats(Masked(), variables, batches)["batch_stats"]
    other = tdjax.reestimate_batch_stats(MaskedNNX(), batches).norm
    every = [np.asarray(x, np.float64).reshape(-1, 3) for x in BATCHES]
    kept = [rows[np.asarray(m).ravel()] for rows, m in zip(every, masks, strict=True)]
    for rows, mean, var in (
        (kept, found["norm"]["mean"], found["norm"]["var"]),
        (kept, other.mean[...], other.var[...]),
        (every, found["plain"]["mean"], found["plain"]["var"]),
    ):
        np.testing.assert_allclose(mean, np.concatenate(rows).mean(axis=0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(var, np.concatenate(rows).var(axis=0), rtol=1e-3)
