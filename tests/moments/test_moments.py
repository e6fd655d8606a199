import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_models import normal, random_variables
from plain_networks import LanguageModel, NnxLanguageModel, NnxVisionTransformer, ScannedBlock

import tdjax

pytestmark = pytest.mark.filterwarnings("ignore:too few rows")
IMAGES = [normal(k, n, 7, 6, 3) for k, n in enumerate((3, 3, 2))]


class Network(nn.Module):
    """Convolutions of many kinds with an odd path between them."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (3, 3), name="same")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Conv(6, (3, 2), strides=(2, 1), padding=((1, 0), (2, 1)), name="strided")(x)
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=2, kernel_dilation=2, name="grouped")(x))
        x = nn.ConvTranspose(5, (2, 3), strides=(2, 2), name="up")(x)
        x = nn.relu(nn.Conv(4, (3, 3), padding="CIRCULAR", name="ring")(x))
        x = nn.DenseGeneral((2, 3), axis=(1, -1), name="general")(x)
        x = nn.relu(nn.Einsum((2, 3, 4), "abxy,xyz->abz", name="einsum")(x))
        shared = nn.Dense(4, name="shared")
        return nn.Dense(3, name="head")(shared(nn.relu(shared(x))).mean(axis=1))


def captured(model, variables, x):
    """Inputs and outputs of all layers, by path, in the order of the calls."""
    seen = []

    def record(next_fun, args, kwargs, context):
        output = next_fun(*args, **kwargs)
        if context.method_name in ("__call__", "attend") and args:
            seen.append(("/".join(context.module.path), context.module, args[0], output))
        return output

    with nn.intercept_methods(record):
        model.apply(variables, x)
    return seen


def conv_rows(module, x, group):
    """Patches (n, D) of one feature group, from the layer itself: one unit kernel at a time."""
    groups = getattr(module, "feature_group_count", 1)
    channels = x.shape[-1] // groups
    shape = (*module.kernel_size, channels)
    size = int(np.prod(shape))
    units = jnp.moveaxis(jnp.eye(size).reshape(size, *shape), 0, -1)
    own = x[..., group * channels : (group + 1) * channels]
    names = ("kernel_size", "strides", "padding", "kernel_dilation")
    settings = {"use_bias": False, **{name: getattr(module, name) for name in names}}
    answer = type(module)(size, **settings).apply({"params": {"kernel": units}}, own)
    return np.asarray(answer, np.float64).reshape(-1, size)


def moment(rows):
    return rows.T @ rows / len(rows)


def close(found, expected, tolerance=1e-5):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.fixture(scope="module")
def network():
    model = Network()
    variables = random_variables(model, IMAGES[0])
    variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])
    return model, variables


@pytest.fixture(scope="module")
def moments(network):
    return tdjax.collect_moments(*network, IMAGES)


def test_input_moments_are_those_of_explicit_rows(network, moments):
    model, variables = network
    rows = {}
    for x in IMAGES:
        for path, module, inputs, _ in captured(model, variables, x):
            groups = getattr(module, "feature_group_count", 1)
            if isinstance(module, (nn.Conv, nn.ConvTranspose)):
                made = [conv_rows(module, inputs, group) for group in range(groups)]
            elif isinstance(module, nn.DenseGeneral):
                wide = np.asarray(inputs, np.float64).transpose(0, 2, 1, 3)
                made = [wide.reshape(-1, wide.shape[2] * wide.shape[3])]
            elif isinstance(module, nn.Einsum):
                made = [np.asarray(inputs, np.float64).reshape(-1, 6)]
            elif isinstance(module, nn.Dense):
                made = [np.asarray(inputs, np.float64).reshape(-1, inputs.shape[-1])]
            else:
                continue
            rows.setdefault(path, []).append(made)
    assert set(rows) == set(moments)
    for path, found in rows.items():
        by_group = [np.concatenate(parts) for parts in zip(*found, strict=True)]
        close(moments[path].inputs, np.stack([moment(part) for part in by_group]))
        close(moments[path].mean, np.stack([part.mean(axis=0) for part in by_group]), 1e-4)
        assert float(moments[path].rows) == len(by_group[0])
        assert float(moments[path].examples) == 8


def loss_fn(outputs, batch):
    _, labels = batch
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), labels[:, None], axis=-1)[:, 0]


LABELLED = [(x, jnp.arange(len(x)) % 3) for x in IMAGES]


def test_gradient_moments_are_those_of_one_example_at_a_time(network, moments):
    model, variables = network
    found = tdjax.collect_moments(model, variables, LABELLED, loss_fn=loss_fn)
    rows = {path: [] for path in ("grouped", "up", "general", "einsum", "shared", "head")}
    for images, labels in LABELLED:
        for x, label in zip(images, labels, strict=True):
            shapes = captured(model, variables, x[None])

            def loss(shifts, x=x, label=label):
                turn = iter(shifts)

                def shift(next_fun, args, kwargs, context):
                    output = next_fun(*args, **kwargs)
                    wanted = context.method_name == "__call__" and context.module.path
                    return output + next(turn) if wanted and "/".join(wanted) in rows else output

                with nn.intercept_methods(shift):
                    outputs = model.apply(variables, x[None])
                return loss_fn(outputs, (x[None], label[None]))[0]

            called = [(path, out) for path, _, _, out in shapes if path in rows]
            gradients = jax.grad(loss)([jnp.zeros(out.shape) for _, out in called])
            for (path, _), gradient in zip(called, gradients, strict=True):
                rows[path].append(np.asarray(gradient, np.float64))
    for path, parts in rows.items():
        if path == "general":
            parts = [part.reshape(-1, 6) for part in parts]
        groups = 2 if path == "grouped" else 1
        flat = np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])
        by_group = np.split(flat, groups, axis=1)
        close(found[path].outputs, np.stack([moment(part) for part in by_group]), 1e-4)
        close(found[path].inputs, moments[path].inputs)


def test_the_mean_loss_gives_what_the_losses_give(network):
    model, variables = network
    options = {"paths": ("up", "head")}
    each = tdjax.collect_moments(model, variables, LABELLED, loss_fn=loss_fn, **options)
    mean = tdjax.collect_moments(
        model, variables, LABELLED, loss_fn=lambda *args: loss_fn(*args).mean(), **options
    )
    assert list(each) == ["up", "head"]
    for path in each:
        close(mean[path].outputs, each[path].outputs)


def test_many_passes_give_what_one_gives(network, moments):
    again = tdjax.collect_moments(*network, IMAGES, memory=10_000)
    jax.tree.map(close, again, moments)
    with pytest.raises(ValueError, match="passes over the batches to stay within 10,000 bytes"):
        tdjax.collect_moments(*network, iter(IMAGES), memory=10_000)
    once = tdjax.collect_moments(*network, iter(IMAGES))
    jax.tree.map(close, once, moments)


def test_few_rows_are_warned_of(network):
    with pytest.warns(UserWarning, match=r"too few rows .*: same \(126 rows of 27\)"):
        tdjax.collect_moments(*network, IMAGES[:1], paths="same")


def test_what_is_refused(network):
    with pytest.raises(ValueError, match="no batches"):
        tdjax.collect_moments(*network, [])
    with pytest.raises(ValueError, match="no layer that can be factorised matches 'none'"):
        tdjax.collect_moments(*network, IMAGES, paths="none")


def test_layers_inside_while_loops():
    x = normal(5, 40, 3)
    variables = random_variables(Looped(), x)
    with pytest.raises(ValueError, match=r"layer 'dense' is called inside `while`, .* paths="):
        tdjax.collect_moments(Looped(), variables, [x])
    found = tdjax.collect_moments(Looped(), variables, [x], paths="head")
    inputs, dense = np.asarray(x, np.float64), variables["params"]["dense"]
    for _ in range(3):
        inputs = inputs @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    close(found["head"].inputs[0], moment(inputs), 1e-4)


class Looped(nn.Module):
    """A dense layer three times in a while loop, and another one."""

    @nn.compact
    def __call__(self, x):
        dense, head = nn.Dense(3, name="dense"), nn.Dense(2, name="head")
        if self.is_initializing():
            return head(dense(x))
        _, x = nn.while_loop(
            lambda dense, state: state[0] < 3,
            lambda dense, state: (state[0] + 1, dense(state[1])),
            dense,
            (0, x),
        )
        return head(x)


TOKENS = [jnp.asarray(np.random.default_rng(k).integers(0, 24, (2, 6))) for k in range(2)]


def test_stack_of_layers_and_tied_embedding():
    model = LanguageModel()
    variables = random_variables(model, TOKENS[0])
    found = tdjax.collect_moments(model, variables, TOKENS)
    up = found["blocks/block/up"]
    assert up.inputs.shape == (2, 1, 16, 16)
    assert float(up.rows) == 24
    # The stack, layer by layer: the same network without the scan.
    x, rows, queries = None, [[], []], []
    for tokens in TOKENS:
        seen = captured(model, variables, tokens)
        x = next(out for path, _, _, out in seen if path == "embed")
        x = x + next(out for path, _, _, out in seen if path == "positions")
        for k in range(2):
            params = jax.tree.map(lambda leaf, k=k: leaf[k], variables["params"]["blocks"])
            block = ScannedBlock(2)
            inner = captured_scanned(block, {"params": params}, x)
            rows[k].append(np.asarray(inner["block/up"], np.float64).reshape(-1, 16))
            x, _ = block.apply({"params": params}, x, None)
        query = nn.LayerNorm().apply({"params": variables["params"]["LayerNorm_0"]}, x)
        queries.append(np.asarray(query, np.float64).reshape(-1, 16))
    for k in range(2):
        close(up.inputs[k, 0], moment(np.concatenate(rows[k])), 1e-4)
    embed = found["embed"]
    counts = np.bincount(np.concatenate([np.asarray(t).ravel() for t in TOKENS]), minlength=24)
    close(embed.inputs, counts[None] / 24)
    close(embed.outputs[0], moment(np.concatenate(queries)), 1e-4)


def captured_scanned(block, variables, x):
    seen = {}

    def record(next_fun, args, kwargs, context):
        if context.method_name == "__call__":
            seen["/".join(context.module.path)] = args[0]
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(record):
        block.apply(variables, x, None)
    return seen


@pytest.mark.parametrize("name", ["vision transformer", "language model"])
def test_nnx(name):
    make, sample = {
        "vision transformer": (NnxVisionTransformer, normal(1, 2, 16, 16, 3)),
        "language model": (NnxLanguageModel, TOKENS[0]),
    }[name]
    model = make(nnx.Rngs(0))
    found = tdjax.collect_moments(model, [sample, sample], loss_fn=lambda y, _: (y**2).mean())
    layers = {layer.path: layer for layer in tdjax.layer_table(model, sample)}
    assert set(found) == {path for path, layer in layers.items() if layer.obstacle is None}
    up = found["blocks/layers/0/up"]
    block = model.blocks.layers[0]
    inputs = []
    up_call = type(block.up).__call__

    class Seen(type(block.up)):
        def __call__(self, x):
            inputs.append(np.asarray(x, np.float64))
            return up_call(self, x)

    object.__setattr__(block.up, "__class__", Seen)
    model(sample)
    close(up.inputs[0], moment(inputs[0].reshape(-1, 16)), 1e-4)
    assert up.outputs.shape == (1, 32, 32)
    assert np.linalg.eigvalsh(np.asarray(up.outputs[0])).min() > -1e-9


def test_files(network, moments, tmp_path):
    path = tmp_path / "moments.npz"
    tdjax.save_moments(path, moments)
    loaded = tdjax.load_moments(path)
    assert list(loaded) == list(moments)
    assert jax.tree.structure(loaded) == jax.tree.structure(moments)
    jax.tree.map(np.testing.assert_array_equal, loaded, moments)
    assert [file.name for file in tmp_path.iterdir()] == ["moments.npz"]
    content = path.read_bytes()
    for damaged in (content[:-200], content[:100], b"", b"nothing of the kind"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"npz is not a file of moments, or it is damaged"):
            tdjax.load_moments(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(ValueError, match=r"moments\.npz is not a file of moments: layer"):
        tdjax.load_moments(path)
    with pytest.raises(FileNotFoundError):
        tdjax.load_moments(tmp_path / "none.npz")
