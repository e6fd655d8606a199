from collections import Counter
from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_models import normal

import tdjax
import tdjax.linen
from tdjax import Form, PlannedLayer
from tdjax.compute.rule import differing_ways
from tdjax.dispatch import layer_timing, timing
from tdjax.dispatch.alone import Program, alone, inputs_of
from tdjax.dispatch.layer_timing import Wanted, layer_timings
from tdjax.plan.ranks import full_ranks
from tdjax.plan.ways import RECONSTRUCT, ways_from
from tdjax.timings import turns
from tdjax.timings.grid import forms_of, ranks_of
from tdjax.timings.layer import FormTimings, LayerTimings

METHODS = ("svd", "tucker", "cp", "tt")


class Convolutions(nn.Module):
    """Two equal convolutions, one that differs by its stride, and a matrix."""

    @nn.compact
    def __call__(self, x):
        for name in ("first", "second"):
            x = nn.relu(nn.Conv(8, (3, 3), name=name)(x))
        x = nn.Conv(8, (3, 3), strides=2, padding=1, name="strided")(x)
        return nn.Dense(3, name="out")(x.reshape(len(x), -1))


class SameInNNX(nnx.Module):
    def __init__(self, rngs):
        for name in ("first", "second"):
            setattr(self, name, nnx.Conv(8, 8, (3, 3), rngs=rngs))
        self.strided = nnx.Conv(8, 8, (3, 3), strides=2, padding=1, rngs=rngs)
        self.out = nnx.Linear(3 * 3 * 8, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.second(nnx.relu(self.first(x))))
        return self.out(self.strided(x).reshape(len(x), -1))


def convolutions(params, x):
    def conv(x, name, stride, padding):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, params[name], (stride,) * 2, padding, dimension_numbers=numbers
        )

    x = jax.nn.relu(conv(jax.nn.relu(conv(x, "first", 1, "SAME")), "second", 1, "SAME"))
    return conv(x, "strided", 2, [(1, 1)] * 2).reshape(len(x), -1) @ params["out"]


X = normal(1, 2, 6, 6, 8)
SHAPES = dict.fromkeys(("first", "second", "strided"), (3, 3, 8, 8)) | {"out": (72, 3)}


def models():
    variables = jax.eval_shape(Convolutions().init, jax.random.key(0), X)
    params = {name: normal(k, *shape) for k, (name, shape) in enumerate(SHAPES.items())}
    return {
        "linen": (Convolutions(), variables),
        "nnx": (nnx.eval_shape(lambda: SameInNNX(nnx.Rngs(0))),),
        "function": (convolutions, params),
    }


def known(layer, wanted):
    """Seconds of a layer that was not measured: of its multiply-accumulates."""
    forms, dense = [], 1e-9 * float(layer.layer.macs) * layer.calls[0].shape[0]
    for form in forms_of(layer.layer, wanted.methods, wanted.splits):
        ranks = ranks_of(layer.layer, form)
        entries = [PlannedLayer(layer.layer, replace(form, ranks=own)) for own in ranks]
        ways = [ways_from(own.stages, "xla") if layer.calls[0].window else () for own in entries]
        seconds = [dense * float(own.macs / layer.layer.macs) for own in entries]
        forms.append(FormTimings(form, ranks, tuple(seconds), tuple(ways)))
    return LayerTimings(dense, tuple(forms), layer.layer.group_shape)


@pytest.mark.parametrize("name", ["linen", "nnx", "function"])
def test_equal_layers_share_one_measurement(monkeypatch, name):
    measured, lines = [], []

    def once(layer, wanted):
        measured.append(layer)
        return known(layer, wanted)

    monkeypatch.setattr(timing, "layer_timings", once)
    found = tdjax.time_layers(
        *models()[name], X, batch=4, methods=("svd",), rounds=1, progress=lines.append
    )
    assert list(found.layers) == list(SHAPES)
    assert Counter(own.layer.kernel_shape for own in measured) == {(3, 3, 8, 8): 2, (72, 3): 1}
    # Of the batch that is asked for; padded as the network pads it.
    first, strided, out = measured
    assert (first.calls[0].shape, out.calls[0].shape) == ((4, 6, 6, 8), (4, 72))
    assert first.calls[0].window.padding == strided.calls[0].window.padding == ((1, 1), (1, 1))
    assert (first.calls[0].window.strides, strided.calls[0].window.strides) == ((1, 1), (2, 2))
    assert found.batch == 4
    assert found.layers["first"] == found.layers["second"]
    ratio = found.layers["strided"].dense / found.layers["first"].dense
    assert ratio == pytest.approx(1 / 4)
    assert [str(own.form) for own in found.layers["first"].forms] == ["svd", "svd rows", "svd /2"]
    assert found.network > 0 <= found.rest
    assert lines[-1].startswith("time_layers: whole network:")


