import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_layers import CIFAR, convolve, images, normalise, random_like, shapes_of, size

import tdjax
from experiments.error_study.protocol import ModelSettings
from experiments.models import (
    VGG16,
    WRN16_8,
    DenseNet,
    DenseNet22,
    GoogLeNet,
    ImageNetResNet18,
    ResNet,
    ResNet18,
    ResNet50,
    WideResNet,
)
from experiments.models.densenet import DenseLayer, Transition
from experiments.models.googlenet import Inception, _max_pool, _means
from experiments.models.resnet import BasicBlock, Bottleneck
from experiments.models.wide_resnet import WideBlock
from experiments.network.build import NETWORKS, build_network
from experiments.network.forward import LinenNetwork

IMAGENET = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)


def vgg16_by_hand():
    widths = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    # Kernel, bias, scale and offset of each.
    total = sum(9 * c * t + 3 * t for c, t in zip([3, *widths], widths, strict=False))
    return total + 512 * 10 + 10


def densenet22_by_hand():
    total, c = 9 * 3 * 24, 24
    for block in range(3):
        for _ in range(3):
            total += 2 * c + 48 * c + 2 * 48 + 9 * 48 * 12
            c += 12
        if block < 2:
            total += 2 * c + c * (c // 2)
            c //= 2
    return total + 2 * c + 10 * c + 10


def wrn16_8_by_hand():
    total, c = 9 * 3 * 16, 16
    for t in (128, 256, 512):
        # Two blocks, the first with a projection.
        total += 2 * c + 9 * c * t + 2 * t + 9 * t * t + c * t
        total += 2 * (2 * t + 9 * t * t)
        c = t
    return total + 2 * c + 10 * c + 10


# Parameters, weight layers and multiply-accumulates of one image; the last where published. Those
# of the ImageNet networks are torchvision's, 1.814, 4.089 and 1.498 GMACs at 224x224.
PUBLISHED = {
    "vgg16": (VGG16(), CIFAR, 14_728_266, 14, 0.3132e9),
    "densenet22": (DenseNet22(), CIFAR, 71_686, 22, None),
    "wrn16_8": (WRN16_8(), CIFAR, 10_961_370, 17, None),
    "resnet18": (ResNet18(), CIFAR, 11_173_962, 21, None),
    "resnet18_imagenet": (ImageNetResNet18(), IMAGENET, 11_689_512, 21, 1.814e9),
    "resnet50": (ResNet50(), IMAGENET, 25_557_032, 54, 4.089e9),
    "googlenet": (GoogLeNet(), IMAGENET, 6_624_904, 58, 1.498e9),
}


@functools.cache
def published(name):
    """The shapes of the variables of one of them, and its layers: seconds for the deep ones."""
    model, sample, *_ = PUBLISHED[name]
    variables = shapes_of(model, sample)
    return variables, tdjax.layer_table(model, variables, sample)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name):
    model, sample, parameters, layers, macs = PUBLISHED[name]
    variables, table = published(name)
    assert size(variables["params"]) == parameters
    assert len(table) == layers
    assert [layer.path for layer in table if layer.obstacle] == []
    kernels = jax.tree.leaves_with_path(variables["params"])
    assert len([path for path, _ in kernels if path[-1].key == "kernel"]) == layers
    plan = tdjax.make_plan(model, variables, (), sample)
    assert plan.size == plan.size_before == parameters
    if macs is not None:
        assert plan.macs == pytest.approx(macs, rel=5e-4)


@pytest.mark.parametrize(
    ("expected", "by_hand"),
    [
        (14_728_266, vgg16_by_hand),
        (71_686, densenet22_by_hand),
        (10_961_370, wrn16_8_by_hand),
    ],
)
def test_counts_of_the_networks_for_cifar_by_hand(expected, by_hand):
    assert by_hand() == expected


