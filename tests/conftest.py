import gc
import itertools
import math
import os
from pathlib import Path

import cheap_programs
import checked_types
import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

# Most of the time goes into compiling programs that run once. Read when the first array is made.
QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)
if jax.__version_info__ < (0, 11):
    # Later versions know no other, and end at a flag that they do not know.
    QUICK_TO_COMPILE += (
        " --xla_cpu_use_fusion_emitters=false --xla_cpu_prefer_vector_width=128"
        " --xla_cpu_enable_concurrency_optimized_scheduler=false"
    )
os.environ.setdefault("XLA_FLAGS", QUICK_TO_COMPILE)
# Where in the source each operation of a program comes from is told to the compiler, for profiles.
# Nobody reads it here; processes that tests start inherit it.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
jax.config.update("jax_traceback_in_locations_limit", 0)
# Several threads of LAPACK wait for each other where other work keeps the cores busy, a hundred
# times as long as the small matrices here take. Read when NumPy and SciPy are loaded; the workers
# inherit it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

checked_types.install()
# Cycles are seldom looked for; `few_programs` goes through the new ones.
cheap_programs.install()


# Run with the oldest versions too: what meets most of JAX, Flax, Optax and Orbax.
OLDEST = (
    "test_batch_stats",
    "test_checkpoints",
    "test_dead",
    "test_factorize",
    "test_fit",
    "test_found_pairs",
    "test_functions",
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
    "test_own",
    "test_own_nnx",
    "test_pairs",
    "test_products",
    "test_programs",
    "test_reads",
    "test_recorder",
    "test_saving",
    "test_svd",
    "test_time_layers",
    "test_training",
    "test_training_loops",
    "test_tucker",
    "test_ways",
)


MAPS = Path("/proc/self/maps")
modules = itertools.count(1)


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Let go of compiled programs in time.

    Each has maps of memory of its own. Linux gives a process 65,530, and the compiler that gets no
    more ends it without a word; a worker comes to so many, with some gigabytes.
    """
    yield
    is_full = MAPS.exists() and MAPS.read_bytes().count(b"\n") > 50_000
    if is_full:
        jax.clear_caches()
        gc.unfreeze()
    # To go through what a few modules leave takes as long as to go through that of one.
    if is_full or next(modules) % 4 == 0:
        gc.collect()
        gc.freeze()


def pytest_ignore_collect(collection_path, config):
    """With `-m oldest` no other file is imported."""
    path = collection_path
    other = path.suffix == ".py" and path.name.startswith("test_") and path.stem not in OLDEST
    return True if config.option.markexpr == "oldest" and other else None


def known(value):
    """What tells a value from others: itself where it can be hashed, else where it lies."""
    try:
        hash(value)
    except TypeError:
        return id(value)
    return type(value), value


def pytest_collection_modifyitems(items):
    """Mark what the oldest versions run: each test once, and again for values of its parameters
    that no test of the file has met. All pairs are for the current versions to say."""
    met = set()
    for item in items:
        if item.path.stem not in OLDEST:
            continue
        given = item.callspec.params.items() if hasattr(item, "callspec") else ()
        things = {(item.path, name, known(value)) for name, value in given}
        things.add((item.path, item.originalname))
        if not things <= met:
            item.add_marker(pytest.mark.oldest)
        met |= things


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


# Where tests compare chains of stages with dense layers. By the rule most of their small layers are
# dense ones on a CPU, and nothing would be compared; `tests/compute` compares the ways.
CHAINS = ("functions", "linen", "nnx", "plan", "trace")


@pytest.fixture(autouse=True)
def chains(request):
    """Compute every stage of a chain by XLA's own convolution, in the folders above."""
    if request.path.parent.name not in CHAINS:
        yield
        return
    with xla_ways()():
        yield


def xla_ways():
    """`tdjax.xla_ways`, of the library as the hook for types finds it, once it is there."""
    from tdjax import xla_ways

    return xla_ways


@pytest.fixture(scope="session")
def count_macs():
    """Count the products in all convolutions and matrix products of a function, as traced.

    Factorised layers multiply by their factors there, as plans count it.
    """

    def counted(fun, *args):
        with xla_ways()():
            return count(jax.make_jaxpr(fun)(*args).jaxpr)

    return counted


@pytest.fixture(scope="session")
def float64():
    """A context in which float64 is enabled, under the name that the installed JAX gives it."""
    if hasattr(jax, "enable_x64"):
        return lambda: jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64


CACHE = (
    "jax_enable_compilation_cache", "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs", "jax_persistent_cache_min_entry_size_bytes",
)  # fmt: skip


@pytest.fixture
def own_cache():
    """Settings of the cache of compiled programs are as before when the test ends."""
    before = {name: getattr(jax.config, name) for name in CACHE}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