def test_forms_are_timed_in_the_fastest_of_their_ways(monkeypatch):
    # Shifted maps are fast, what multiplies out the kernel takes as long as the dense layer and a
    # tenth, and all else takes what its multiply-accumulates say.
    def seconds(program):
        entry = program.entry
        if entry.ways == (RECONSTRUCT,):
            return 1.1 * float(entry.layer.macs)
        return float(entry.macs) * (0.5 if "shifted" in entry.ways else 1.0)

    class Counted(Program):
        def __init__(self, layer, entry, turns, inputs):
            self.entry, self.turns = entry, turns

        def __call__(self):
            return 0.0

    monkeypatch.setattr(layer_timing, "Program", Counted)
    monkeypatch.setattr(turns, "_seconds", seconds)
    trace = tdjax.linen.trace(*models()["linen"], X)
    layer, times = alone(trace, trace.layers["first"])
    found = layer_timings(layer, Wanted(METHODS, (2,), True, 2))
    assert times == 1
    assert found.dense == float(layer.layer.macs)
    assert found.shape == (3, 3, 8, 8)
    for own in found.forms:
        assert own.ranks == ranks_of(layer.layer, own.form)
        for ranks, taken, ways in zip(own.ranks, own.seconds, own.ways, strict=True):
            entry = PlannedLayer(layer.layer, replace(own.form, ranks=ranks), ways=ways)
            whole = 1.1 * found.dense
            shifted = own.form.method == "cp"
            expected = min(float(entry.macs) * (0.5 if shifted else 1.0), whole)
            assert taken == pytest.approx(expected)
            assert (ways == (RECONSTRUCT,)) == (expected == whole)
            assert ("shifted" in ways) == (shifted and expected < whole)
    rule = layer_timings(layer, Wanted(("svd",), (), False, 2))
    assert {ways for own in rule.forms for ways in own.ways} == {()}


def test_grids_have_ranks_that_a_layer_can_have():
    layers = [
        tdjax.Layer("", "conv", (3, 3, 3, 64), 1, (32, 32), (32, 32)),
        tdjax.Layer("", "conv", (3, 3, 8, 64), 4, (9, 9), (5, 5)),
        tdjax.Layer("", "conv", (1, 1, 64, 128), 1, (8, 8), (4, 4)),
        tdjax.Layer("", "conv", (5, 40, 24), 1, (30,), (30,)),
        tdjax.Layer("", "conv_transpose", (2, 2, 16, 32), 1, (8, 8), (16, 16)),
        tdjax.Layer("", "dense", (768, 3072)),
        tdjax.Layer("", "dense", (7, 1)),
        tdjax.Layer("", "embed", (1000, 64)),
    ]
    for layer in layers:
        forms = forms_of(layer, METHODS, (2, 4))
        assert forms
        assert len(set(forms)) == len(forms)
        for form in forms:
            grid = ranks_of(layer, form)
            assert len(set(grid)) == len(grid) <= 9
            for ranks in grid:
                entry = PlannedLayer(layer, replace(form, ranks=ranks))
                full = full_ranks(form.method, entry.chain.rank_shape)
                assert all(1 <= r <= most for r, most in zip(ranks, full, strict=True))
            # As others are interpolated between them.
            FormTimings(form, grid, (1.0,) * len(grid), ((),) * len(grid))
    assert [str(own) for own in forms_of(layers[5], METHODS, (2,))] == ["svd", "svd /2", "tt"]
    assert [str(own) for own in forms_of(layers[2], METHODS, ())] == ["svd"]