def test_macs_of_wrn16_8_by_hand(count_macs):
    expected, c = 32 * 32 * 9 * 3 * 16, 16
    for t, side in ((128, 32), (256, 16), (512, 8)):
        expected += side * side * (9 * c * t + 3 * 9 * t * t + c * t)
        c = t
    expected += 512 * 10
    model, sample = WRN16_8(), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = shapes_of(model, sample)
    assert tdjax.make_plan(model, variables, (), sample).macs == expected
    assert count_macs(model.apply, variables, sample) == expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        # Table 2 of the paper on DenseNet.
        (DenseNet(100), 0.8e6),
        # Table 5 of the paper on wide networks.
        (WideResNet(40, 1), 0.6e6),
        (WideResNet(40, 2), 2.2e6),
        (WideResNet(40, 4), 8.9e6),
        (WideResNet(16, 8), 11.0e6),
    ],
)
def test_published_sizes_of_others(model, expected):
    assert size(shapes_of(model)["params"]) == pytest.approx(expected, abs=0.06e6)


@pytest.mark.parametrize("depth", [4, 17, 20])
@pytest.mark.parametrize("make", [DenseNet, lambda depth: WideResNet(depth, 2)])
def test_depths_that_neither_has(make, depth):
    with pytest.raises(ValueError, match=rf"depth is {depth}: known are 6 n \+ 4, that is 10, 16"):
        make(depth)


def test_what_names_say_is_not_overridden():
    for make, value in (
        (DenseNet22, {"depth": 40}),
        (WRN16_8, {"factor": 4}),
        (ResNet50, {"blocks": (1, 1, 1, 1)}),
    ):
        with pytest.raises(TypeError, match=next(iter(value))):
            make(**value)


@pytest.mark.parametrize("width", [0, 4, 12])
def test_widths_that_googlenet_cannot_divide(width):
    with pytest.raises(ValueError, match=f"width is {width}: known are multiples of 8"):
        GoogLeNet(width=width)


def test_images_too_small_for_vgg16():
    with pytest.raises(ValueError, match="images are 28x32: five max pools need 32x32"):
        shapes_of(VGG16(), jax.ShapeDtypeStruct((1, 28, 32, 3), jnp.float32))


# PyTorch's names of some weights, and their shapes there without the window.
TORCH = {
    "vgg16": {
        "features.0": (64, 3),
        "features.1": (64,),
        "features.7": (128, 64),
        "features.24": (512, 256),
        "features.40": (512, 512),
        "features.41": (512,),
        "classifier": (10, 512),
    },
    "densenet22": {
        "dense1.0.conv1": (48, 24),
        "dense1.2.conv2": (12, 48),
        "trans1.bn1": (60,),
        "trans2.conv1": (33, 66),
        "dense3.2.bn1": (57,),
        "bn": (69,),
        "fc": (10, 69),
    },
    "wrn16_8": {
        "block1.layer.0.convShortcut": (128, 16),
        "block1.layer.0.bn1": (16,),
        "block2.layer.0.conv1": (256, 128),
        "block3.layer.1.conv2": (512, 512),
        "bn1": (512,),
        "fc": (10, 512),
    },
    "resnet50": {
        "layer1.0.conv1": (64, 64),
        "layer1.0.downsample.0": (256, 64),
        "layer1.0.downsample.1": (256,),
        "layer2.0.conv1": (128, 256),
        "layer3.5.conv2": (256, 256),
        "layer4.2.conv3": (2048, 512),
        "fc": (1000, 2048),
    },
    "googlenet": {
        "conv1.conv": (64, 3),
        "conv3.conv": (192, 64),
        "inception3a.branch1.conv": (64, 192),
        "inception3b.branch2.1.conv": (192, 128),
        "inception4d.branch3.0.conv": (32, 512),
        "inception4e.branch4.1.conv": (128, 528),
        "inception5b.branch3.1.bn": (128,),
        "fc": (1000, 1024),
    },
}


