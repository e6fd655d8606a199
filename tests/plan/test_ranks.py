import itertools
import json
import math
from importlib import resources

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tdjax.plan import ranks

PUBLISHED = json.loads(
    (resources.files("experiments.error_study") / "published" / "ranks.json").read_text(
        encoding="utf-8"
    )
)
LAYERS = [
    pytest.param(tuple(layer["shape"]), layer["keep"], id=f"{network}-{name}")
    for network, layers in PUBLISHED.items()
    if network != "note"
    for name, layer in layers.items()
]

KERNELS = st.one_of(
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 70), st.integers(1, 70)),
    st.tuples(st.integers(1, 7), st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
)
SHARES = st.floats(0.01, 1.2)


@pytest.mark.parametrize(("shape", "keep"), LAYERS)
def test_published_ranks(shape, keep):
    c, kh, kw, t = shape
    for percent, expected in keep.items():
        share = int(percent) / 100
        assert ranks.ranks_for("cp", (kh, kw, c, t), share) == (expected["cp"],)
        # Published in the order (T, C).
        assert ranks.ranks_for("tucker", (kh, kw, c, t), share) == tuple(expected["tucker"][::-1])


def test_every_published_layer_is_read():
    assert len(LAYERS) > 10
    assert all(len(layer.values[1]) == 5 for layer in LAYERS)


@settings(deadline=None)
@given(KERNELS, SHARES)
def test_cp_and_svd_counts_are_the_nearest(shape, keep):
    budget = keep * math.prod(shape)
    matrix = (math.prod(shape[:-1]), shape[-1])
    for rank, cost in (
        (ranks.cp_rank(shape, keep), sum(shape)),
        (ranks.svd_rank(shape, keep), sum(matrix)),
    ):
        assert rank >= 1
        distance = abs(rank * cost - budget)
        assert distance <= abs((rank + 1) * cost - budget) + 1e-9
        assert rank == 1 or distance <= abs((rank - 1) * cost - budget) + 1e-9


@settings(deadline=None)
@given(KERNELS, SHARES)
def test_tucker_ranks_solve_the_quadratic(shape, keep):
    *spatial, c, t = shape
    n = math.prod(shape)
    constant = sum(size * size for size in spatial) - keep * n
    positive = [a.real for a in np.roots([n, c * c + t * t, constant]) if a.real > 0]
    for rank, size in zip(ranks.tucker_ranks(shape, keep), (c, t), strict=True):
        assert abs(rank - max(1, max(positive, default=0) * size)) <= 0.5 + 1e-6


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=2, max_size=4), st.floats(0.02, 1.2))
@example([4, 2, 6], 0.75)
def test_tt_count_is_the_nearest_of_all_scales(shape, keep):
    dims = ranks.tt_order(shape)
    target = keep * math.prod(dims)
    means = [(a + b) / 2 for a, b in itertools.pairwise(dims)]
    if len(dims) < 2:
        # A matrix whose sizes have no factors in common number.
        assert ranks.tt_ranks(shape, keep) == ranks.full_ranks("tt", shape) == ()
        return
    # The ranks change only where s * mean crosses a half, and not beyond the full ranks.
    full = max(ranks.full_ranks("tt", shape))
    steps = sorted({(k + 0.5) / mean for mean in means for k in range(full + 1)})
    scales = [0.0, *((low + high) / 2 for low, high in itertools.pairwise(steps)), steps[-1] + 1]
    counts = {
        ranks.tt_size(
            dims, ranks.feasible_tt_ranks(dims, [max(1, round(s * mean)) for mean in means])
        )
        for s in scales
    }
    found = ranks.tt_size(dims, ranks.tt_ranks(shape, keep))
    assert found in counts
    assert abs(found - target) == min(abs(count - target) for count in counts)


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=5).flatmap(
        lambda dims: st.tuples(
            st.just(dims),
            st.lists(st.integers(1, 100), min_size=len(dims) - 1, max_size=len(dims) - 1),
        )
    )
)
def test_feasible_tt_ranks_are_the_highest_that_count(case):
    dims, asked = case
    found = ranks.feasible_tt_ranks(dims, asked)
    padded = (1, *found, 1)
    for k, rank in enumerate(found):
        assert rank <= min(asked[k], padded[k] * dims[k], dims[k + 1] * padded[k + 2])
        # Raising any one of them would break a bound or the request.
        bounds = (asked[k], padded[k] * dims[k], dims[k + 1] * padded[k + 2])
        assert rank == min(bounds)
    assert ranks.feasible_tt_ranks(dims, found) == found


