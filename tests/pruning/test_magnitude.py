import itertools
import math

import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from plain_models import Scanned, normal, random_variables

import tdjax

PARAMS = {
    "conv": {"kernel": normal(0, 3, 3, 2, 4), "bias": normal(1, 4)},
    "norm": {"scale": normal(2, 4)},
    "dense": {"kernel": normal(3, 16, 6), "bias": normal(4, 6)},
    "embed": {"embedding": normal(5, 7, 3)},
}
KERNELS = (("conv", "kernel"), ("dense", "kernel"), ("embed", "embedding"))


def columns(tree):
    return [np.asarray(tree[a][b]).reshape(-1, tree[a][b].shape[-1]) for a, b in KERNELS]


def effective(w, q):
    w = np.abs(w.astype(np.float64))
    return np.sum(w**q, axis=0) ** (1 / (1 - q)) / np.sum(w, axis=0) ** (q / (1 - q))


def check_largest(params, mask):
    """What stays of each neuron is its largest."""
    for w, kept in zip(columns(params), columns(mask), strict=True):
        for column, own in zip(np.abs(w).T, kept.T, strict=True):
            assert column[own].min(initial=np.inf) >= column[~own].max(initial=0)


@pytest.mark.parametrize("scope", ["neuron", "layer", "global"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.85])
def test_magnitude_drops_the_stated_share(scope, share):
    mask = tdjax.magnitude_prune(PARAMS, share, scope=scope)
    assert jax.tree.map(jnp.shape, mask) == jax.tree.map(jnp.shape, PARAMS)
    for path in (("conv", "bias"), ("norm", "scale"), ("dense", "bias")):
        assert mask[path[0]][path[1]].all()
    kept, weights = columns(mask), columns(PARAMS)
    if scope == "neuron":
        for own in kept:
            np.testing.assert_array_equal(own.sum(0), len(own) - round(share * len(own)))
        check_largest(PARAMS, mask)
    elif scope == "layer":
        for own, w in zip(kept, weights, strict=True):
            assert own.sum() == own.size - round(share * own.size)
            assert np.abs(w[own]).min() >= np.abs(w[~own]).max(initial=0)
    else:
        own, w = (np.concatenate([part.ravel() for part in x]) for x in (kept, weights))
        assert own.sum() == own.size - round(share * own.size)
        assert np.abs(w[own]).min() >= np.abs(w[~own]).max(initial=0)


@settings(deadline=None, max_examples=25)
@given(arrays(np.float32, (6, 3), elements=st.integers(-2, 2).map(float)), st.integers(0, 5))
def test_ties_and_zeros_are_counted_exactly(w, removed):
    mask = tdjax.magnitude_prune({"kernel": w}, removed / 6, scope="neuron")["kernel"]
    np.testing.assert_array_equal(mask.sum(0), 6 - removed)
    for column, kept in zip(np.abs(w).T, np.asarray(mask).T, strict=True):
        assert column[kept].min() >= column[~kept].max(initial=0)


@pytest.mark.parametrize(("q", "eta"), [(0.3, 0.0), (0.5, 0.2), (0.7, 0.1)])
def test_the_adaptive_rule(q, eta):
    mask = tdjax.adaptive_prune(PARAMS, q=q, eta=eta)
    check_largest(PARAMS, mask)
    for w, kept in zip(columns(PARAMS), columns(mask), strict=True):
        expected = np.ceil((1 + eta) ** (-1 / (1 - q)) * effective(w, q))
        np.testing.assert_array_equal(kept.sum(0), expected)


@pytest.mark.parametrize("scope", ["neuron", "layer", "global"])
def test_the_rule_of_the_pq_index(scope):
    p, q, eta = 0.4, 1.5, 0.3
    mask = tdjax.pq_prune(PARAMS, p, q, eta, scope=scope)
    weights, kept = columns(PARAMS), columns(mask)
    if scope != "neuron":
        weights, kept = ([x.reshape(-1, 1) for x in each] for each in (weights, kept))
    if scope == "global":
        weights, kept = [np.concatenate(weights)], [np.concatenate(kept)]
    for w, own in zip(weights, kept, strict=True):
        d = len(w)
        norms = [np.sum(np.abs(w.astype(np.float64)) ** r, axis=0) ** (1 / r) for r in (p, q)]
        index = 1 - d ** (1 / q - 1 / p) * norms[0] / norms[1]
        number = d * (1 + eta) ** (-q / (q - p)) * (1 - index) ** (p * q / (q - p))
        np.testing.assert_array_equal(own.sum(0), np.ceil(number))