@pytest.mark.parametrize("name", TORCH)
def test_names_and_shapes_are_those_of_pytorch(name):
    found = {}
    for path, leaf in jax.tree.leaves_with_path(published(name)[0]["params"]):
        if path[-1].key != "bias":
            module = ".".join(entry.key for entry in path[:-1])
            found[module] = leaf.shape[:-3:-1]
    assert {module: found.get(module) for module in TORCH[name]} == TORCH[name]


def test_maps_of_the_networks_for_imagenet():
    def sides(name):
        return {layer.path: layer.out_spatial[:1] for layer in published(name)[1]}

    resnet = sides("resnet50")
    assert resnet["conv1"] == (112,)
    for stage, side in enumerate((56, 28, 14, 7), 1):
        before = side if stage == 1 else 2 * side
        # The strides are taken by the second convolution.
        assert resnet[f"layer{stage}.0/conv1"] == (before,)
        assert resnet[f"layer{stage}.0/conv2"] == resnet[f"layer{stage}.0/downsample.0"] == (side,)
    google = sides("googlenet")
    for layer, side in (("conv1", 112), ("conv3", 56)):
        assert google[f"{layer}/conv"] == (side,)
    for module, side in (("3b", 28), ("4a", 14), ("4e", 14), ("5a", 7)):
        assert google[f"inception{module}/branch1/conv"] == (side,)


TINY = {
    "vgg16": {"width": 2},
    "densenet22": {"growth": 2, "dropout": 0.5},
    "wrn16_8": {"dropout": 0.5},
    "resnet18_imagenet": {"width": 2},
    "resnet50": {"width": 2},
    "googlenet": {"width": 8, "dropout": 0.5},
}


@pytest.mark.parametrize("name", TINY)
def test_networks_of_a_configuration(name):
    assert name in NETWORKS
    model = build_network(ModelSettings(name=name, arguments=TINY[name]), 7)
    variables = shapes_of(model)
    apply = jax.eval_shape(model.apply, variables, CIFAR)
    assert apply.shape == (2, 7)
    rngs = {"dropout": jax.random.key(0)}
    logits, state = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"], rngs=rngs),
        variables,
        CIFAR,
    )
    assert logits.shape == (2, 7)
    assert jax.tree.structure(state["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
    with pytest.raises(nn.module.errors.ModifyScopeVariableError):
        jax.eval_shape(lambda v, x: model.apply(v, x, train=True, rngs=rngs), variables, CIFAR)


@pytest.mark.parametrize(
    "model",
    [
        VGG16(width=2),
        DenseNet(10, growth=2),
        WideResNet(10, 1),
        ResNet(Bottleneck, (1, 1, 1, 1), classes=10, width=2),
        ResNet(BasicBlock, (1, 1, 1, 1), classes=10, width=2, small=True),
        GoogLeNet(classes=10, width=8),
    ],
    ids=lambda model: type(model).__name__,
)
def test_training_changes_every_statistic(model):
    x = images(4, 32, 32, 3)
    variables = random_like(shapes_of(model, x))
    state = {"batch_stats": variables["batch_stats"]}
    network = LinenNetwork(model)
    logits, after = jax.jit(network)(variables["params"], state, x, jax.random.key(0))
    assert logits.shape == (4, 10)
    assert np.isfinite(logits).all()
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), after, state)
    assert all(jax.tree.leaves(changed))


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "densenet22"])
def test_networks_factorise(name):
    model, sample, parameters, *_ = PUBLISHED[name]
    rules = [tdjax.Rule(path=".*", method="svd", compression=0.8)]
    plan = tdjax.make_plan(model, published(name)[0], rules, sample)
    assert size(shapes_of(tdjax.factorize(model, plan), sample)["params"]) == plan.size
    assert plan.size < 0.25 * parameters


