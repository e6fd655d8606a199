import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_layers import CIFAR, convolve, images, normalise, random_like, shapes_of, size

import experiments.error_study
import tdjax
from experiments.models import CifarResNet, GaripovNet, ResNet18, ResNet20, ResNet56, ResNet110
from experiments.models.resnet import BasicBlock

PUBLISHED = Path(experiments.error_study.__file__).parent / "published" / "ranks.json"


def table_of(model, sample=CIFAR):
    table = tdjax.layer_table(model, shapes_of(model, sample), sample)
    return {layer.path: layer for layer in table}


def test_parameters_of_garipov_net():
    convolutions = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 128), (128, 128)]
    expected = sum(9 * c * t + t for c, t in convolutions)
    # Scale and bias of a normalisation behind each but the last.
    expected += sum(2 * t for _, t in convolutions[:-1])
    # Maps of 32, then 15 and 7 behind the pools, 1 behind the average: 128 features.
    expected += 128 * 10 + 10
    assert expected == 557_642
    variables = shapes_of(GaripovNet())
    assert size(variables["params"]) == expected
    assert size(variables["batch_stats"]) == sum(2 * t for _, t in convolutions[:-1])


def test_parameters_of_resnet18():
    # torchvision's for ten classes, its 7x7 stem replaced by one of 3x3.
    expected = 11_181_642 - 7 * 7 * 3 * 64 + 3 * 3 * 3 * 64
    assert expected == 11_173_962
    assert size(shapes_of(ResNet18())["params"]) == expected
    by_hand = 9 * 3 * 64 + 2 * 64 + 512 * 10 + 10
    c = 64
    for stage in range(4):
        t = 64 * 2**stage
        for _ in range(2):
            by_hand += 9 * c * t + 9 * t * t + 4 * t
            by_hand += 0 if c == t else c * t + 2 * t
            c = t
    assert by_hand == expected


@pytest.mark.parametrize(
    ("model", "blocks", "expected"),
    [(ResNet20(), 3, 269_722), (ResNet56(), 9, 853_018), (ResNet110(), 18, 1_727_962)],
)
def test_parameters_of_resnets_for_cifar(model, blocks, expected):
    # The paper's 0.27M, 0.85M and 1.7M (its table 6), counted out.
    by_hand = 9 * 3 * 16 + 2 * 16 + 64 * 10 + 10
    c = 16
    for t in (16, 32, 64):
        by_hand += 9 * c * t + (2 * blocks - 1) * 9 * t * t + 4 * blocks * t
        c = t
    assert by_hand == expected
    variables = shapes_of(model)
    assert size(variables["params"]) == expected
    assert size(variables["batch_stats"]) == 2 * (16 + 2 * blocks * (16 + 32 + 64))


@pytest.mark.parametrize("depth", [0, 2, 18, 21])
def test_depths_that_no_resnet_for_cifar_has(depth):
    with pytest.raises(ValueError, match=f"depth is {depth}"):
        CifarResNet(depth)


def test_a_named_depth_is_not_overridden():
    with pytest.raises(TypeError, match="depth"):
        ResNet20(depth=56)


@pytest.mark.parametrize(
    ("name", "model"), [("garipovnet", GaripovNet()), ("resnet18", ResNet18())]
)
def test_layers_have_the_published_shapes(name, model):
    published = json.loads(PUBLISHED.read_text())[name]
    table = table_of(model)
    for layer, entry in published.items():
        # "layer1.1.conv2" is conv2 in the module "layer1.1".
        path = layer.replace(".conv", "/conv").replace(".down", "/down")
        c, kh, kw, t = entry["shape"]
        assert table[path].kernel_shape == (kh, kw, c, t)
        assert table[path].obstacle is None


def test_maps_of_garipov_net():
    table = table_of(GaripovNet())
    maps = {path: layer.out_spatial for path, layer in table.items()}
    assert maps == {
        "conv1": (32, 32),
        "conv2": (32, 32),
        "conv3": (15, 15),
        "conv4": (15, 15),
        "conv5": (7, 7),
        "conv6": (7, 7),
        "linear": (),
    }
    assert all(layer.in_spatial == layer.out_spatial for layer in table.values())


def test_pools_can_be_left_out():
    sample = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    table = table_of(GaripovNet(widths=(4, 4, 8, 8, 8, 8), pools=(2, 0)), sample)
    assert [table[f"conv{k}"].out_spatial[0] for k in range(1, 7)] == [8, 8, 4, 4, 4, 4]
    table = table_of(GaripovNet(widths=(4, 4, 8, 8, 8, 8), pools=(0, 2), average=2), sample)
    assert [table[f"conv{k}"].out_spatial[0] for k in range(1, 7)] == [8, 8, 8, 8, 4, 4]
    # Two by two windows of the average are left.
    assert table["linear"].kernel_shape == (4 * 8, 10)


