import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tdjax import Layer
from tdjax.decompose.formats import CP, TT, LowRank, Tucker
from tdjax.plan import tt_matrix
from tdjax.plan.chain import chain_of
from tdjax.plan.decide import plan_layer
from tdjax.plan.form import Form
from tdjax.plan.rules import Rule

# method, spatial, ranks
CHOICES = [
    ("cp", "separate", (5,)),
    ("cp", "merged", (5,)),
    ("tucker", "separate", (3, 4)),
    ("tt", "separate", (3, 4, 5)),
    ("svd", "separate", (5,)),
]
IDS = [f"{method}-{spatial}" for method, spatial, _ in CHOICES]


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def conv_chain(shape, groups, method, ranks, spatial="separate", **layer):
    return chain_of(Layer("", "conv", shape, groups, **layer), Form(method, ranks, spatial))


def tt_matrix_chain(**layer):
    return chain_of(Layer("", "dense", (12, 8), **layer), Form("tt", (2, 3)))


def random_kernels(stages):
    return {stage.name: normal(k, *stage.kernel_shape) for k, stage in enumerate(stages)}


def group(kernels, index, groups):
    """The part of every stage that belongs to one feature group, as NumPy arrays."""
    return {
        name: np.split(np.asarray(kernel, np.float64), groups, axis=-1)[index]
        for name, kernel in kernels.items()
    }


def written_out(k, method, spatial):
    """The dense kernel (kh, kw, C, T) of one group, index by index."""
    if method == "svd":
        return np.einsum("hwcr,rt->hwct", k["input"], k["output"][0, 0])
    first, last = k["input"][0, 0], k["output"][0, 0]
    if method == "tucker":
        return np.einsum("ca,hwab,bt->hwct", first, k["core"], last)
    if method == "tt":
        rows, columns = k["spatial_0"][:, 0], k["spatial_1"][0]
        return np.einsum("ca,hab,wbd,dt->hwct", first, rows, columns, last)
    if spatial == "merged":
        return np.einsum("cr,hwr,rt->hwct", first, k["spatial"][:, :, 0], last)
    rows, columns = k["spatial_0"][:, 0, 0], k["spatial_1"][0, :, 0]
    return np.einsum("cr,hr,wr,rt->hwct", first, rows, columns, last)