@pytest.mark.parametrize(
    ("model", "last", "norm", "linear"),
    [
        (VGG16(width=2), "features.40", "features.41", "classifier"),
        (DenseNet(10, growth=2), "dense3.0", "bn", "fc"),
        (WideResNet(10, 1), "block3.layer.0", "bn1", "fc"),
        (ResNet(Bottleneck, (1, 1, 1, 1), width=2), "layer4.0", None, "fc"),
        (GoogLeNet(classes=10, width=8), "inception5b", None, "fc"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_ends_of_the_networks(model, last, norm, linear):
    x = images(2, 64, 64, 3)
    variables = random_like(shapes_of(model, x))
    params = variables["params"]
    logits, state = jax.jit(
        lambda v, x: model.apply(v, x, capture_intermediates=True, mutable=["intermediates"])
    )(variables, x)
    (y,) = state["intermediates"][last]["__call__"]
    if norm is not None:
        y = jnp.maximum(normalise(y, params[norm], variables["batch_stats"][norm]), 0.0)
    if isinstance(model, VGG16):
        assert y.shape[1:3] == (4, 4)
        y = y.reshape(2, 2, 2, 2, 2, -1).max(axis=(2, 4))
    expected = y.mean(axis=(1, 2)) @ params[linear]["kernel"] + params[linear]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_bottleneck_step_by_step():
    block = Bottleneck(features=3, stride=2)
    x = images(2, 7, 6, 4)
    variables = random_like(shapes_of(block, x))
    p, s = variables["params"], variables["batch_stats"]
    y = jnp.maximum(normalise(convolve(x, p["conv1"], padding=0), p["bn1"], s["bn1"]), 0.0)
    y = jnp.maximum(normalise(convolve(y, p["conv2"], 2), p["bn2"], s["bn2"]), 0.0)
    y = normalise(convolve(y, p["conv3"], padding=0), p["bn3"], s["bn3"])
    short = convolve(x, p["downsample.0"], 2, padding=0)
    short = normalise(short, p["downsample.1"], s["downsample.1"])
    actual = block.apply(variables, x)
    assert actual.shape == (2, 4, 3, 12)
    np.testing.assert_allclose(actual, jnp.maximum(y + short, 0.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("channels", "stride"), [(4, 2), (6, 1)])
def test_wide_block_step_by_step(channels, stride):
    block = WideBlock(features=6, stride=stride)
    x = images(2, 7, 6, channels)
    variables = random_like(shapes_of(block, x))
    p, s = variables["params"], variables["batch_stats"]
    first = jnp.maximum(normalise(x, p["bn1"], s["bn1"]), 0.0)
    y = normalise(convolve(first, p["conv1"], stride), p["bn2"], s["bn2"])
    y = convolve(jnp.maximum(y, 0.0), p["conv2"])
    # Of equal width the input itself is passed on, not what is made of it.
    short = x if channels == 6 else convolve(first, p["convShortcut"], stride, padding=0)
    np.testing.assert_allclose(block.apply(variables, x), y + short, rtol=1e-4, atol=1e-5)


def test_dense_layer_and_transition_step_by_step():
    x = images(2, 7, 6, 5)
    layer = DenseLayer(growth=2)
    variables = random_like(shapes_of(layer, x))
    p, s = variables["params"], variables["batch_stats"]
    y = convolve(jnp.maximum(normalise(x, p["bn1"], s["bn1"]), 0.0), p["conv1"], padding=0)
    y = convolve(jnp.maximum(normalise(y, p["bn2"], s["bn2"]), 0.0), p["conv2"])
    actual = layer.apply(variables, x)
    assert actual.shape == (2, 7, 6, 7)
    np.testing.assert_array_equal(actual[..., :5], x)
    np.testing.assert_allclose(actual[..., 5:], y, rtol=1e-4, atol=1e-5)
    transition = Transition()
    variables = random_like(shapes_of(transition, x))
    p, s = variables["params"], variables["batch_stats"]
    y = convolve(jnp.maximum(normalise(x, p["bn1"], s["bn1"]), 0.0), p["conv1"], padding=0)
    # The last row of seven is left over.
    y = y[:, :6].reshape(2, 3, 2, 3, 2, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(transition.apply(variables, x), y, rtol=1e-4, atol=1e-5)


def test_inception_step_by_step():
    module = Inception(widths=(2, 3, 4, 1, 2, 3))
    x = images(2, 5, 4, 3)
    variables = random_like(shapes_of(module, x))

    def step(x, name):
        p, s = variables["params"][name], variables["batch_stats"][name]
        y = convolve(x, p["conv"], padding=p["conv"]["kernel"].shape[0] // 2)
        # Its epsilon is another than that of the other networks.
        s = {"mean": s["bn"]["mean"], "var": s["bn"]["var"] + 1e-3 - 1e-5}
        return jnp.maximum(normalise(y, p["bn"], s), 0.0)

    around = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    pooled = jnp.stack([around[:, i : i + 5, j : j + 4] for i in range(3) for j in range(3)]).max(
        axis=0
    )
    expected = jnp.concatenate(
        [
            step(x, "branch1"),
            step(step(x, "branch2.0"), "branch2.1"),
            step(step(x, "branch3.0"), "branch3.1"),
            step(pooled, "branch4.1"),
        ],
        axis=-1,
    )
    assert variables["params"]["branch3.1"]["conv"]["kernel"].shape == (3, 3, 1, 2)
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("side", range(1, 10))
def test_max_pool_counts_its_windows_up(window, side):
    x = jnp.arange(float(side)).reshape(1, side, 1, 1) - 20.0
    # Until a window reaches the edge or over it.
    starts = range(0, max(side - window, 0) + 2, 2)
    starts = [start for start in starts if start == 0 or start - 2 + window < side]
    expected = [min(start + window, side) - 21.0 for start in starts]
    np.testing.assert_array_equal(_max_pool(x, window)[0, :, 0, 0], expected)


def test_means_over_shares_of_a_map():
    x = images(1, 14, 3, 2)
    # PyTorch's windows of 14 pixels in four; of three pixels in four, one is met twice.
    rows = [slice(0, 4), slice(3, 7), slice(7, 11), slice(10, 14)]
    columns = [slice(0, 1), slice(0, 2), slice(1, 3), slice(2, 3)]
    actual = _means(x, 4)
    assert actual.shape == (1, 4, 4, 2)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            expected = x[:, row, column].mean(axis=(1, 2))
            np.testing.assert_allclose(actual[:, i, j], expected, rtol=1e-5, atol=1e-6)


def test_auxiliary_heads():
    model = GoogLeNet(aux=True)
    variables = shapes_of(model, IMAGENET)
    assert variables.keys() == {"params", "batch_stats"}
    assert size(variables["params"]) == 13_004_888
    table = {layer.path: layer for layer in tdjax.layer_table(model, variables, IMAGENET)}
    assert [layer.path for layer in table.values() if layer.obstacle] == []
    for head, c in (("aux1", 512), ("aux2", 528)):
        assert table[f"{head}/conv/conv"].kernel_shape == (1, 1, c, 128)
        assert table[f"{head}/fc1"].kernel_shape == (2048, 1024)
        assert table[f"{head}/fc2"].kernel_shape == (1024, 1000)
    logits, state = jax.eval_shape(
        lambda v, x: model.apply(v, x, mutable=["intermediates"]), variables, IMAGENET
    )
    shapes = {name: [leaf.shape for leaf in kept] for name, kept in state["intermediates"].items()}
    assert logits.shape == (2, 1000)
    assert shapes == {"aux1_logits": [(2, 1000)], "aux2_logits": [(2, 1000)]}


def test_auxiliary_heads_change_no_logits():
    x = images(2, 32, 32, 3)
    with_heads = GoogLeNet(classes=3, width=8, aux=True)
    variables = random_like(shapes_of(with_heads, x))
    plain = {
        name: {module: of for module, of in tree.items() if not module.startswith("aux")}
        for name, tree in variables.items()
    }
    actual = jax.jit(with_heads.apply)(variables, x)
    np.testing.assert_allclose(
        actual, jax.jit(GoogLeNet(classes=3, width=8).apply)(plain, x), rtol=1e-5, atol=1e-6
    )
