import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tdjax
from tdjax.decompose import threads
from tdjax.decompose.on_host import factor_in_blocks
from tdjax.decompose.threads import side_by_side
from tdjax.moments.collect import LayerMoments


def where(_):
    return threading.current_thread(), [library.get() for library in threads._libraries()]


def test_each_in_a_thread_with_one_of_its_own_and_all_as_before(monkeypatch):
    monkeypatch.setattr(threads, "_cores", lambda: 3)
    before = where(0)
    found = side_by_side(where, range(6), lambda item: item != 2)
    here = [own == before for own in found]
    if not threads._libraries():
        assert all(here)
        return
    assert here == [False, False, True, False, False, False]
    assert all(set(counts) == {1} for thread, counts in found[:2])
    assert where(0) == before
    # Whichever comes first, the results keep their places.
    assert side_by_side(str, [1, 3, 2], size=lambda item: item) == ["1", "3", "2"]
    # A thread would not know that.
    with jax.default_matmul_precision("highest"):
        assert [own == before for own in side_by_side(where, range(3))] == [True] * 3
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda item: 1 / item, range(3))
    assert where(0) == before


def test_layers_side_by_side_are_what_they_are_in_turn(monkeypatch):
    rng = np.random.default_rng(0)
    shapes = {"a": (40, 24), "b": (24, 40), "c": (24, 24)}
    params = {name: jnp.asarray(rng.standard_normal(s), jnp.float32) for name, s in shapes.items()}

    def apply(params, x):
        return jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"]) @ params["a"] @ params["c"]

    x = jnp.ones((2, 40))
    rules = [tdjax.Rule(path=".*", method="svd", compression=0.5)]
    plan = tdjax.make_plan(apply, params, rules, x)

    one = jnp.ones(())

    def moment(size):
        rows = rng.standard_normal((99, size)).astype(np.float32)
        return jnp.asarray(rows.T @ rows / 99)[None]

    moments = {
        name: LayerMoments(moment(s[0]), jnp.zeros((1, s[0])), moment(s[1]), one, one)
        for name, s in shapes.items()
    }
    found = []
    for cores in (1, 3):
        monkeypatch.setattr(threads, "_cores", lambda cores=cores: cores)
        found.append(tdjax.factorize_params(params, plan, moments=moments))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), *found))


@pytest.mark.parametrize("singular", [False, True])
def test_equations_in_blocks_of_rows(singular):
    rng = np.random.default_rng(0)
    root = rng.standard_normal((300, 150 if singular else 400)).astype(np.float32)
    matrix, right = (
        root @ root.T,
        (root @ rng.standard_normal((root.shape[1], 7))).astype(np.float32),
    )
    factor = factor_in_blocks(matrix)
    found = factor.solve_transposed(factor.solve(right))
    assert found.dtype == np.float32
    np.testing.assert_allclose(matrix @ found, right, rtol=0, atol=2e-3 * abs(right).max())
