import jax
import jax.numpy as jnp

from tdjax.decompose import cp_als
from tdjax.decompose.formats import CP, LowRank, Tucker
from tdjax.moments.collect import LayerMoments


def test_arrays_are_told_by_type_and_shape():
    lowrank = LowRank(jnp.ones((4, 1)), jnp.ones((1, 3), jnp.bfloat16))
    assert repr(lowrank) == "LowRank(left=float32[4,1], right=bfloat16[1,3])"
    assert repr(CP((jnp.ones((2, 5)),))) == "CP(factors=(float32[2,5],))"
    tucker = Tucker(jnp.ones((2, 3)), (None, jnp.ones((4, 3))))
    assert repr(tucker) == "Tucker(core=float32[2,3], factors=(None, float32[4,3]))"


def test_numbers_are_told_and_what_a_trace_holds_is_not():
    moments = LayerMoments(None, None, jnp.eye(3)[None], jnp.float32(1e6), jnp.float32(0.1))
    told = (
        "LayerMoments(inputs=None, mean=None, outputs=float32[1,3,3], rows=1e+06, examples=0.1, "
        "kronecker='independent')"
    )
    assert repr(moments) == told
    traced = []
    jax.eval_shape(lambda x: traced.append(repr(x)) or x, moments)
    assert "rows=float32[]" in traced[0]
    # JAX puts all kinds of things into trees.
    assert "left=0" in repr(jax.tree.map(lambda _: 0, LowRank(jnp.ones((2, 1)), jnp.ones((1, 2)))))


def test_how_an_iteration_went():
    _, info = cp_als(jnp.ones((3, 2)), 1, key=jax.random.key(0), max_iters=5)
    assert repr(info).startswith("Info(error=")
    assert repr(info).endswith("errors=float32[5], converged=True)")
