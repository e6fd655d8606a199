"""Errors and candidates of NNX models: those of Linen on the same network, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_models import TwoConvs, normal, random_variables

import tdjax
from tdjax import Rule, dispatch
from tdjax.evaluate.candidates import Performance
from tdjax.evaluate.errors import FeatureErrors
from tdjax.moments.feeding import Fed
from tdjax.nnx.network import network_of
from tdjax.params.factorize import replace_kernel
from tdjax.trace.hoist import split

IMAGES = [normal(10 + k, n, 7, 7, 3) for k, n in enumerate((4, 4, 3))]
RULES = [Rule(path=".*", method="svd", rank=1)]
SHAPES = {"first": (3, 3, 3, 6), "second": (3, 3, 6, 5), "head": (5, 4)}


class Network(nnx.Module):
    """`TwoConvs` in NNX."""

    def __init__(self, rngs):
        self.first = nnx.Conv(3, 6, (3, 3), padding=1, rngs=rngs)
        self.second = nnx.Conv(6, 5, (3, 3), strides=2, padding="VALID", rngs=rngs)
        self.head = nnx.Linear(5, 4, rngs=rngs)

    def __call__(self, x, scale=False):
        x = self.second(nnx.relu(self.first(x)))
        x = self.head(nnx.relu(x).mean(axis=(1, 2)))
        return 2 * x if scale else x


@pytest.fixture(scope="module")
def variables():
    return random_variables(TwoConvs(), IMAGES[0])


@pytest.fixture(scope="module")
def network(variables):
    model = Network(nnx.Rngs(0))
    nnx.update(model, nnx.State(variables["params"]))
    return model


def first_logit(outputs, batch):
    del batch
    return outputs[:, 0]


def scores(outputs, batch):
    labels = batch[1]
    return {"right": outputs.argmax(axis=1) == labels, "logits": outputs.sum(axis=1)}


def same_errors(found, expected, rel=1e-5):
    assert found.keys() == expected.keys()
    for path, own in expected.items():
        assert found[path] == pytest.approx(own, rel=rel)


def arrays_of(model):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))


def test_feature_errors_are_those_of_linen(network, variables):
    before = arrays_of(network)
    plan = tdjax.make_plan(network, RULES, IMAGES[0])
    expected = tdjax.feature_errors(TwoConvs(), variables, plan, IMAGES)
    assert list(expected) == ["first", "second", "head"]
    same_errors(tdjax.feature_errors(network, plan, iter(IMAGES)), expected)
    dense = tdjax.nnx.reconstruct(tdjax.factorize(network, plan), plan)
    same_errors(tdjax.feature_errors(network, dense, IMAGES), expected)
    state = nnx.state(dense, nnx.Param)
    same_errors(tdjax.feature_errors(network, state, IMAGES), expected)
    params = tdjax.reconstruct_params(tdjax.factorize_params(variables["params"], plan), plan)
    same_errors(tdjax.feature_errors(network, plan_or_params=params, batches=IMAGES), expected)
    jax.tree.map(np.testing.assert_array_equal, arrays_of(network), before)


def test_candidates_are_those_of_linen(network, variables):
    before = arrays_of(network)
    batches = [(images, jnp.arange(len(images)) % 4) for images in IMAGES]
    for path, shape in SHAPES.items():
        kernels = normal(5, 3, *shape)
        linen = tdjax.evaluate_candidates(
            TwoConvs(), variables, path, kernels, batches, scores, chunk=2
        )
        found = tdjax.evaluate_candidates(network, path, kernels, batches, scores, chunk=2)
        assert found.keys() == linen.keys()
        for name, values in linen.items():
            assert found[name].dtype == np.float64
            np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6)
        linen = dispatch.candidate_feature_errors(TwoConvs(), variables, path, kernels, IMAGES)
        found = dispatch.candidate_feature_errors(network, path, kernels, IMAGES)
        for name, values in linen.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, arrays_of(network), before)


def test_candidates_equal_a_loop_over_kernels_and_images(network):
    kernels = normal(5, 3, *SHAPES["second"])
    means = []
    for kernel in kernels:
        changed = nnx.clone(network)
        changed.second.kernel[...] = kernel
        logits = [changed(images, scale=True)[:, 0] for images in IMAGES]
        means.append(np.concatenate(logits).astype(np.float64).mean())
    batches = [{"x": images, "scale": True} for images in IMAGES]
    found = tdjax.evaluate_candidates(network, "second", kernels, batches, first_logit)
    np.testing.assert_allclose(found, means, rtol=1e-4, atol=1e-6)


def test_layers_before_the_candidates_run_once(network, count_macs):
    own = {layer.path: layer.macs for layer in tdjax.layer_table(network, IMAGES[0])}
    static, arrays = network_of(network)
    first, second, head = (own[path] for path in ("first", "second", "head"))
    batch = len(IMAGES[0])
    for function, given, once, each in (
        (Performance(static, "second", first_logit), IMAGES[0], first, second + head),
        (FeatureErrors(static, "second"), Fed(IMAGES[0], None), first + second, second),
    ):
        fixed = (arrays, given)
        done, left = split(
            lambda kernel, fixed, function=function: function(kernel, *fixed),
            jnp.zeros(SHAPES["second"]),
            fixed,
        )
        assert count_macs(done, fixed) == batch * once
        assert count_macs(left, jnp.zeros(SHAPES["second"]), done(fixed)) == batch * each


def test_compiled_once_for_all_batches_turns_and_copies(network):
    traced = []

    def metric(outputs, batch):
        traced.append(batch.shape)
        return outputs[:, 0]

    for model in (network, nnx.clone(network)):
        tdjax.evaluate_candidates(model, "head", normal(5, 5, 5, 4), IMAGES, metric, chunk=2)
    assert traced == [IMAGES[0].shape, IMAGES[2].shape]


class Tied(nnx.Module):
    """An embedding that is looked up and attended to, and attention between."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(12, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        return self.embed.attend(x + self.attention(x))


