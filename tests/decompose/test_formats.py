import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from tdjax.decompose.formats import CP, TT, Format, GroupedLowRank, LowRank, Tucker
from tdjax.decompose.products import khatri_rao, mode_products

SHAPE = (3, 4, 5, 2)


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def low_rank(seed=0):
    return LowRank(draw(seed, 6, 3), draw(seed + 1, 3, 5))


def grouped(seed=0):
    return GroupedLowRank(draw(seed, 2, 3, 2), draw(seed + 1, 2, 2, 5))


def cp(seed=0, shape=SHAPE, rank=3):
    return CP(tuple(draw(seed + k, n, rank) for k, n in enumerate(shape)))


def tucker(seed=0):
    return Tucker(draw(seed, 3, 2, 3, 2), (None, draw(seed + 1, 4, 2), draw(seed + 2, 5, 3), None))


def tt(seed=0):
    shapes = ((1, 3, 3), (3, 4, 4), (4, 5, 2), (2, 2, 1))
    return TT(tuple(draw(seed + k, *shape) for k, shape in enumerate(shapes)))


def by_einsum(array):
    """The dense array in float64, straight from the definition of each format."""
    parts = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(array)]
    match array:
        case LowRank():
            return np.einsum("mr,rn->mn", *parts)
        case GroupedLowRank():
            return np.einsum("kmr,krn->kmn", *parts).reshape(array.shape)
        case CP():
            return np.einsum("ar,br,cr,dr->abcd", *parts)
        case Tucker():
            return np.einsum("axyd,bx,cy->abcd", *parts)
        case TT():
            return np.einsum("qax,xby,ycz,zdq->abcd", *parts)


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


ALL = pytest.mark.parametrize("make", [low_rank, grouped, cp, tucker, tt])


@ALL
def test_to_tensor_is_the_definition(make):
    array = make()
    close(array.to_tensor(), by_einsum(array))
    assert array.to_tensor().shape == array.shape


@pytest.mark.parametrize("shape", [(4,), (4, 3), (2, 3, 4), (2, 3, 2, 3, 2)])
def test_cp_of_any_order(shape):
    factors = cp(shape=shape).factors
    subscripts = ",".join(f"{mode}r" for mode in "abcde"[: len(shape)])
    expected = np.einsum(
        f"{subscripts}->{'abcde'[: len(shape)]}", *(np.asarray(f, np.float64) for f in factors)
    )
    close(CP(factors).to_tensor(), expected)


def test_ranks_and_shapes():
    assert (low_rank().shape, low_rank().ranks) == ((6, 5), (3,))
    assert (cp().shape, cp().ranks) == (SHAPE, (3,))
    assert (tucker().shape, tucker().ranks) == (SHAPE, (2, 3))
    assert (tt().shape, tt().ranks) == (SHAPE, (3, 4, 2))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=8, max_size=8))
def test_sizes_of_convolution_formats(numbers):
    kh, kw, c, t, r, r1, r2, r3 = numbers
    k, d = kh * kw, c * kh * kw

    def size(kind, *shapes):
        return jax.eval_shape(lambda: kind(*(jnp.zeros(shape) for shape in shapes))).size

    def factors(*matrices):
        return CP(matrices)

    def core_and_factors(core, left, right):
        return Tucker(core, (None, None, left, right))

    def cores(*arrays):
        return TT(arrays)

    assert size(LowRank, (d, r), (r, t)) == r * (d + t)
    assert size(factors, *((n, r) for n in (kh, kw, c, t))) == r * (c + kh + kw + t)
    assert size(factors, *((n, r) for n in (k, c, t))) == r * (c + k + t)
    tucker2 = size(core_and_factors, (kh, kw, r1, r2), (c, r1), (t, r2))
    assert tucker2 == c * r1 + k * r1 * r2 + t * r2
    train = size(cores, (1, c, r1), (r1, kh, r2), (r2, kw, r3), (r3, t, 1))
    assert train == c * r1 + r1 * kh * r2 + r2 * kw * r3 + r3 * t


@pytest.mark.parametrize("make", [low_rank, cp, tucker, tt])
def test_mode_products_act_on_the_dense_array(make):
    array = make()
    sizes = (4, None, 2, 3) if len(array.shape) == 4 else (4, None)
    for wanted in (sizes, sizes[::-1]):
        matrices = [
            None if rows is None else draw(10 + k, rows, n)
            for k, (rows, n) in enumerate(zip(wanted, array.shape, strict=True))
        ]
        expected = by_einsum(array)
        for mode, matrix in enumerate(matrices):
            if matrix is not None:
                product = np.tensordot(np.asarray(matrix, np.float64), expected, (1, mode))
                expected = np.moveaxis(product, 0, mode)
        moved = array.mode_products(matrices)
        assert type(moved) is type(array)
        assert moved.ranks == array.ranks
        close(moved.to_tensor(), expected)
        close(mode_products(array.to_tensor(), matrices), expected)