def test_maps_of_resnet18():
    table = table_of(ResNet18())
    assert len(table) == 1 + 16 + 3 + 1
    assert (table["conv1"].in_spatial, table["conv1"].out_spatial) == ((32, 32), (32, 32))
    for stage, side in enumerate((16, 8, 4, 2), 1):
        before = side if stage == 1 else 2 * side
        for block in range(2):
            first, second = (table[f"layer{stage}.{block}/conv{k}"] for k in (1, 2))
            assert first.in_spatial == ((before,) * 2 if block == 0 else (side,) * 2)
            assert first.out_spatial == second.in_spatial == second.out_spatial == (side,) * 2
        if stage > 1:
            down = table[f"layer{stage}.0/downsample.0"]
            assert (down.in_spatial, down.out_spatial) == ((before,) * 2, (side,) * 2)
    assert "layer1.0/downsample.0" not in table
    assert table["fc"].kernel_shape == (512, 10)


def test_maps_of_resnet20():
    table = table_of(ResNet20())
    sides = {"conv1": (32, 32), "linear": ()}
    kernels = {"conv1": (3, 3, 3, 16), "linear": (64, 10)}
    c = 16
    for stage, side in enumerate((32, 16, 8), 1):
        t = 8 * 2**stage
        for block in range(3):
            for k in (1, 2):
                path = f"layer{stage}.{block}/conv{k}"
                sides[path], kernels[path] = (side, side), (3, 3, c, t)
                c = t
    assert {path: layer.out_spatial for path, layer in table.items()} == sides
    assert {path: layer.kernel_shape for path, layer in table.items()} == kernels


@pytest.mark.parametrize(
    ("model", "sample", "shape"),
    [
        (GaripovNet(), (2, 28, 28, 1), (2, 10)),
        (GaripovNet(widths=(4, 4, 8, 8, 8, 8), pools=(2, 0)), (3, 8, 8, 1), (3, 10)),
        (GaripovNet(classes=3, widths=(4, 4, 8, 8, 8, 8)), (1, 64, 48, 3), (1, 3)),
        (ResNet18(classes=7, width=4), (2, 28, 28, 1), (2, 7)),
        (CifarResNet(8, classes=7, width=3), (2, 27, 30, 1), (2, 7)),
    ],
)
def test_other_images(model, sample, shape):
    sample = jax.ShapeDtypeStruct(sample, jnp.float32)
    variables = shapes_of(model, sample)
    assert jax.eval_shape(model.apply, variables, sample).shape == shape


def max_pool(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")


def test_garipov_net_step_by_step():
    model = GaripovNet(classes=3, widths=(4, 4, 5, 5, 6, 6))
    x = images(2, 21, 21, 2)
    variables = random_like(shapes_of(model, x))

    def expected(variables, x):
        params, stats = variables["params"], variables["batch_stats"]
        for k in range(1, 7):
            x = convolve(x, params[f"conv{k}"])
            if k < 6:
                x = jnp.maximum(normalise(x, params[f"norm{k}"], stats[f"norm{k}"]), 0.0)
            if k in (2, 4):
                x = max_pool(x)
        # 21, 10 and 4: one window of the average.
        x = x.mean(axis=(1, 2))
        return x @ params["linear"]["kernel"] + params["linear"]["bias"]

    actual, wanted = jax.jit(lambda v, x: (model.apply(v, x), expected(v, x)))(variables, x)
    np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(actual).max()) > 0.01


def test_block_of_resnet_step_by_step():
    block = BasicBlock(features=6, stride=2)
    x = images(2, 7, 6, 4)
    variables = random_like(shapes_of(block, x))

    def expected(variables, x):
        p, s = variables["params"], variables["batch_stats"]
        y = jnp.maximum(normalise(convolve(x, p["conv1"], 2), p["bn1"], s["bn1"]), 0.0)
        y = normalise(convolve(y, p["conv2"]), p["bn2"], s["bn2"])
        short = convolve(x, p["downsample.0"], 2, padding=0)
        short = normalise(short, p["downsample.1"], s["downsample.1"])
        return jnp.maximum(y + short, 0.0)

    actual, wanted = jax.jit(lambda v, x: (block.apply(v, x), expected(v, x)))(variables, x)
    assert actual.shape == (2, 4, 3, 6)
    np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [GaripovNet(), ResNet18(), ResNet20()])
def test_training_renews_every_statistic(model):
    variables = shapes_of(model)
    logits, state = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]), variables, CIFAR
    )
    assert logits.shape == (2, 10)
    assert jax.tree.structure(state["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
    with pytest.raises(nn.module.errors.ModifyScopeVariableError):
        jax.eval_shape(lambda v, x: model.apply(v, x, train=True), variables, CIFAR)


@pytest.mark.parametrize("model", [GaripovNet(), ResNet18(), ResNet20()])
def test_networks_factorise(model):
    rules = [tdjax.Rule(path=".*", method="tt", compression=0.9)]
    plan = tdjax.make_plan(model, shapes_of(model), rules, CIFAR)
    assert size(shapes_of(tdjax.factorize(model, plan))["params"]) == plan.size
    assert plan.size < 0.2 * plan.size_before
