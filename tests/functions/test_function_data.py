"""What batches tell of a function: moments, errors, candidates; and factors on disk."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_functions import TOKENS, block, drawn, inputs, tokens

import tdjax


def small_network(params, x):
    """A layer in a scan, one on the left, one in a convolution that is laid out otherwise."""
    x = jax.lax.conv_general_dilated(x, params["conv"], (2, 2), [(1, 0), (0, 1)])
    x = x.mean((2, 3))
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["stack"])
    x = params["left"] @ x.T
    return x.T


PARAMS = drawn(0, conv=(4, 2, 3, 2), stack=(2, 4, 4), left=(3, 4))
X = inputs(1, 40, 2, 6, 6)
BATCHES = [X[:25], X[25:]]


def by_hand(params, x):
    """Inputs and outputs of the layers, in float64 NumPy."""
    w, x = (np.asarray(a, np.float64) for a in (params["conv"], x))
    padded = np.pad(x, [(0, 0), (0, 0), (1, 0), (0, 1)])
    rows = np.stack(
        [padded[:, :, i : i + 3, j : j + 2] for i in (0, 2, 4) for j in (0, 2, 4)], axis=1
    )
    rows = rows.transpose(0, 1, 3, 4, 2).reshape(-1, 3 * 2 * 2)
    y = (rows @ w.transpose(2, 3, 1, 0).reshape(-1, 4)).reshape(len(x), -1, 4).mean(1)
    found = {"conv": rows, "stack": []}
    for kernel in np.asarray(params["stack"], np.float64):
        found["stack"].append(y)
        y = np.tanh(y @ kernel)
    return {**found, "left": y}, y @ np.asarray(params["left"], np.float64).T


def test_moments_are_those_of_numpy():
    moments = tdjax.collect_moments(
        small_network, PARAMS, BATCHES, loss_fn=lambda y, batch: (y**2).sum(axis=1)
    )
    rows, y = by_hand(PARAMS, X)
    for path, own in rows.items():
        expected = np.stack([x.T @ x / len(x) for x in own]) if path == "stack" else own.T @ own
        expected = expected if path == "stack" else expected / len(own)
        found = moments[path].inputs
        np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-5)
    # The gradient of the loss at what comes out last is 2 y.
    np.testing.assert_allclose(moments["left"].outputs[0], 4 * y.T @ y / len(y), atol=1e-4)
    last = 2 * y @ np.asarray(PARAMS["left"]) * (1 - rows["left"] ** 2)
    np.testing.assert_allclose(moments["stack"].outputs[1, 0], last.T @ last / len(y), atol=1e-4)
    np.testing.assert_allclose(moments["left"].mean[0], rows["left"].mean(0), atol=1e-5)


def test_moments_of_tables_and_through_transformers():
    ids = jax.random.randint(jax.random.key(3), (60, 6), 0, 24)
    moments = tdjax.collect_moments(tokens, TOKENS, [ids])
    counts = np.bincount(np.asarray(ids).ravel(), minlength=24) / ids.size
    np.testing.assert_allclose(moments["embed"].inputs[0], counts, atol=1e-6)
    x = TOKENS["embed"][ids] + TOKENS["positions"]
    for k in range(3):
        rows = np.asarray(x, np.float64).reshape(-1, 16)
        found = moments["blocks/qkv"].inputs[k, 0]
        np.testing.assert_allclose(found, rows.T @ rows / len(rows), atol=1e-4)
        x, _ = block(x, jax.tree.map(lambda leaf, k=k: leaf[k], TOKENS["blocks"]))
    queries = np.asarray(x, np.float64).reshape(-1, 16)
    found = moments["embed"].outputs[0]
    np.testing.assert_allclose(found, queries.T @ queries / len(queries), rtol=1e-4, atol=1e-4)


def test_moments_of_a_stack_whose_layers_are_taken_by_their_numbers():
    def scanned(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    def unrolled(w, x):
        for k in range(2):
            x = jnp.tanh(x @ w[k])
        return jax.lax.fori_loop(2, 4, lambda k, x: jnp.tanh(x @ w[k]), x)

    w, x = drawn(0, w=(4, 8, 8))["w"], inputs(1, 100, 8)
    expected, found = (
        tdjax.collect_moments(apply, w, [x], loss_fn=lambda y, _: (y**2).sum(1))[""]
        for apply in (scanned, unrolled)
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    plans = [tdjax.make_plan(apply, w, [], x) for apply in (scanned, unrolled)]
    assert plans[0] == plans[1]


def test_budgets_and_decompositions_by_data():
    moments = tdjax.collect_moments(
        small_network, PARAMS, BATCHES, loss_fn=lambda y, batch: (y**2).sum(axis=1)
    )
    plan = tdjax.allocate(
        small_network, PARAMS, X, budget=0.6, strategy="loss", moments=moments, methods=("svd",)
    )
    assert plan.factorised
    compressed = tdjax.compress(
        small_network, PARAMS, BATCHES, budget={"params": 0.6}, progress=False
    )
    y = compressed.model(compressed.variables, X)
    assert float(jnp.linalg.norm(y - small_network(PARAMS, X))) < float(jnp.linalg.norm(y))
    assert 0.5 <= plan.size / plan.size_before <= 0.6
    factors = tdjax.factorize_params(PARAMS, plan, moments=moments)
    small = tdjax.factorize(small_network, plan)
    plain = tdjax.factorize_params(PARAMS, plan)
    after = tdjax.factorize_sequentially(small_network, PARAMS, plan, BATCHES)
    expected = small_network(PARAMS, X)
    lost = {
        name: float(jnp.linalg.norm(small(own, X) - expected))
        for name, own in (("plain", plain), ("data", factors), ("after", after))
    }
    assert lost["after"] < lost["plain"]
    assert lost["data"] < lost["plain"]


def test_errors_and_candidates():
    other = {**PARAMS, "left": PARAMS["left"] + 0.1, "conv": 1.1 * PARAMS["conv"]}
    errors = tdjax.feature_errors(small_network, PARAMS, other, BATCHES)
    rows, y = by_hand(PARAMS, X)
    change = np.linalg.norm(0.1 * rows["left"].sum(axis=1, keepdims=True) * np.ones(3), axis=1)
    np.testing.assert_allclose(errors["left"]["absolute"], change.mean(), rtol=1e-4)
    np.testing.assert_allclose(
        errors["left"]["relative"], (change / np.linalg.norm(y, axis=1)).mean(), rtol=1e-4
    )
    np.testing.assert_allclose(errors["conv"]["relative"], 0.1, rtol=1e-4)
    kernels = jnp.stack([PARAMS["left"], 2 * PARAMS["left"]])
    found = tdjax.evaluate_candidates(
        small_network, PARAMS, "left", kernels, BATCHES, lambda y, batch: y[:, 0]
    )
    np.testing.assert_allclose(found, [y[:, 0].mean(), 2 * y[:, 0].mean()], rtol=1e-4)
    with pytest.raises(KeyError, match="no array 'lef'; did you mean 'left'"):
        tdjax.evaluate_candidates(small_network, PARAMS, "lef", kernels, BATCHES, lambda y, _: y)


# ---------------------------------------------------------------- on disk


def listed_network(params, x):
    """Parameters in lists and tuples, with names that have slashes."""
    (w, b), rest = params
    return jnp.tanh(x @ w + b) @ rest["linear/~/head"]["w"]


def test_factors_of_any_pytree_are_saved(tmp_path):
    weights = drawn(0, w=(8, 8), head=(8, 8))
    params = ((weights["w"], jnp.ones(8)), {"linear/~/head": {"w": weights["head"]}})
    rules = [tdjax.Rule(path="1/.*", method="svd", rank=2)]
    plan = tdjax.make_plan(listed_network, params, rules, X[:, 0, 0, :4].repeat(2, axis=1))
    assert [entry.layer.path for entry in plan.factorised] == ["1/linear/~/head/w"]
    factors = tdjax.factorize_params(params, plan)
    tdjax.save_factorised(tmp_path / "net", factors, plan)
    for like in (params, factors, jax.eval_shape(lambda: params)):
        found, again = tdjax.load_factorised(tmp_path / "net", like=like)
        assert again == plan
        assert jax.tree.structure(found) == jax.tree.structure(factors)
        assert all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(factors)))
    found, _ = tdjax.load_factorised(tmp_path / "net")
    assert found["1"]["linear"]["~"]["head"]["w"]["input"]["kernel"].shape == (8, 2)
    other = {"other": weights["w"]}
    with pytest.raises(ValueError, match=r"like has no '1/linear/~/head/w/.*', which was saved"):
        tdjax.load_factorised(tmp_path / "net", like=(params[0], other))
    with pytest.raises(ValueError, match="nothing was saved for '1/other' of like"):
        tdjax.load_factorised(tmp_path / "net", like=(params[0], {**params[1], **other}))
    with pytest.raises(ValueError, match=r"layer '1/linear/~/head/w' .*found a dense array"):
        tdjax.save_factorised(tmp_path / "net", {**dict(enumerate(params))}, plan)


def test_factors_of_one_array_are_saved(tmp_path):
    w, x = drawn(0, w=(8, 8))["w"], inputs(1, 4, 8)
    plan = tdjax.make_plan(jnp.matmul, w, [tdjax.Rule(path="", method="svd", rank=2)], x.T)
    factors = tdjax.factorize_params(w, plan)
    tdjax.save_factorised(tmp_path / "net", factors, plan)
    found, _ = tdjax.load_factorised(tmp_path / "net", like=w)
    small = tdjax.factorize(jnp.matmul, plan)
    np.testing.assert_allclose(
        small(found, x.T), tdjax.reconstruct_params(factors, plan) @ x.T, atol=1e-5
    )
    with pytest.raises(ValueError, match="one dense array, in which nothing is factorised"):
        tdjax.save_factorised(tmp_path / "net", w, plan)


# ---------------------------------------------------------------- wrong calls


def _use(params, x, penalty=False):
    y = x @ params["w"]
    return (y, (params["w"] ** 2).sum()) if penalty else y


W, ROWS = drawn(0, w=(8, 8)), inputs(1, 4, 8)
RULES = [tdjax.Rule(path="w", method="svd", rank=2)]
PLAN = tdjax.make_plan(_use, W, RULES, ROWS)
FACTORS = tdjax.factorize_params(W, PLAN)


def _twins(params, x):
    return x @ params["a/b"] @ params["a"]["b"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tdjax.make_plan(_use, W, RULES), TypeError, "a function holds no arrays and com"),
        (lambda: tdjax.make_plan(_use, RULES, ROWS, W), TypeError, "params is a list of Rule"),
        (lambda: tdjax.make_plan(_use, W, RULES, ROWS, method="f"), TypeError, "method means noth"),
        (lambda: tdjax.remove_dead(_use, W, ROWS), TypeError, "takes a flax.linen.Module or a fl"),
        (lambda: tdjax.layer_table(SimpleNamespace, W, ROWS), TypeError, r"make an instance, Simp"),
        (
            lambda: tdjax.layer_table(_use, W, (jnp.zeros(2, jnp.uint32), ROWS)),
            ValueError,
            r"uint32\[2\], which is read as two examples: .* pass jax.random.key\(0\)",
        ),
        (lambda: tdjax.layer_table(_use, W, ROWS[:, :5]), ValueError, "called with float32.4, 5."),
        (
            lambda: tdjax.make_plan(
                _use, W, [tdjax.Rule(path="w", method="svd", rank=2, sparse=0.1)], ROWS
            ),
            ValueError,
            r"Rule 'w' \(svd\): a function's parameters have no place for the indices",
        ),
        (lambda: tdjax.factorize(_use, PLAN)(W, ROWS), ValueError, "found a dense array of shape"),
        (
            lambda: tdjax.factorize(_use, PLAN)({"v": FACTORS["w"]}, ROWS),
            ValueError,
            "layer 'w' is not among the parameters: pass what tdjax.factorize_params",
        ),
        (
            lambda: tdjax.factorize(_use, PLAN)(FACTORS, ROWS, penalty=True),
            ValueError,
            "layer 'w' is read by (integer_pow|square) with these inputs, as it was not with the s",
        ),
        (
            lambda: tdjax.make_plan(_twins, {"a/b": W["w"], "a": {"b": W["w"]}}, [], ROWS),
            ValueError,
            "two arrays of the parameters have the path 'a/b'",
        ),
        (lambda: tdjax.factorize_params([W["w"]], PLAN), KeyError, "no parameters at 'w'"),
    ],
    ids=[
        "no sample", "rules first", "method", "remove_dead", "class", "raw key", "shape", "sparse",
        "dense", "other names", "penalty", "twins", "list",
    ],
)  # fmt: skip
def test_wrong_calls_are_answered_in_words(call, error, message):
    with pytest.raises(error, match=message):
        call()
