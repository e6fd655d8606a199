import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.error_study.candidates import decompose_runs
from experiments.error_study.choices import plan_study
from experiments.error_study.error_names import DATA_ERRORS, ERRORS
from experiments.error_study.measure import compressed_records, moments_of_layers
from experiments.error_study.protocol import Protocol
from experiments.network.network import DECOMPOSE, configured
from experiments.workdir.fields import read_fields
from tdjax.params.tree import layer_params

pytest.importorskip("sklearn")

IMAGES = 30
CONFIG = {
    "seed": 3,
    "data": {"name": "digits", "train_size": 100, "validation_size": 20, "test_size": 20},
    "model": {"name": "garipovnet", "arguments": {"widths": [4, 4, 6], "pools": [2, 0]}},
    "train": {"epochs": 1, "batch_size": 40},
    "layers": ["conv2", "conv3"],
    "methods": ["cp", "svd"],
    "compressions": [0.3, 0.6],
    "runs": 2,
    "decompose": {"max_iters": 5, "tucker_iters": 2},
    # Neither number divides the images or the candidates.
    "measure": {"feature_images": IMAGES, "batch_size": 13, "chunk": 4},
    "finetune": {"epochs": 0},
}


@pytest.fixture(scope="module")
def study():
    protocol = read_fields(Protocol, CONFIG)
    return plan_study(configured(protocol), protocol)


@pytest.fixture(scope="module")
def moments(study):
    return moments_of_layers(study, study.network.start)


@pytest.fixture(scope="module", params=CONFIG["layers"])
def layer(study, moments, request):
    """A layer's path, its candidates' kernels, and their records."""
    path = request.param
    plans = {choice: plan for choice, plan in study.plans.items() if choice.layer == path}
    kernel = layer_params(study.network.start.params, path)["kernel"]
    protocol = study.protocol
    factors = decompose_runs(
        kernel, plans, protocol.runs_of, protocol.decompose, study.network.key(DECOMPOSE)
    )
    records = compressed_records(study, study.network.start, path, plans, factors, moments[path])
    kernels = {key: plans[key[0]].chain.dense(found) for key, found in factors.items()}
    bare = compressed_records(study, study.network.start, path, plans, factors, None)
    return path, np.asarray(kernel, np.float64), kernels, records, bare


def ends_of(study, path):
    """What goes into a layer, and the gradient of each image's loss at what comes out."""
    train = study.network.splits.train
    chosen = np.random.default_rng([CONFIG["seed"], 0]).permutation(100)[:IMAGES]
    images, labels = jnp.asarray(train.images[chosen]), jnp.asarray(train.labels[chosen])
    variables = study.network.start.collections
    seen = {}

    def loss(shift):
        def shifted(call, args, kwargs, context):
            out = call(*args, **kwargs)
            if context.module.name != path:
                return out
            seen["inputs"], seen["shape"] = args[0], out.shape
            return out if shift is None else out + shift

        with nn.intercept_methods(shifted):
            logits = study.network.module.apply(variables, images)
        chosen = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        return chosen.sum()

    loss(None)
    inputs = np.asarray(seen["inputs"], np.float64)
    return inputs, np.asarray(jax.grad(loss)(jnp.zeros(seen["shape"])), np.float64)


def patches(inputs):
    """Rows of a 3x3 convolution with a margin of zeros, in the order (window, channels)."""
    padded = np.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0)))
    _, height, width, _ = inputs.shape
    return np.stack(
        [
            image[i : i + 3, j : j + 3].ravel()
            for image in padded
            for i in range(height)
            for j in range(width)
        ]
    )


def test_errors_in_the_norms_of_the_data_are_those_of_explicit_rows(study, layer):
    path, kernel, kernels, records, _ = layer
    inputs, gradients = ends_of(study, path)
    rows, slopes = patches(inputs), gradients.reshape(-1, kernel.shape[-1])
    assert len(rows) == len(slopes) == IMAGES * inputs.shape[1] * inputs.shape[2]
    g = slopes.T @ slopes / len(slopes)

    def norms(x):
        # Of the rows that come out, no second moment of those that go in.
        out = rows @ x.reshape(-1, x.shape[-1])
        return np.sqrt(
            [(out**2).sum(), np.einsum("ni,ij,nj->", out, g, out)] / np.float64(len(rows))
        )

    assert set(records) == set(kernels)
    for key, record in records.items():
        errors = record["errors"]
        assert tuple(errors) == ERRORS + DATA_ERRORS
        absolute, whole = norms(kernel - np.asarray(kernels[key], np.float64)), norms(kernel)
        for name, value, size in zip(("covariance", "kronecker"), absolute, whole, strict=True):
            assert size > 0
            assert errors[f"{name}/absolute"] == pytest.approx(value, rel=1e-3)
            assert errors[f"{name}/relative"] == pytest.approx(value / size, rel=1e-3)


def test_the_six_do_not_depend_on_the_moments(layer):
    *_, records, bare = layer
    for key, record in records.items():
        six = {name: record["errors"][name] for name in ERRORS}
        assert bare[key] == {**record, "errors": six}


def test_moments_are_of_the_listed_layers_and_the_same_each_time(study, moments):
    assert tuple(moments) == tuple(CONFIG["layers"])
    again = moments_of_layers(study, study.network.start)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(moments), strict=True):
        np.testing.assert_array_equal(a, b)
    assert {int(found.examples) for found in moments.values()} == {IMAGES}
