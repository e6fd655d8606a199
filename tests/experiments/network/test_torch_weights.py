import os
from itertools import product
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models import CifarResNet, ResNet20
from experiments.network.torch_weights import load_torch_npz

FOLDER = os.environ.get("TDJAX_WEIGHTS")
# Two blocks a stage: one that changes the width and the map, one that does not.
DEPTH, BLOCKS, WIDTH, CLASSES = 14, 2, 4, 3
IMAGES = (2, 9, 6, 2)


def torch_arrays():
    """A random network under PyTorch's names, in PyTorch's layouts, float64."""
    random = np.random.default_rng(0)
    arrays = {}

    def convolution(name, c, t):
        arrays[f"{name}.weight"] = random.normal(size=(t, c, 3, 3)) / np.sqrt(9 * c)

    def normalisation(name, c):
        arrays[f"{name}.weight"] = random.normal(size=c) + 1.0
        arrays[f"{name}.bias"] = random.normal(size=c)
        arrays[f"{name}.running_mean"] = random.normal(size=c)
        # Small ones too, where the epsilon shows.
        arrays[f"{name}.running_var"] = random.uniform(1e-4, 2.0, size=c)
        arrays[f"{name}.num_batches_tracked"] = np.array(7)

    convolution("conv1", IMAGES[-1], WIDTH)
    normalisation("bn1", WIDTH)
    c = WIDTH
    for stage in range(3):
        t = WIDTH * 2**stage
        for block in range(BLOCKS):
            for k in (1, 2):
                convolution(f"layer{stage + 1}.{block}.conv{k}", c, t)
                normalisation(f"layer{stage + 1}.{block}.bn{k}", t)
                c = t
    arrays["linear.weight"] = random.normal(size=(CLASSES, c))
    arrays["linear.bias"] = random.normal(size=CLASSES)
    return arrays


def convolved(x, weight, stride):
    """Sum over the window, one output pixel at a time; x is (b, c, h, w)."""
    height, width = (-(-side // stride) for side in x.shape[2:])
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.empty((len(x), len(weight), height, width))
    for i, j in product(range(height), range(width)):
        window = padded[:, :, stride * i : stride * i + 3, stride * j : stride * j + 3]
        out[:, :, i, j] = np.einsum("bchw,tchw->bt", window, weight)
    return out


def normalised(x, arrays, name):
    scale, bias, mean, var = (
        arrays[f"{name}.{part}"][:, None, None]
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def numpy_logits(arrays, images):
    """The paper's network, step by step, channels first."""
    x = convolved(images.transpose(0, 3, 1, 2), arrays["conv1.weight"], 1)
    x = np.maximum(normalised(x, arrays, "bn1"), 0.0)
    for stage, block in product((1, 2, 3), range(BLOCKS)):
        name = f"layer{stage}.{block}"
        changes = stage > 1 and block == 0
        y = convolved(x, arrays[f"{name}.conv1.weight"], 2 if changes else 1)
        y = np.maximum(normalised(y, arrays, f"{name}.bn1"), 0.0)
        y = normalised(convolved(y, arrays[f"{name}.conv2.weight"], 1), arrays, f"{name}.bn2")
        if changes:
            shortcut = np.zeros_like(y)
            quarter = y.shape[1] // 4
            shortcut[:, quarter : 3 * quarter] = x[:, :, ::2, ::2]
            x = shortcut
        x = np.maximum(x + y, 0.0)
    return x.mean(axis=(2, 3)) @ arrays["linear.weight"].T + arrays["linear.bias"]


def shapes_of(model, shape, dtype=jnp.float32):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)


@pytest.fixture
def model():
    return CifarResNet(DEPTH, classes=CLASSES, width=WIDTH)


def test_logits_of_a_network_written_in_numpy(tmp_path, float64, model):
    arrays = torch_arrays()
    np.savez(tmp_path / "net.npz", **arrays)
    images = np.random.default_rng(1).normal(size=IMAGES)
    with float64():
        variables = load_torch_npz(
            tmp_path / "net.npz", shapes_of(model, IMAGES, np.dtype("float64"))
        )
        logits = jax.jit(model.apply)(variables, jnp.asarray(images))
    assert logits.dtype == np.float64
    expected = numpy_logits(arrays, images)
    # The images differ in more than rounding.
    assert np.ptp(expected, axis=0).min() > 1e-3
    np.testing.assert_allclose(logits, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_variables_keep_structure_shapes_and_dtypes(tmp_path, model, dtype):
    np.savez_compressed(tmp_path / "net.npz", **torch_arrays())
    shapes = shapes_of(model, IMAGES, dtype)
    loaded = load_torch_npz(str(tmp_path / "net.npz"), shapes)
    assert jax.tree.structure(loaded) == jax.tree.structure(shapes)
    for leaf, shape in zip(jax.tree.leaves(loaded), jax.tree.leaves(shapes), strict=True):
        assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)


class Plain(nn.Module):
    """Other windows, groups and axes than those of a residual network, and a box."""

    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, None, None, "model"))
        x = nn.Conv(6, (2, 3), feature_group_count=2, kernel_init=init, name="grouped")(x)
        x = nn.Conv(5, (3,), name="row")(x[:, 0])
        return nn.Dense(2, use_bias=False, name="head")(x.mean(axis=1))


