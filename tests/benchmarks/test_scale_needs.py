"""What large models need, held to what the library makes and compiles at small scale."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tdjax
from benchmarks.scale import Needs, collecting, in_words, models, moments
from benchmarks.scale_models import SHAPES, Shape, planned
from benchmarks.scale_needs import (
    Matrix,
    arguments,
    compiled_decomposition,
    dealt,
    decomposing,
    distinct_moments,
    input_moments,
    matrices_of,
    output_moments,
    summing,
)
from tdjax.linen.table import trace
from tdjax.moments.losses import Given, Turn
from tdjax.moments.rows import Vectors
from tdjax.moments.sums import batch_sums, summed_calls
from tdjax.trace.call import Reading, split_arrays

# Two blocks in which no two widths are alike, heads are shared, and nothing takes long.
LITTLE = Shape(32, 2, 4, 2, 48, True, 40, 8)


@pytest.fixture(scope="module")
def little():
    return planned(LITTLE)


@pytest.fixture(scope="module")
def arrays(little):
    return little.model.init(jax.random.key(0), jnp.zeros((1, 8), int))


def loss(logits, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean(axis=-1)


@pytest.fixture(scope="module")
def collected(little, arrays):
    tokens = jax.random.randint(jax.random.key(1), (64, 8), 0, 40)
    return tdjax.collect_moments(
        little.model, arrays, [(tokens, tokens)], loss_fn=loss, paths=r"block\d+/.*"
    )


def test_moments_take_the_bytes_that_are_predicted(little, collected):
    matrices = matrices_of(little.plan)
    assert set(collected) == {one.path for one in matrices}
    assert input_moments(matrices) == sum(own.inputs.nbytes for own in collected.values())
    assert output_moments(matrices) == sum(own.outputs.nbytes for own in collected.values())


def test_layers_that_read_the_same_have_the_same_moments(little, collected):
    distinct = {np.asarray(own.inputs).tobytes() for own in collected.values()}
    assert distinct_moments(matrices_of(little.plan)) == sum(map(len, distinct))


def test_a_plan_from_shapes_is_that_of_arrays(little, arrays):
    params = tdjax.factorize_params(arrays["params"], little.plan)
    assert little.plan.size == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert little.plan.size_before == sum(leaf.size for leaf in jax.tree.leaves(arrays))
    shapes = jax.eval_shape(
        lambda params: tdjax.factorize_params(params, little.plan), little.variables["params"]
    )
    assert jax.tree.map(lambda leaf: leaf.shape, shapes) == jax.tree.map(
        lambda leaf: leaf.shape, params
    )


def test_the_shapes_are_those_of_the_published_models():
    def size(shape):
        own, heads = shape.width, shape.width // shape.heads * shape.shared
        attention, between = 2 * own * own + 2 * own * heads, own * shape.hidden
        return shape.blocks * (attention + 3 * between + 2 * own) + 2 * shape.outputs * own + own

    # As they are counted from the released weights.
    assert size(SHAPES["7 B"]) == 6_738_415_616
    assert size(SHAPES["70 B"]) == 68_976_648_192


def operations(compiled):
    return compiled.cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("rows", "columns", "norm"),
    [
        (4096, 1024, "frobenius"),
        (1024, 4096, "covariance"),
        (4096, 1024, "kronecker"),
        (1024, 4096, "kronecker"),
    ],
)
def test_products_of_a_decomposition_are_those_compiled(rows, columns, norm):
    one = Matrix("", rows, columns, 400)
    compiled = compiled_decomposition(one, norm)
    # Cholesky, QR and eigenvectors are calls into a library, which XLA does not count.
    counted = operations(compiled)
    assert decomposing(one, norm).products == pytest.approx(counted, rel=0.02)
    # What is not read is no argument: the moments, in the Frobenius norm.
    assert compiled.memory_analysis().argument_size_in_bytes == arguments(one, norm)


def test_sums_are_those_compiled():
    rows = jax.ShapeDtypeStruct((1000, 64), jnp.float32)
    counted = operations(jax.jit(Vectors(64).sums).lower(rows).compile())
    assert 1000 * summing([Matrix("", 64, 32, 1)], gradients=False) == pytest.approx(
        counted, rel=0.02
    )


def test_moments_cost_the_operations_that_are_predicted():
    """Forward, back to the layers alone, and the sums: of the program for one batch."""
    # Wide enough that products are nearly all there is.
    shape = Shape(128, 2, 4, 2, 192, True, 40, 64)
    own = planned(shape)
    batch = (jnp.zeros((4, 64), int), jnp.zeros((4, 64), int))
    matrices = matrices_of(own.plan)
    traced = trace(own.model, own.variables, batch[0])
    calls = summed_calls(traced, {one.path for one in matrices})
    arrays, static = split_arrays(batch)
    program = batch_sums(traced, calls, static, Given(loss), Reading(first=True))
    turn = Turn(None, np.zeros(2, np.int32))
    leaves = jax.tree.leaves(own.variables)
    counted = operations(jax.jit(program).lower(leaves, arrays, turn).compile())
    model, sums = collecting(Needs("little", own, matrices), gradients=True, rows=4 * 64)
    assert model + sums == pytest.approx(counted, rel=0.02)


def test_layers_are_dealt_out():
    assert dealt([4.0, 3.0, 3.0, 2.0], 2) == 6.0
    assert dealt([4.0, 3.0], 1) == 7.0
    assert dealt([4.0, 3.0], 9) == 4.0


def test_other_plans_are_refused():
    model = planned(Shape(16, 1, 2, 2, 24, False, 10, 4))
    rules = [tdjax.Rule(path="patches", method="tucker", compression=0.5)]
    plan = tdjax.make_plan(model.model, model.variables, rules, model.shape.sample)
    with pytest.raises(ValueError, match=r"patches.*by low rank"):
        matrices_of(plan)


def test_tables_have_a_row_for_each_model():
    assert next(line for line in models(["ViT-L/16"]) if "ViT" in line).startswith(
        "| ViT-L/16 | 304,324,584 | 144 |"
    )
    assert len(list(moments(["ViT-L/16"]))) == 3
    assert [in_words(own) for own in (0.034, 115, 600, 9000)] == [
        "0.034 s",
        "115 s",
        "10 min",
        "2.5 h",
    ]
