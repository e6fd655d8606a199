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


# They compile for minutes, or run whole experiments, and meet no part of JAX or Flax that other
# tests do not.
SLOW = (
    "test_weighted",
    "test_weighted_cp",
    "test_weighted_tt",
    "test_weighted_tucker",
    "test_weighed_factors",
    "test_sequential",
    "test_data_aware",
    "test_compress",
    "test_compressibility",
    "test_grouped_svd",
    "test_notebooks",
    "test_allocate",
    "test_candidates",
    "test_measure",
    "test_more_models",
    "test_readme",
    "test_report",
    "test_run",
    "test_select",
)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in SLOW:
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
