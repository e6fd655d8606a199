import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tdjax.decompose.formats import CP, TT, LowRank, Tucker
from tdjax.plan import chain, tt_matrix

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
    stages = chain.stages(shape, groups, method, ranks, spatial)
    kernels = random_kernels(stages)
    expected = [
        written_out(group(kernels, index, groups), method, spatial) for index in range(groups)
    ]
    dense = chain.reconstruct(kernels, shape, stages, method, groups)
    assert dense.shape == shape
    np.testing.assert_allclose(dense, np.concatenate(expected, axis=-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("method", "spatial", "ranks"), CHOICES, ids=IDS)
@pytest.mark.parametrize("groups", [1, 3])
def test_kernels_and_formats_are_inverse(method, spatial, ranks, groups):
    stages = chain.stages((3, 2, 6, 4 * groups), groups, method, ranks, spatial)
    kernels = random_kernels(stages)
    formats = chain.from_kernels(kernels, stages, method, groups)
    assert len(formats) == groups
    again = chain.to_kernels(formats, stages)
    assert list(again) == [stage.name for stage in stages]
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
    stages = chain.stages(kernel_shape, 1, method, ranks, spatial)
    kernels = random_kernels(stages)
    (part,) = chain.from_kernels(kernels, stages, method, 1)
    assert isinstance(part, kind)
    assert part.shape == shape
    assert part.size == sum(stage.size for stage in stages)
    dense = chain.reconstruct(kernels, kernel_shape, stages, method, 1)
    view = chain.tensor_view(dense, method, spatial)
    assert view.shape == shape
    np.testing.assert_array_equal(view, part.to_tensor())
    np.testing.assert_array_equal(chain.kernel_view(view, kernel_shape, method), dense)


def test_tensor_train_runs_over_input_space_output():
    kernel = normal(0, 3, 2, 6, 4)
    view = chain.tensor_view(kernel, "tt")
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
    stages = chain.stages((KH, KW, C, T), 1, method, ranks, spatial)
    assert sum(stage.size for stage in stages) == size
    in_groups = chain.stages((KH, KW, C, 3 * T), 3, method, ranks, spatial)
    assert sum(stage.size for stage in in_groups) == 3 * size


@pytest.mark.parametrize("method", ["svd", "cp", "tucker"])
def test_dense_kernel_becomes_two_matrices(method):
    stages = chain.stages((6, 8), 1, method, (3,))
    assert [stage.kernel_shape for stage in stages] == [(6, 3), (3, 8)]
    kernels = random_kernels(stages)
    dense = chain.reconstruct(kernels, (6, 8), stages, method, 1)
    np.testing.assert_allclose(dense, kernels["input"] @ kernels["output"], rtol=1e-5, atol=1e-5)


def test_stages_span_each_axis_once():
    for method, ranks in (("cp", (4,)), ("tucker", (2, 3)), ("tt", (2, 2, 2, 2)), ("svd", (4,))):
        stages = chain.stages((3, 4, 5, 6, 8), 2, method, ranks)
        assert sorted(axis for stage in stages for axis in stage.axes) == [0, 1, 2]
        assert [stage.name for stage in stages][:: len(stages) - 1] == ["input", "output"]


def test_unknown_method():
    with pytest.raises(ValueError, match=r"'fourier': known are cp, tucker, tt, svd"):
        chain.stages((3, 3, 4, 4), 1, "fourier", (2,))


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
    stages = chain.stages((3, 2, 6, 8), 2, method, ranks, spatial)
    expected = brute_macs(stages, (10, 12), (5, 4))
    assert chain.macs(stages, (10, 12), (5, 4), 1) == expected
    assert chain.macs(stages, (10, 12), (5, 4), 7) == 7 * expected


def test_macs_by_hand():
    # 10x10 input, stride 2: 1x1 4->3 on 100 positions, 3x1 on 5x10, 1x3 on 25, 1x1 3->8 on 25.
    stages = chain.stages((3, 3, 4, 8), 1, "cp", (3,))
    by_hand = 100 * 4 * 3 + 50 * 3 * 3 + 25 * 3 * 3 + 25 * 3 * 8
    assert chain.macs(stages, (10, 10), (5, 5), 1) == by_hand


def test_tt_matrix_against_its_definition():
    stages = chain.stages((12, 8), 1, "tt", (2, 3))
    assert [stage.kernel_shape for stage in stages] == [(1, 2, 2, 2), (2, 2, 2, 3), (3, 3, 2, 1)]
    kernels = random_kernels(stages)
    first, second, third = kernels.values()
    tensor = np.einsum("xaib,bcjd,dekx->aceijk", first, second, third)
    matrix = tensor.reshape(12, 8)
    np.testing.assert_allclose(
        chain.reconstruct(kernels, (12, 8), stages, "tt", 1), matrix, rtol=1e-5, atol=1e-6
    )
    rows = normal(3, 2, 5, 12)
    cores = list(kernels.values())
    np.testing.assert_allclose(tt_matrix.multiply(rows, cores), rows @ matrix, rtol=1e-4, atol=1e-5)
    index = np.arange(12).reshape(3, 4)
    np.testing.assert_allclose(
        tt_matrix.take_rows(cores, jnp.asarray(index)), matrix[index], rtol=1e-4, atol=1e-5
    )
    turned = [core.swapaxes(1, 2) for core in cores]
    np.testing.assert_allclose(
        tt_matrix.multiply(rows[..., :8], turned), rows[..., :8] @ matrix.T, rtol=1e-4, atol=1e-5
    )


def test_macs_of_a_tt_matrix_are_those_of_the_traced_product(count_macs):
    stages = chain.stages((12, 8), 1, "tt", (2, 3))
    cores = list(random_kernels(stages).values())
    rows = normal(3, 5, 12)
    found = count_macs(lambda rows: tt_matrix.multiply(rows, cores), rows)
    assert chain.macs(stages, (), (), 5) == found
    taken = count_macs(lambda index: tt_matrix.take_rows(cores, index), jnp.arange(7))
    assert chain.macs(stages, (), (), 0, lookups=7) == taken