def conv_layers():
    """Modules with an input each, and the form and ways in which they are computed."""
    conv = partial(nn.Conv, 8, use_bias=False)
    return {
        "dense": (conv((3, 3), strides=2), normal(1, 2, 7, 6, 4), None, ()),
        "circular": (conv((3, 3), padding="CIRCULAR"), normal(1, 2, 6, 6, 4), None, ()),
        "cp": (conv((3, 3), padding=((2, 0), (1, 1))), normal(1, 2, 6, 6, 4), Form("cp", (3,)),
               ("xla", "shifted", "shifted", "xla")),
        "multiplied out": (conv((3, 3), kernel_dilation=2), normal(1, 2, 6, 6, 4),
                           Form("tucker", (2, 3)), (RECONSTRUCT,)),
        "transposed": (nn.ConvTranspose(8, (3, 3), strides=(2, 2), use_bias=False),
                       normal(1, 2, 5, 5, 4), Form("svd", (3,)), ()),
        "splits": (nn.Dense(6, use_bias=False), normal(1, 2, 5, 8), Form("svd", (2,), splits=2),
                   ()),
        "train": (nn.Dense(16, use_bias=False), normal(1, 3, 16), Form("tt", (2, 3)), ()),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(conv_layers()))
def test_a_program_computes_the_layer(name):
    model, x, form, ways = conv_layers()[name]
    variables = model.init(jax.random.key(0), x)
    trace = tdjax.linen.trace(model, variables, x)
    layer, _ = alone(trace, trace.layers[""])
    entry = PlannedLayer(layer.layer, form, ways=ways)
    program = Program(layer, entry, 3, inputs_of(layer))
    (found,) = program()
    own = trace.layers[""]
    if form is None:
        kernel = program.kernels[0]
    else:
        names = [stage.name for stage in entry.stages]
        kernel = entry.chain.reconstruct(dict(zip(names, program.kernels, strict=True)))
    (inputs,) = program.inputs
    if name == "circular":
        # Zeros take no less time than what is wrapped around.
        model = model.clone(padding=1)
    kernel = own.storage.from_kernel(kernel)
    expected = model.apply({"params": {"kernel": kernel}}, inputs.reshape(x.shape))
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


class Repeated(nn.Module):
    """A cell over six steps, a table that is read and attended to, a layer that is called twice."""

    @nn.compact
    def __call__(self, tokens):
        table = nn.Embed(20, 8, name="table")
        cell = nn.scan(
            nn.SimpleCell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1,
            out_axes=1,
        )(8, name="cell")  # fmt: skip
        x = table(tokens)
        _, x = cell(jnp.zeros((len(tokens), 8)), x)
        twice = nn.Dense(8, name="twice")
        return table.attend(twice(twice(x)))


def test_calls_of_a_layer_are_taken_together_but_for_loops():
    tokens = jnp.zeros((3, 6), jnp.int32)
    variables = jax.eval_shape(Repeated().init, jax.random.key(0), tokens)
    trace = tdjax.linen.trace(Repeated(), variables, tokens)
    found = {path: alone(trace, own) for path, own in trace.layers.items()}
    shapes = {path: [own.shape for own in layer.calls] for path, (layer, _) in found.items()}
    assert shapes["twice"] == [(2 * 3 * 6, 8)]
    assert shapes["table"] == [(3 * 6,), (3 * 6, 8)]
    (cell,) = (path for path in found if path.startswith("cell") and path.endswith("/i"))
    assert shapes[cell] == [(3, 8)]
    assert (found[cell][1], found["twice"][1]) == (6, 1)
    # Rows that are taken, and a product with all of them.
    layer, _ = found["table"]
    entry = PlannedLayer(layer.layer, Form("svd", (2,)))
    program = Program(layer, entry, 2, inputs_of(layer))
    taken, attended = program()
    table = program.kernels[0] @ program.kernels[1]
    numbers, queries = program.inputs
    np.testing.assert_allclose(taken, table[numbers], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(attended, queries @ table.T, rtol=1e-5, atol=1e-6)


def test_wrong_numbers_are_refused():
    model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="time_layers: batch must be at least 1, got 0"):
        tdjax.time_layers(model, jnp.ones((2, 4)), batch=0)
    with pytest.raises(TypeError, match=r"time_layers: rounds is 1\.5: pass a whole number"):
        tdjax.time_layers(model, jnp.ones((2, 4)), rounds=1.5)


def test_ways_that_differ_are_tried():
    layer = tdjax.Layer("", "conv", (3, 3, 9, 9), 1, (8, 8), (8, 8))
    ways = {
        form: differing_ways(PlannedLayer(layer, form))
        for form in (Form("svd", (2,)), Form("cp", (4,)), Form("svd", (2,), splits=3))
    }
    assert [*ways.values()] == [
        ["xla", "product", "reconstruct"],
        ["xla", "shifted", "split", "product", "reconstruct"],
        ["xla", "split", "product", "reconstruct"],
    ]