def test_equal_weights_stay_and_zeros_go():
    kernel = jnp.zeros((20, 30)).at[jnp.arange(20)[:, None] < jnp.arange(30) % 20].set(0.7)
    mask = tdjax.adaptive_prune({"kernel": kernel})["kernel"]
    np.testing.assert_array_equal(mask, kernel != 0)


@settings(deadline=None, max_examples=25)
@given(st.floats(0, 0.99), st.floats(0.1, 0.9))
def test_a_share_by_the_adaptive_rule(share, q):
    mask = tdjax.adaptive_prune(PARAMS, q=q, share=share)
    check_largest(PARAMS, mask)
    kept, total = columns(mask), sum(own.size for own in columns(mask))
    assert sum(own.sum() for own in kept) == total - round(share * total)
    counts = np.concatenate([own.sum(0) for own in kept])
    numbers = np.concatenate([effective(w, q) for w in columns(PARAMS)])
    full = np.concatenate([np.full(w.shape[1], len(w)) for w in columns(PARAMS)])
    # One factor for all: what the least needs for the weights it has must be within reach of
    # those that would take one more.
    least = np.max((counts - 1) / numbers)
    open_ = counts < full
    assert least <= np.min(counts[open_] / numbers[open_], initial=np.inf) * (1 + 1e-4)


def test_a_share_where_more_is_zero():
    kernel = jnp.where(jnp.arange(24).reshape(8, 3) % 2, 1.0, 0.0)
    mask = tdjax.adaptive_prune({"kernel": kernel}, share=0.25)["kernel"]
    np.testing.assert_array_equal(mask, kernel != 0)


@pytest.mark.parametrize("bound", [2.0, {"conv": 2.0, "dense": 2.0, "embed": 2.0}])
def test_the_tail_of_an_error(bound):
    mask = tdjax.tail_prune(PARAMS, 1.5, bound)
    for w, kept in zip(columns(PARAMS), columns(mask), strict=True):
        for column, own in zip(np.abs(w).T, kept.T, strict=True):
            assert 2 * column[~own].sum() <= 1.5 + 1e-5
            assert 2 * (column[~own].sum() + column[own].min(initial=np.inf)) > 1.5


def test_paths_choose_layers():
    mask = tdjax.adaptive_prune(PARAMS, eta=0.3, paths=("conv", "em.*"))
    assert mask["dense"]["kernel"].all()
    assert not mask["conv"]["kernel"].all()
    assert not mask["embed"]["embedding"].all()


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(2, name="attention")(x)


def test_layouts_of_the_layer_table():
    x = normal(0, 2, 5, 8)
    variables = random_variables(Attention(), x)
    params = variables["params"]
    layers = tdjax.layer_table(Attention(), variables, x)
    mask = tdjax.magnitude_prune(params, 0.5, scope="neuron", layers=layers)["attention"]
    np.testing.assert_array_equal(mask["query"]["kernel"].sum(0), np.full((2, 4), 4))
    np.testing.assert_array_equal(mask["out"]["kernel"].sum((0, 1)), np.full(8, 4))

    variables = random_variables(Scanned(), x[:, 0])
    layers = tdjax.layer_table(Scanned(), variables, x[:, 0])
    mask = tdjax.adaptive_prune(variables["params"], layers=layers)["stack"]["dense"]["kernel"]
    kernel = np.asarray(variables["params"]["stack"]["dense"]["kernel"])
    assert kernel.shape == (3, 8, 8)
    for own, w in zip(mask, kernel, strict=True):
        np.testing.assert_array_equal(own.sum(0), np.ceil(effective(w, 0.5)))


def test_states_of_nnx_and_boxes():
    model = nnx.Sequential(nnx.Linear(6, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 3, rngs=nnx.Rngs(1)))
    state = nnx.state(model, nnx.Param)
    mask = tdjax.magnitude_prune(state, 0.5, scope="layer", paths="layers/0")
    pruned = tdjax.apply_mask(state, mask)
    nnx.update(model, pruned)
    assert int((model.layers[0].kernel[...] == 0).sum()) == 12
    assert int((model.layers[1].kernel[...] == 0).sum()) == 0
    optimizer = nnx.Optimizer(
        model, optax.chain(optax.adam(0.1), tdjax.keep_zeros(mask)), wrt=nnx.Param
    )
    optimizer.update(model, nnx.grad(lambda m: (m(jnp.ones((2, 6))) ** 2).sum())(model))
    assert int((model.layers[0].kernel[...] == 0).sum()) == 12

    dense = nn.Dense(4, kernel_init=nn.with_partitioning(nn.initializers.normal(), (None, "x")))
    params = dense.init(jax.random.key(0), jnp.ones((1, 6)))["params"]
    mask = tdjax.magnitude_prune(params, 0.5)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    assert mask["kernel"].value.sum() == 12