def test_features_of_embeddings_and_attention():
    tokens = jax.random.randint(jax.random.key(0), (3, 5), 0, 12)
    model = Tied(nnx.Rngs(0))
    rules = [Rule(path="embed|attention/query", method="svd", rank=2)]
    plan = tdjax.make_plan(model, rules, tokens)
    dense = tdjax.nnx.reconstruct(tdjax.factorize(model, plan), plan)
    found = tdjax.feature_errors(model, dense, [tokens])
    same_errors(found, tdjax.feature_errors(model, plan, [tokens]))
    assert set(found) == {"embed", "attention/query"}
    # By hand: what is looked up and all logits are the features of one example.
    own, other = (np.asarray(m.embed.embedding[...], np.float64) for m in (model, dense))
    rows = np.asarray(tokens)
    query = own[rows] + np.asarray(model.attention(model.embed(tokens)))
    change = np.concatenate([(own - other)[rows], query @ (own - other).T], axis=-1)
    norms = np.linalg.norm(change.reshape(3, -1), axis=1)
    assert found["embed"]["absolute"] == pytest.approx(norms.mean(), rel=1e-4)


class Transformed(nnx.Module):
    """Layers inside transformations, and one with statistics."""

    def __init__(self, rngs):
        self.saved, self.jitted = (nnx.Linear(8, 8, rngs=rngs) for _ in range(2))
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)

    def __call__(self, x):
        x = self.norm(nnx.remat(lambda layer, x: layer(x))(self.saved, x))
        return _jitted(self.jitted, x)


@nnx.jit
def _jitted(layer, x):
    return layer(x)


def test_layers_inside_transformations():
    model, x = Transformed(nnx.Rngs(0)), normal(1, 3, 8)
    model.norm.mean[...] = normal(4, 8)
    model(x)
    changed = nnx.clone(model)
    for k, layer in enumerate((changed.saved, changed.jitted)):
        layer.kernel[...] = normal(5 + k, 8, 8)
    for scale in (1.0, 2.0):
        # Twice, as compiled code from before must not be met with other values.
        found = tdjax.feature_errors(model, changed, [scale * x])
        z = scale * x
        for name, behind in (("saved", model.norm), ("jitted", lambda x: x)):
            layer, other = getattr(model, name), getattr(changed, name)
            change = np.asarray(z @ (layer.kernel[...] - other.kernel[...]), np.float64)
            norms = np.linalg.norm(change, axis=1)
            assert found[name]["absolute"] == pytest.approx(norms.mean(), rel=1e-4)
            z = behind(layer(z))


class Stacked(nnx.Module):
    """Three layers whose kernels are one array, and a layer that is not called."""

    def __init__(self, rngs):
        keys = jax.random.split(rngs.params(), 3)
        self.blocks = nnx.vmap(lambda key: nnx.Linear(8, 8, rngs=nnx.Rngs(key)))(keys)
        self.aside = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        scan = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return scan(x, self.blocks)


def test_layers_without_features_are_named():
    model, x = Stacked(nnx.Rngs(0)), normal(1, 2, 8)
    for name in ("blocks", "aside"):
        changed = nnx.clone(model)
        kernel = getattr(changed, name).kernel
        kernel[...] = 2 * kernel[...]
        message = f"errors: the model never calls layer '{name}', or only as one of a stack"
        with pytest.raises(ValueError, match=message):
            tdjax.feature_errors(model, changed, [x])


def test_what_cannot_be_evaluated(network, variables):
    kernels = normal(5, 3, 5, 4)
    with pytest.raises(KeyError, match="no layer 'heads'; did you mean 'head'"):
        tdjax.evaluate_candidates(network, "heads", kernels, IMAGES, first_logit)
    with pytest.raises(KeyError, match="'' has no kernel"):
        tdjax.evaluate_candidates(network, "", kernels, IMAGES, first_logit)
    with pytest.raises(ValueError, match=r"for layer 'head', expected \(n, 5, 4\)"):
        tdjax.evaluate_candidates(network, "head", kernels[:, :3], IMAGES, first_logit)
    with pytest.raises(ValueError, match="no batches"):
        tdjax.feature_errors(network, network, [])
    plan = tdjax.make_plan(network, RULES, IMAGES[0])
    small = tdjax.factorize(network, plan)
    with pytest.raises(ValueError, match=r"no kernel at 'first'; pass the plan, .*nnx.reconstruct"):
        tdjax.feature_errors(network, small, IMAGES)
    other = replace_kernel(variables["params"], "second", normal(5, 3, 3, 6, 4))
    with pytest.raises(ValueError, match=r"layer 'second' .* \(3, 3, 6, 5\).* \(3, 3, 6, 4\)"):
        tdjax.feature_errors(network, other, IMAGES)
