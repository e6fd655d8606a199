import gc
import math
import os

import jax
import pytest

# Most of the time goes into compiling programs that run once. Read when the first array is made.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
# Several threads of LAPACK wait for each other where other work keeps the cores busy, a hundred
# times as long as the small matrices here take. Read when NumPy and SciPy are loaded; the workers
# inherit it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Traced and compiled programs stay alive: to go through all of them again and again for cycles
# takes a fifth of the suite's time and finds little.
gc.set_threshold(100_000, 50, 100)


# Run with the oldest versions too: what meets most of JAX, Flax, Optax and Orbax.
OLDEST = (
    "test_batch_stats",
    "test_checkpoints",
    "test_dead",
    "test_factorize",
    "test_fit",
    "test_hoist",
    "test_inner_applies",
    "test_linen",
    "test_linen_kinds",
    "test_marks",
    "test_moments",
    "test_networks",
    "test_nnx",
    "test_nnx_models",
    "test_nnx_saving",
    "test_optimizers",
    "test_products",
    "test_programs",
    "test_reads",
    "test_recorder",
    "test_saving",
    "test_svd",
    "test_training",
    "test_training_loops",
    "test_tucker",
)


# Left to `launch.sh test-slow`: each takes many seconds, and what it covers is met elsewhere too, on
# smaller networks or in fewer variants.
SLOW = (
    "test_allocate.py::test_formats_that_are_decomposed_to_know_their_loss",
    "test_allocate.py::test_stacks_embeddings_and_attention",
    "test_compress.py::test_continued_after_lines_were_lost",
    "test_compress.py::test_rounds_of_compression_and_training",
    "test_configs.py::test_budgets_are_within_reach",
    "test_data_aware.py::test_batch_statistics_estimated_anew",
    "test_data_aware.py::test_continued_after_lines_were_lost",
    "test_data_aware.py::test_killed_and_continued",
    "test_data_aware.py::test_layer_after_layer",
    "test_data_aware.py::test_transfer_without_tuning_and_layers",
    "test_dead_shared.py::test_random_linen_networks_stay_what_they_are",
    "test_exact.py::test_one_large_layer_meets_any_budget",
    "test_lasso.py::test_a_network_pruned_backwards",
    "test_lasso.py::test_convolutions_and_their_channels",
    "test_models.py::test_networks_factorise",
    "test_more_models.py::test_networks_factorise",
    "test_moments.py::test_gradient_moments_are_those_of_one_example_at_a_time",
    "test_moments.py::test_many_passes_give_what_one_gives",
    "test_networks.py::",
    "test_notebooks.py::test_runs_and_shows_what_is_stored[any_model]",
    "test_qwix.py::",
    "test_sequential.py::test_less_is_lost_than_layer_by_layer",
    "test_sequential.py::test_stacks_and_embeddings",
    "test_weighed_factors.py::test_stacks_embeddings_and_attention",
    "test_weighted_cp.py::test_a_large_window_is_solved_by_gradients",
)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in OLDEST:
            item.add_marker(pytest.mark.oldest)
        if f"{item.path.name}::{item.name}".startswith(SLOW):
            item.add_marker(pytest.mark.slow)


def inner_jaxprs(params):
    for value in jax.tree.leaves(params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
        value = getattr(value, "jaxpr", value)
        if hasattr(value, "eqns"):
            yield value


def count(jaxpr):
    total = 0
    for eqn in jaxpr.eqns:
        out = eqn.outvars[0].aval
        if eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += math.prod(out.shape) * math.prod(kernel) // features
        elif eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += math.prod(out.shape) * math.prod(shape[axis] for axis in contracted)
        turns = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        total += turns * sum(map(count, inner_jaxprs(eqn.params)))
    return total


@pytest.fixture(scope="session")
def count_macs():
    """Count the products in all convolutions and matrix products of a function, as traced."""

    def counted(fun, *args):
        return count(jax.make_jaxpr(fun)(*args).jaxpr)

    return counted


@pytest.fixture(scope="session")
def float64():
    """A context in which float64 is enabled, under the name that the installed JAX gives it."""
    if hasattr(jax, "enable_x64"):
        return lambda: jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64