@pytest.mark.parametrize(
    "optimiser",
    [
        optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.05, momentum=0.9)),
        optax.adam(0.05),
        optax.adamw(0.05, weight_decay=0.1),
    ],
    ids=["sgd", "adam", "adamw"],
)
def test_zeros_stay_in_training(optimiser):
    x, y = normal(8, 32, 16), normal(9, 32, 6)

    def loss(params):
        return jnp.mean((x @ params["dense"]["kernel"] + params["dense"]["bias"] - y) ** 2)

    before = jax.grad(loss)(PARAMS)
    mask = tdjax.magnitude_prune(PARAMS, 0.7)
    masked = optax.chain(optimiser, tdjax.keep_zeros(mask))
    params = tdjax.apply_mask(PARAMS, mask)
    state = masked.init(params)
    # Momentum from before the pruning does not move them either.
    state = jax.jit(masked.update)(before, state, params)[1]

    @jax.jit
    def step(params, state):
        updates, state = masked.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    start = loss(params)
    for _ in range(10):
        params, state = step(params, state)
    assert loss(params) < start
    for w, kept in zip(columns(params), columns(mask), strict=True):
        np.testing.assert_array_equal(w != 0, kept)
    share = tdjax.pruned_share(params, mask)
    total = [w.size for w in columns(params)]
    assert share == pytest.approx(sum(round(0.7 * n) for n in total) / sum(total))


def test_pruning_inside_jit_and_half_precision():
    expected = tdjax.adaptive_prune(PARAMS, q=0.4, eta=0.1)
    got = jax.jit(lambda p, q, eta: tdjax.adaptive_prune(p, q=q, eta=eta))(PARAMS, 0.4, 0.1)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    mask = tdjax.magnitude_prune(half, 0.5)
    assert tdjax.apply_mask(half, mask)["dense"]["kernel"].dtype == jnp.bfloat16


def test_one_program_for_all_shares(recwarn):
    from tdjax.pruning import largest as selection

    tdjax.adaptive_prune(PARAMS, share=0.5)
    compiled = selection._masks._cache_size()
    for share, q in itertools.product((0.1, 0.8), (0.3, 0.6)):
        tdjax.adaptive_prune(PARAMS, q=q, share=share)
    assert selection._masks._cache_size() == compiled


LAYERS = (tdjax.Layer("dense", "dense", (3, 6)),)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tdjax.magnitude_prune(PARAMS, 1.0), r"share must lie in \[0, 1\), got 1.0"),
        (lambda: tdjax.magnitude_prune(PARAMS, 0.5, scope="row"), "scope must be one of neuron"),
        (lambda: tdjax.adaptive_prune(PARAMS, q=1.0), r"q must lie in \(0, 1\)"),
        (lambda: tdjax.adaptive_prune(PARAMS, eta=-1.0), "eta must lie in"),
        (lambda: tdjax.adaptive_prune(PARAMS, eta=0.1, share=0.5), "eta or share, not both"),
        (lambda: tdjax.adaptive_prune(PARAMS, paths="conv1"), "layers are: conv, dense, embed"),
        (lambda: tdjax.adaptive_prune({"bias": jnp.ones(3)}), "no kernel that can be pruned"),
        (
            lambda: tdjax.adaptive_prune({"a": {"kernel": jnp.full((2, 2), jnp.nan)}}),
            "layer 'a': the kernel holds NaN or Inf",
        ),
        (lambda: tdjax.adaptive_prune(PARAMS, layers=LAYERS), r"\(16, 6\), but the layer table"),
        (lambda: tdjax.tail_prune(PARAMS, 0.1, {"conv": 1.0}), "no entry for layers dense, embed"),
        (lambda: tdjax.tail_prune(PARAMS, math.nan), "tolerance must lie in"),
        (lambda: tdjax.apply_mask(PARAMS, {"conv": PARAMS["conv"]}), "the mask does not fit"),
        (
            lambda: tdjax.keep_zeros({"kernel": jnp.ones(2, bool)}).init({"kernel": jnp.ones(3)}),
            "at 'kernel' they have shape",
        ),
    ],
)
def test_what_pruning_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_share_counts_kernels_that_lose_nothing():
    rng = np.random.default_rng(0)
    kernels = {name: jnp.asarray(rng.uniform(1, 2, (6, 5)), jnp.float32) for name in "ab"}
    params = {
        "a": {"kernel": kernels["a"], "bias": jnp.ones(5)},
        "b": {"kernel": 100 * kernels["b"]},
    }
    mask = tdjax.magnitude_prune(params, 0.4, scope="global")
    assert mask["b"]["kernel"].all()
    assert tdjax.pruned_share(params, mask) == pytest.approx(0.4)