@settings(deadline=None)
@given(KERNELS, SHARES, st.sampled_from(sorted(ranks.RANK_RULES)))
def test_ranks_stay_within_full(shape, keep, method):
    found = ranks.ranks_for(method, shape, keep)
    full = ranks.full_ranks(method, shape)
    assert len(found) == len(full)
    assert all(1 <= rank <= most for rank, most in zip(found, full, strict=True))
    if method == "tt":
        assert found == ranks.feasible_tt_ranks(ranks.tt_order(shape), found)


@settings(deadline=None)
@given(KERNELS, st.tuples(SHARES, SHARES), st.sampled_from(sorted(ranks.RANK_RULES)))
def test_more_kept_means_no_lower_rank(shape, shares, method):
    less, more = (ranks.ranks_for(method, shape, keep) for keep in sorted(shares))
    assert all(a <= b for a, b in zip(less, more, strict=True))


@pytest.mark.parametrize("shape", [(2, 2, 3, 5), (3, 4, 6), (5, 3), (1, 1, 4, 7)])
def test_full_ranks_are_those_of_a_generic_array(shape):
    x = np.random.default_rng(0).standard_normal(shape)
    *spatial, c, t = range(x.ndim)

    def rank(rows):
        columns = [axis for axis in range(x.ndim) if axis not in rows]
        size = math.prod(shape[axis] for axis in rows)
        return int(np.linalg.matrix_rank(x.transpose(*rows, *columns).reshape(size, -1)))

    assert ranks.full_ranks("svd", shape) == (rank([*spatial, c]),)
    assert ranks.full_ranks("tucker", shape) == (rank([c]), rank([t]))
    if not spatial:
        return
    order = [c, *spatial, t]
    assert ranks.full_ranks("tt", shape) == tuple(rank(order[:k]) for k in range(1, x.ndim))


def test_tt_size_counts_the_cores():
    cores = [np.zeros(shape) for shape in ((1, 4, 3), (3, 5, 2), (2, 6, 1))]
    assert ranks.tt_size((4, 5, 6), (3, 2)) == sum(core.size for core in cores)


def test_errors():
    with pytest.raises(ValueError, match=r"method 'hosvd': known are cp, tucker, tt, svd"):
        ranks.ranks_for("hosvd", (3, 3, 4, 4), 0.5)
    with pytest.raises(ValueError, match="method 'pca': known are"):
        ranks.full_ranks("pca", (4, 4))
    for keep in (0.0, -0.5, float("nan")):
        with pytest.raises(ValueError, match=f"keep must be above 0, got {keep}"):
            ranks.ranks_for("cp", (3, 3, 4, 4), keep)


@given(st.integers(1, 400), st.integers(1, 3))
def test_balanced_factors_have_the_least_largest(size, number):
    found = ranks.balanced_factors(size, number)
    assert math.prod(found) == size
    assert len(found) == number
    assert list(found) == sorted(found)
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    every = [c for c in itertools.product(divisors, repeat=number) if math.prod(c) == size]
    assert found[-1] == min(max(c) for c in every)


def test_modes_of_a_tt_matrix():
    assert ranks.matrix_modes(768, 3072) == ((8, 16), (8, 16), (12, 12))
    assert ranks.matrix_modes(6, 8) == ((2, 4), (3, 2))
    assert ranks.matrix_modes(7, 64) == ((7, 64),)
    assert ranks.tt_order((768, 3072)) == (128, 128, 144)