def test_other_layers_and_boxes(tmp_path):
    random = np.random.default_rng(2)
    shapes = {
        "grouped.weight": (6, 2, 2, 3),
        "grouped.bias": (6,),
        "row.weight": (5, 6, 3),
        "row.bias": (5,),
        "head.weight": (2, 5),
    }
    arrays = {name: random.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    np.savez(tmp_path / "net.npz", **arrays)
    variables = jax.eval_shape(Plain().init, jax.random.key(0), jnp.zeros((1, 4, 4, 4)))
    loaded = load_torch_npz(tmp_path / "net.npz", variables)
    box = loaded["params"]["grouped"]["kernel"]
    assert isinstance(box, nn.Partitioned)
    assert box.names == (None, None, None, "model")
    params = nn.unbox(loaded)["params"]
    for i, j, c, t in np.ndindex(2, 3, 2, 6):
        assert params["grouped"]["kernel"][i, j, c, t] == arrays["grouped.weight"][t, c, i, j]
    for i, c, t in np.ndindex(3, 6, 5):
        assert params["row"]["kernel"][i, c, t] == arrays["row.weight"][t, c, i]
    np.testing.assert_array_equal(params["head"]["kernel"], arrays["head.weight"].T)
    np.testing.assert_array_equal(params["row"]["bias"], arrays["row.bias"])


def refusal(file, model):
    """The message with which a file is refused."""
    with pytest.raises(ValueError, match="npz") as caught:
        load_torch_npz(file, shapes_of(model, IMAGES))
    assert str(caught.value).startswith(f"{file}: ")
    return str(caught.value)


def changed(array, value):
    array = array.copy()
    array.flat[-1] = value
    return array


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("layer2.0.bn1.running_var", None, "lacks layer2.0.bn1.running_var"),
        ("linear.weight", None, "lacks linear.weight"),
        ("linear.weight", np.transpose, "linear.weight has shape (16, 3); the model needs (3, 16)"),
        (
            "layer2.0.conv1.weight",
            lambda a: a.transpose(2, 3, 1, 0),
            "layer2.0.conv1.weight has shape (3, 3, 4, 8); the model needs (8, 4, 3, 3)",
        ),
        ("bn1.bias", lambda a: a[:3], "bn1.bias has shape (3,); the model needs (4,)"),
        ("bn1.bias", lambda a: changed(a, np.nan), "bn1.bias holds 1 values that are NaN"),
        ("conv1.weight", lambda a: changed(a, -np.inf), "conv1.weight holds 1 values that are NaN"),
        ("linear.bias", lambda a: changed(a, 1e300), "linear.bias holds 1 values that are NaN"),
        ("linear.bias", lambda a: a.astype(int), "linear.bias has dtype int64"),
        ("linear.bias", lambda a: a.astype(object), "not a whole npz file of plain arrays"),
    ],
)
def test_a_wrong_array_is_named(tmp_path, model, name, change, message):
    arrays = torch_arrays()
    if change is None:
        del arrays[name]
    else:
        arrays[name] = change(arrays[name])
    np.savez(tmp_path / "net.npz", **arrays)
    assert message in refusal(tmp_path / "net.npz", model)


@pytest.mark.parametrize(
    "name", ["layer4.0.conv1.weight", "conv1.num_batches_tracked", "conv1.bias"]
)
def test_an_array_left_over_is_named(tmp_path, model, name):
    np.savez(tmp_path / "net.npz", **torch_arrays(), **{name: np.zeros(4)})
    assert refusal(tmp_path / "net.npz", model).endswith(f"no place for, {name}")


def test_of_many_names_the_first_are_told(tmp_path, model):
    np.savez(tmp_path / "net.npz", unknown=np.zeros(1))
    lacking = sum("num_batches" not in name for name in torch_arrays())
    message = refusal(tmp_path / "net.npz", model)
    assert "lacks bn1.bias, bn1.running_mean" in message
    assert f"and {lacking - 5} more; it holds unknown in their place" in message


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"no archive",
        lambda content: content[: len(content) // 2],
        # A bit in the middle of an array.
        lambda content: content[:3000] + bytes([content[3000] ^ 1]) + content[3001:],
    ],
)
def test_a_damaged_file_is_named(tmp_path, model, damage):
    file = tmp_path / "net.npz"
    np.savez(file, **torch_arrays())
    file.write_bytes(damage(file.read_bytes()))
    assert "not a whole npz file" in refusal(file, model)


def test_a_file_that_is_not_there_is_named(tmp_path, model):
    assert "No such file" in refusal(tmp_path / "net.npz", model)
    (tmp_path / "folder.npz").mkdir()
    assert "cannot be read" in refusal(tmp_path / "folder.npz", model)
    with open(tmp_path / "one.npz", "wb") as file:
        np.save(file, np.zeros(3))
    assert "not a whole npz file" in refusal(tmp_path / "one.npz", model)


def test_variables_without_a_name_in_pytorch_are_refused(tmp_path):
    np.savez(tmp_path / "net.npz", weight=np.zeros((3, 2)))
    variables = {"params": {"table": jnp.zeros((3, 2))}}
    with pytest.raises(ValueError, match="params/table: its name in PyTorch is not known"):
        load_torch_npz(tmp_path / "net.npz", variables)


@pytest.mark.skipif(FOLDER is None, reason="TDJAX_WEIGHTS names no folder with the trained weights")
def test_logits_of_a_trained_network():
    folder = Path(FOLDER)
    model = ResNet20()
    variables = load_torch_npz(
        folder / "resnet20_cifar10.npz", shapes_of(model, (1, 32, 32, 3), jnp.float32)
    )
    with np.load(folder / "resnet20_reference.npz") as reference:
        images, expected = reference["images"], reference["logits"]
    mean, std = (np.array(v) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    standardised = jnp.asarray((images / 255 - mean) / std, jnp.float32)
    logits = jax.jit(model.apply)(variables, standardised)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3)