def test_groups_of_rows_admit_products_along_the_columns_alone():
    array, matrix = grouped(), draw(10, 4, 5)
    assert (array.shape, array.ranks) == ((6, 5), (2,))
    close(array.mode_products([None, matrix]).to_tensor(), by_einsum(array) @ matrix.T)
    assert array.mode_products([None, None]) is array
    with pytest.raises(ValueError, match="a product along the rows mixes blocks"):
        array.mode_products([draw(11, 6, 6), None])


@ALL
def test_mode_products_need_one_matrix_for_each_mode(make):
    array = make()
    modes = len(array.shape)
    with pytest.raises(ValueError, match=f"{modes + 1} matrices for an array of {modes} modes"):
        array.mode_products([None] * (modes + 1))


@ALL
def test_pytree_round_trip(make):
    array = make()
    shapes = jax.tree.map(lambda leaf: leaf.shape, array)
    assert type(shapes) is type(array)
    leaves, structure = jax.tree.flatten(array)
    again = jax.tree.unflatten(structure, leaves)
    assert type(again) is type(array)
    for mine, its in zip(leaves, jax.tree.leaves(again), strict=True):
        assert mine is its
    assert array.size == sum(math.prod(leaf.shape) for leaf in leaves)
    assert jax.tree.structure(jax.jit(lambda a: a)(array)) == structure


@ALL
def test_vmap_is_a_loop_and_jit_is_eager(make):
    several = [make(seed) for seed in (0, 20, 40)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    together = jax.vmap(lambda array: array.to_tensor())(stacked)
    for one, alone in zip(together, several, strict=True):
        close(one, alone.to_tensor(), 1e-6)
        close(jax.jit(lambda array: array.to_tensor())(alone), alone.to_tensor(), 1e-6)


@ALL
def test_gradient_by_multilinearity(make):
    """The array is linear in each leaf, so a step in one leaf changes it by exactly the slope."""
    array = make()
    weights = draw(30, *array.shape)
    gradient = jax.grad(lambda a: jnp.sum(weights * a.to_tensor()))(array)
    leaves, structure = jax.tree.flatten(array)
    for k, slope in enumerate(jax.tree.leaves(gradient)):
        step = draw(31 + k, *leaves[k].shape)
        moved = jax.tree.unflatten(structure, [*leaves[:k], step, *leaves[k + 1 :]])
        expected = np.sum(np.asarray(weights, np.float64) * by_einsum(moved))
        scale = np.linalg.norm(slope) * np.linalg.norm(step)
        assert abs(float(jnp.sum(slope * step)) - expected) < 1e-5 * scale


def test_khatri_rao_is_the_column_wise_kronecker_product():
    a, b, c = draw(0, 2, 3), draw(1, 4, 3), draw(2, 3, 3)
    close(khatri_rao([a, b, c]), scipy.linalg.khatri_rao(scipy.linalg.khatri_rao(a, b), c))
    close(khatri_rao([a]), a)


def test_the_base_class_stands_for_nothing():
    for use in (lambda f: f.shape, lambda f: f.ranks, Format.to_tensor):
        with pytest.raises(TypeError, match="Format is abstract"):
            use(Format())
    with pytest.raises(TypeError, match="Format is abstract"):
        Format().mode_products([])


def matrices_of(found):
    """The factors whose condition decides how well a format can be trained."""
    if isinstance(found, LowRank):
        return [found.left, found.right.T]
    if isinstance(found, GroupedLowRank):
        return [*found.left, *found.right.swapaxes(1, 2)]
    if isinstance(found, Tucker):
        return [factor for factor in found.factors if factor is not None]
    return [found.cores[-1][:, :, 0].T]


@pytest.mark.parametrize(
    "make",
    [
        lambda a: LowRank(a(6, 3), a(3, 5)),
        lambda a: GroupedLowRank(a(2, 4, 3), a(2, 3, 5)),
        lambda a: CP((a(4, 3), a(5, 3), a(6, 3))),
        lambda a: Tucker(a(3, 2, 3), (None, a(5, 2), a(6, 3))),
        lambda a: TT((a(1, 4, 2), a(2, 5, 3), a(3, 6, 1))),
    ],
    ids=["low rank", "grouped", "cp", "tucker", "tt"],
)
def test_balanced_is_the_same_array_in_factors_of_the_best_condition(make):
    rng = np.random.default_rng(0)
    found = make(lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32))
    stretch = jnp.asarray(np.diag(np.geomspace(1, 1e-3, found.shape[-1])), jnp.float32)
    skewed = found.mode_products([*[None] * (len(found.shape) - 1), stretch])
    even = skewed.balanced()
    assert jax.tree.map(jnp.shape, even) == jax.tree.map(jnp.shape, skewed)
    np.testing.assert_allclose(even.to_tensor(), skewed.to_tensor(), rtol=0, atol=1e-5)
    if isinstance(found, CP):
        norms = np.stack([np.linalg.norm(factor, axis=0) for factor in even.factors])
        np.testing.assert_allclose(norms, np.broadcast_to(norms[0], norms.shape), rtol=1e-4)
        return
    for matrix in matrices_of(even):
        gram = np.asarray(matrix.T @ matrix)
        np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-5)
        if isinstance(found, Tucker | TT):
            np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-5)
