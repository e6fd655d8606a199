import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_models import MLP, TwoConvs, normal, random_variables

import tdjax
from tdjax.evaluate.candidates import Performance
from tdjax.evaluate.errors import FeatureErrors
from tdjax.linen.network import Network
from tdjax.moments.feeding import Fed
from tdjax.params.factorize import replace_kernel
from tdjax.trace.hoist import split

IMAGES = [normal(10 + k, n, 7, 7, 3) for k, n in enumerate((4, 4, 3))]
LABELS = [jnp.arange(len(images)) % 4 for images in IMAGES]


@pytest.fixture(scope="module")
def network():
    model = TwoConvs()
    return model, random_variables(model, IMAGES[0])


def first_logit(outputs, batch):
    del batch
    return outputs[:, 0]


def accuracy_and_loss(outputs, batch):
    labels = batch[1]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(outputs), labels[:, None], axis=1)[:, 0]
    return {"correct": outputs.argmax(axis=1) == labels, "loss": -chosen}


def one_at_a_time(model, variables, path, kernels, batches):
    """The mean first logit, in a loop over kernels and images."""
    apply = jax.jit(model.apply)
    means = []
    for kernel in kernels:
        params = replace_kernel(variables["params"], path, kernel)
        logits = [
            float(apply({**variables, "params": params}, image[None])[0, 0])
            for images in batches
            for image in images
        ]
        means.append(np.mean(logits))
    return np.asarray(means)


@pytest.mark.parametrize(
    ("path", "shape"), [("first", (3, 3, 3, 6)), ("second", (3, 3, 6, 5)), ("head", (5, 4))]
)
def test_candidates_equal_a_loop_over_kernels_and_images(network, path, shape):
    model, variables = network
    kernels = normal(5, 3, *shape)
    found = tdjax.evaluate_candidates(model, variables, path, kernels, IMAGES, first_logit)
    assert found.dtype == np.float64
    assert found.shape == (3,)
    expected = one_at_a_time(model, variables, path, kernels, IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_models_with_lists_and_inputs_with_flags(network):
    x, mlp = normal(1, 3, 6), MLP([5, 4])
    values = tdjax.evaluate_candidates(
        mlp, random_variables(mlp, x), "dense1", normal(5, 2, 5, 4), [x], first_logit
    )
    assert values.shape == (2,)

    model, variables = network
    batch = {"scale": True, "x": IMAGES[0]}
    kernels = normal(5, 2, 5, 4)
    for inputs, factor in ((IMAGES[0], 1), (batch, 2), ((batch, LABELS[0]), 2)):
        found = tdjax.evaluate_candidates(model, variables, "head", kernels, [inputs], first_logit)
        expected = factor * one_at_a_time(model, variables, "head", kernels, [IMAGES[0]])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_own_kernel_gives_the_performance_of_the_network(network):
    model, variables = network
    own = variables["params"]["second"]["kernel"]
    batches = list(zip(IMAGES, LABELS, strict=True))
    found = tdjax.evaluate_candidates(
        model, variables, "second", own[None], batches, accuracy_and_loss
    )
    logits = np.concatenate([model.apply(variables, images) for images in IMAGES])
    labels = np.concatenate(LABELS)
    logits = logits.astype(np.float64)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
    assert set(found) == {"correct", "loss"}
    # The mean over eleven images, though the last batch is smaller.
    assert found["correct"][0] == np.mean(logits.argmax(axis=1) == labels)
    assert found["loss"][0] == pytest.approx(losses.mean(), rel=1e-5)


def test_chunks_make_no_difference(network):
    model, variables = network
    kernels = normal(5, 5, 5, 4)
    whole, *parts = (
        tdjax.evaluate_candidates(
            model, variables, "head", kernels, iter(IMAGES), first_logit, chunk=chunk
        )
        for chunk in (25, 5, 2, 1)
    )
    for part in parts:
        np.testing.assert_allclose(part, whole, rtol=1e-5, atol=1e-6)


def test_layers_before_the_candidates_run_once(network, count_macs):
    model, variables = network
    first, second, head = (layer.macs for layer in tdjax.layer_table(model, variables, IMAGES[0]))
    own = {"first": first, "second": second, "head": head}
    shapes = {"first": (3, 3, 3, 6), "second": (3, 3, 6, 5), "head": (5, 4)}
    before = {"first": 0, "second": first, "head": first + second}
    behind = {"first": second + head, "second": head, "head": 0}
    batch = len(IMAGES[0])
    for path, shape in shapes.items():
        whole = Network(model)
        performance = Performance(whole, path, first_logit)
        # Of the features each kernel asks for its own layer alone.
        features = FeatureErrors(whole, path)
        for function, given, once, each in (
            (performance, IMAGES[0], before[path], own[path] + behind[path]),
            (features, Fed(IMAGES[0], None), before[path] + own[path], own[path]),
        ):
            done, left = split(
                lambda kernel, fixed, function=function: function(kernel, *fixed),
                jnp.zeros(shape),
                (variables, given),
            )
            found = done((variables, given))
            assert count_macs(done, (variables, given)) == batch * once
            assert count_macs(left, jnp.zeros(shape), found) == batch * each


def test_compiled_once_for_all_batches_and_turns(network):
    _, variables = network
    traced = []

    def metric(outputs, batch):
        traced.append(batch.shape)
        return outputs[:, 0]

    kernels = normal(5, 5, 5, 4)
    for _ in range(2):
        tdjax.evaluate_candidates(TwoConvs(), variables, "head", kernels, IMAGES, metric, chunk=2)
    # Two sizes of batch; the last turn, of one kernel, is filled up.
    assert traced == [IMAGES[0].shape, IMAGES[2].shape]


def test_candidates_that_cannot_be_evaluated(network):
    model, variables = network
    kernels = normal(5, 3, 5, 4)

    def evaluate(path="head", kernels=kernels, batches=IMAGES, **options):
        return tdjax.evaluate_candidates(
            model, variables, path, kernels, batches, first_logit, **options
        )

    for wrong in (kernels[0], kernels[:0], kernels[:, :, :3], jnp.zeros((3,)), kernels[None]):
        with pytest.raises(ValueError, match=r"for layer 'head', expected \(n, 5, 4\)"):
            evaluate(kernels=wrong)
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="a kernel for layer 'head' holds NaN or Inf"):
            evaluate(kernels=kernels.at[1, 0, 0].set(value))
    with pytest.raises(ValueError, match=r"with batch 2 .* is NaN with every kernel"):
        evaluate(batches=[IMAGES[0], IMAGES[0].at[1].set(jnp.inf)])
    with pytest.raises(ValueError, match="no batches"):
        evaluate(batches=[])
    with pytest.raises(ValueError, match="an empty batch"):
        evaluate(batches=[IMAGES[0][:0]])
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        evaluate(chunk=0)
    with pytest.raises(KeyError, match="no parameters at 'tail'"):
        evaluate(path="tail")
    with pytest.raises(KeyError, match="'' has no kernel"):
        evaluate(path="")


def test_candidates_for_a_kernel_with_names_of_axes():
    class Named(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
            return nn.Dense(2, kernel_init=init, name="dense")(x)

    x = IMAGES[0].reshape(4, -1)
    kernels = jnp.stack([jnp.zeros((147, 2)), jnp.ones((147, 2))])
    variables = Named().init(jax.random.key(0), x)
    found = tdjax.evaluate_candidates(Named(), variables, "dense", kernels, [x], first_logit)
    np.testing.assert_allclose(found, [0, x.sum(axis=1).mean()], rtol=1e-4)