@pytest.mark.parametrize(("method", "spatial", "ranks"), CHOICES, ids=IDS)
@pytest.mark.parametrize("groups", [1, 2])
def test_reconstruct_equals_the_written_out_contraction(method, spatial, ranks, groups):
    shape = (3, 2, 6, 4 * groups)
    chain = conv_chain(shape, groups, method, ranks, spatial)
    kernels = random_kernels(chain.stages)
    expected = [
        written_out(group(kernels, index, groups), method, spatial) for index in range(groups)
    ]
    dense = chain.reconstruct(kernels)
    assert dense.shape == shape
    np.testing.assert_allclose(dense, np.concatenate(expected, axis=-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("method", "spatial", "ranks"), CHOICES, ids=IDS)
@pytest.mark.parametrize("groups", [1, 3])
def test_kernels_and_formats_are_inverse(method, spatial, ranks, groups):
    chain = conv_chain((3, 2, 6, 4 * groups), groups, method, ranks, spatial)
    kernels = random_kernels(chain.stages)
    formats = chain.from_kernels(kernels)
    assert len(formats) == groups
    again = chain.to_kernels(formats)
    assert list(again) == [stage.name for stage in chain.stages]
    jax.tree.map(np.testing.assert_array_equal, again, kernels)


@pytest.mark.parametrize(
    ("method", "spatial", "kind", "shape"),
    [
        ("cp", "separate", CP, (3, 2, 6, 4)),
        ("cp", "merged", CP, (6, 6, 4)),
        ("tucker", "separate", Tucker, (3, 2, 6, 4)),
        ("tt", "separate", TT, (6, 3, 2, 4)),
        ("svd", "separate", LowRank, (36, 4)),
    ],
)
def test_format_of_a_chain_stands_for_the_tensor_view(method, spatial, kind, shape):
    kernel_shape = (3, 2, 6, 4)
    ranks = next(r for m, s, r in CHOICES if (m, s) == (method, spatial))
    chain = conv_chain(kernel_shape, 1, method, ranks, spatial)
    kernels = random_kernels(chain.stages)
    (part,) = chain.from_kernels(kernels)
    assert isinstance(part, kind)
    assert part.shape == shape
    assert part.size == chain.size == sum(kernel.size for kernel in kernels.values())
    dense = chain.reconstruct(kernels)
    view = chain.tensor_view(dense)
    assert view.shape == shape
    np.testing.assert_array_equal(view, part.to_tensor())
    np.testing.assert_array_equal(chain.kernel_view(view), dense)


def test_tensor_train_runs_over_input_space_output():
    kernel = normal(0, 3, 2, 6, 4)
    view = conv_chain(kernel.shape, 1, "tt", (2, 2, 2)).tensor_view(kernel)
    np.testing.assert_array_equal(view, np.einsum("hwct->chwt", kernel))


# The table of the formats: parameters of a layer with C input and T output channels.
C, T, KH, KW = 6, 8, 3, 5


@pytest.mark.parametrize(
    ("method", "spatial", "ranks", "size"),
    [
        ("svd", "separate", (2,), 2 * (C * KH * KW + T)),
        ("cp", "separate", (7,), 7 * (C + KH + KW + T)),
        ("cp", "merged", (7,), 7 * (C + KH * KW + T)),
        ("tucker", "separate", (2, 3), C * 2 + KH * KW * 2 * 3 + T * 3),
        ("tt", "separate", (2, 3, 4), C * 2 + 2 * KH * 3 + 3 * KW * 4 + 4 * T),
    ],
)
def test_sizes_are_those_of_the_formats(method, spatial, ranks, size):
    assert conv_chain((KH, KW, C, T), 1, method, ranks, spatial).size == size
    assert conv_chain((KH, KW, C, 3 * T), 3, method, ranks, spatial).size == 3 * size


@pytest.mark.parametrize("method", ["svd", "cp", "tucker"])
def test_dense_kernel_becomes_two_matrices(method):
    layer = Layer("head", "dense", (6, 8))
    chain = plan_layer(layer, Rule(path=".*", method=method, rank=3)).chain
    assert [stage.kernel_shape for stage in chain.stages] == [(6, 3), (3, 8)]
    kernels = random_kernels(chain.stages)
    dense = chain.reconstruct(kernels)
    np.testing.assert_allclose(dense, kernels["input"] @ kernels["output"], rtol=1e-5, atol=1e-5)
    if method != "svd":
        with pytest.raises(ValueError, match=f"layer 'head': '{method}' of a matrix .* use 'svd'"):
            chain_of(layer, Form(method, (3,)))


def test_stages_span_each_axis_once():
    for method, ranks in (("cp", (4,)), ("tucker", (2, 3)), ("tt", (2, 2, 2, 2)), ("svd", (4,))):
        stages = conv_chain((3, 4, 5, 6, 8), 2, method, ranks).stages
        assert sorted(axis for stage in stages for axis in stage.axes) == [0, 1, 2]
        assert [stage.name for stage in stages][:: len(stages) - 1] == ["input", "output"]


def test_a_form_that_means_nothing_is_refused():
    with pytest.raises(ValueError, match=r"'fourier': known are cp, tucker, tt, svd"):
        Form("fourier", (2,))
    for wrong, message in (
        ({"spatial": "merged"}, "only method 'cp' knows spatial='merged'"),
        ({"spatial": "half"}, "separate, merged"),
        ({"splits": 2}, "only method 'svd' knows splits and fold"),
        ({"fold": "rows"}, "only method 'svd' knows splits and fold"),
        ({"splits": 0}, "splits must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Form("tt", (2,), **wrong)


def brute_macs(stages, in_spatial, out_spatial):
    """Run a map of positions through the chain, stage by stage."""
    sizes, total = list(in_spatial), 0
    for stage in stages:
        for axis in stage.axes:
            sizes[axis] = out_spatial[axis]
        # An output value takes one product for every weight that leads to it.
        *window, fan_in, out = stage.kernel_shape
        values = math.prod(sizes) * out
        total += values * math.prod(window) * fan_in
    return total


@pytest.mark.parametrize(("method", "spatial", "ranks"), CHOICES, ids=IDS)
def test_macs(method, spatial, ranks):
    sizes = {"in_spatial": (10, 12), "out_spatial": (5, 4)}
    chain = conv_chain((3, 2, 6, 8), 2, method, ranks, spatial, **sizes)
    expected = brute_macs(chain.stages, (10, 12), (5, 4))
    assert chain.macs == expected
    often = conv_chain((3, 2, 6, 8), 2, method, ranks, spatial, **sizes, positions=7)
    assert often.macs == 7 * expected


def test_macs_by_hand():
    # 10x10 input, stride 2: 1x1 4->3 on 100 positions, 3x1 on 5x10, 1x3 on 25, 1x1 3->8 on 25.
    by_hand = 100 * 4 * 3 + 50 * 3 * 3 + 25 * 3 * 3 + 25 * 3 * 8
    sizes = {"in_spatial": (10, 10), "out_spatial": (5, 5)}
    assert conv_chain((3, 3, 4, 8), 1, "cp", (3,), **sizes).macs == by_hand


def test_tt_matrix_against_its_definition():
    chain = tt_matrix_chain()
    shapes = [stage.kernel_shape for stage in chain.stages]
    assert shapes == [(1, 2, 2, 2), (2, 2, 2, 3), (3, 3, 2, 1)]
    kernels = random_kernels(chain.stages)
    first, second, third = kernels.values()
    tensor = np.einsum("xaib,bcjd,dekx->aceijk", first, second, third)
    matrix = tensor.reshape(12, 8)
    np.testing.assert_allclose(chain.reconstruct(kernels), matrix, rtol=1e-5, atol=1e-6)
    rows = normal(3, 2, 5, 12)
    cores = list(kernels.values())
    np.testing.assert_allclose(tt_matrix.multiply(rows, cores), rows @ matrix, rtol=1e-4, atol=1e-5)
    index = np.arange(12).reshape(3, 4)
    np.testing.assert_allclose(
        chain.take_rows(cores, jnp.asarray(index)), matrix[index], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        chain.attend(cores, rows[..., :8]), rows[..., :8] @ matrix.T, rtol=1e-4, atol=1e-5
    )


def test_macs_of_a_tt_matrix_are_those_of_the_traced_product(count_macs):
    cores = list(random_kernels(tt_matrix_chain().stages).values())
    rows = normal(3, 5, 12)
    found = count_macs(lambda rows: tt_matrix.multiply(rows, cores), rows)
    assert tt_matrix_chain(positions=5).macs == found
    taken = count_macs(lambda index: tt_matrix.take_rows(cores, index), jnp.arange(7))
    assert tt_matrix_chain(positions=0, lookups=7).macs == taken
