import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data.splits import DataSplits, Examples
from experiments.error_study.candidates import (
    CompressedNetwork,
    choice_key,
    decompose_runs,
    widened,
    without_kernel,
)
from experiments.error_study.protocol import Choice, DecomposeSettings
from experiments.network.forward import LinenNetwork, Variables
from experiments.network.schedule import FitSettings
from experiments.network.training import fit_epochs, start_fit
from tdjax.decompose import cp_als
from tdjax.decompose.formats import CP
from tdjax.linen import factorize, make_plan
from tdjax.params.factorize import factorize_params, reconstruct_params, replace_kernel
from tdjax.plan.decide import plan_layer
from tdjax.plan.plan import Plan
from tdjax.plan.rules import Rule

METHODS = ("cp", "tucker", "tt", "svd")
LEVELS = (0.4, 0.85)
RUNS = 2
SETTINGS = DecomposeSettings(max_iters=8, tucker_iters=4)


class Net(nn.Module):
    """The layer that is compressed, and one after it."""

    groups: int = 1

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(8, (3, 3), name="first")(x))
        x = nn.relu(nn.Conv(12, (3, 3), feature_group_count=self.groups, name="conv")(x))
        return nn.Dense(3, name="head")(x.mean(axis=(1, 2)))


class Setting:
    """A network, its layer, and all choices about it, decomposed."""

    def __init__(self, groups=1, methods=METHODS, levels=LEVELS):
        self.module = Net(groups)
        sample = jnp.zeros((1, 6, 6, 2))
        self.params = jax.jit(self.module.init)(jax.random.key(0), sample)["params"]
        self.kernel = self.params["conv"]["kernel"]
        dense = make_plan(self.module, {"params": self.params}, (), sample)
        self.dense = dense
        self.layer = dense["conv"].layer
        self.plans = {
            Choice("conv", method, level): plan_layer(
                self.layer, Rule(path="conv", method=method, compression=level)
            )
            for method in methods
            for level in levels
        }
        self.settings, self.key = SETTINGS, jax.random.key(5)
        self.factors = decompose_runs(self.kernel, self.plans, lambda _: RUNS, SETTINGS, self.key)

    def network(self, method):
        plan = next(plan for choice, plan in self.plans.items() if choice.method == method)
        return CompressedNetwork.of(LinenNetwork(self.module), plan)

    def alike(self, method):
        return [self.factors[choice, 0] for choice in self.plans if choice.method == method]


@pytest.fixture(scope="module")
def plain():
    return Setting()


@pytest.fixture(scope="module")
def grouped():
    return Setting(2, ("cp", "tt"), LEVELS[-1:])


@pytest.fixture(params=["plain", "grouped"])
def case(request):
    return request.getfixturevalue(request.param)


def train(network, params, optimizer):
    rng = np.random.default_rng(0)
    data = Examples(
        rng.normal(size=(18, 6, 6, 2)).astype(np.float32), rng.integers(3, size=18).astype(np.int32)
    )
    settings = FitSettings(
        epochs=1, batch_size=6, optimizer=optimizer, learning_rate=0.01, weight_decay=0.01
    )
    fit = start_fit(jax.tree.map(lambda leaf: leaf[None], Variables(params, {})), settings)
    keys = jax.random.split(jax.random.key(1), 1)
    splits = DataSplits(data, data, data, np.zeros(2), np.ones(2), 3)
    ((fit, *_),) = fit_epochs(fit, network, settings, splits, keys)
    return jax.tree.map(lambda leaf: leaf[0], fit.model.params)


def test_factors_have_the_planned_ranks(case):
    for choice, plan in case.plans.items():
        for run in range(RUNS):
            found = case.factors[choice, run]
            assert len(found) == case.layer.groups
            assert all(part.ranks == plan.ranks for part in found)
            assert sum(part.size for part in found) == plan.size


def test_the_dense_kernel_is_what_the_thin_layers_compute(case):
    images = jax.random.normal(jax.random.key(2), (3, 6, 6, 2))
    for choice, plan in case.plans.items():
        found = case.factors[choice, 1]
        kernel, kernels = plan.chain.dense(found), plan.chain.to_kernels(found)
        whole = Plan(
            tuple(plan if e.layer.path == "conv" else e for e in case.dense.layers),
            case.dense.other,
        )
        own = {name: {"kernel": array} for name, array in kernels.items()}
        params = {**case.params, "conv": {**own, "bias": case.params["conv"]["bias"]}}
        rebuilt = reconstruct_params(params, whole)["conv"]["kernel"]
        np.testing.assert_allclose(kernel, rebuilt, rtol=1e-4, atol=1e-5)
        if choice.compression == LEVELS[-1]:
            thin = factorize(case.module, whole).apply({"params": params}, images)
            compressed = {"dense": without_kernel(case.params, case.layer), "factors": found}
            logits, _ = case.network(choice.method)(compressed, {}, images, None)
            np.testing.assert_allclose(logits, thin, rtol=1e-3, atol=1e-5)


def test_deterministic_methods_share_one_result_and_equal_the_library(plain):
    for choice, plan in plain.plans.items():
        first, second = (plain.factors[choice, run] for run in range(RUNS))
        if choice.method == "cp":
            assert not np.allclose(first[0].factors[0], second[0].factors[0], atol=1e-3)
            continue
        assert first is second
        whole = Plan(tuple(plan if e.layer.path == "conv" else e for e in plain.dense.layers))
        params = factorize_params(plain.params, whole, max_iters=plain.settings.tucker_iters)
        np.testing.assert_allclose(
            plan.chain.dense(first),
            reconstruct_params(params, whole)["conv"]["kernel"],
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize("cp_init", ["random", "normal"])
def test_cp_against_the_library_from_a_start_drawn_by_hand(plain, cp_init):
    choice = Choice("conv", "cp", LEVELS[-1])
    plan, settings = plain.plans[choice], dataclasses.replace(SETTINGS, cp_init=cp_init)
    alone = decompose_runs(plain.kernel, {choice: plan}, lambda _: RUNS, settings, plain.key)
    draw = jax.random.uniform if cp_init == "random" else jax.random.normal
    tensor = plan.chain.tensor_view(plain.kernel)
    for run in range(RUNS):
        keys = jax.random.split(jax.random.fold_in(choice_key(plain.key, choice, run), 0), 4)
        start = CP(
            tuple(draw(k, (n, *plan.ranks)) for k, n in zip(keys, tensor.shape, strict=True))
        )
        by_hand, _ = cp_als(tensor, plan.ranks[0], init=start, max_iters=SETTINGS.max_iters)
        found = alone[choice, run][0].to_tensor()
        np.testing.assert_allclose(found, by_hand.to_tensor(), rtol=1e-5, atol=1e-6)
        if cp_init == "random":
            # Filled up with zeros to the ranks of other choices: the same but for rounding.
            beside = plain.factors[choice, run][0].to_tensor()
            np.testing.assert_allclose(beside, found, atol=1e-3)
            assert jnp.abs(found).max() > 0.1


def test_a_key_depends_on_choice_and_run_only():
    key, choice = jax.random.key(0), Choice("conv2", "cp", 0.5)
    same = choice_key(key, Choice("conv2", "cp", 0.5), 3)
    assert (jax.random.key_data(choice_key(key, choice, 3)) == jax.random.key_data(same)).all()
    others = [
        choice_key(key, choice, 3),
        choice_key(key, choice, 4),
        choice_key(jax.random.key(1), choice, 3),
        *(
            choice_key(key, dataclasses.replace(choice, **change), 3)
            for change in ({"layer": "conv3"}, {"method": "tt"}, {"compression": 0.25})
        ),
    ]
    assert len({tuple(jax.random.key_data(k).tolist()) for k in others}) == len(others)


def test_widened_fills_up_with_zeros(case):
    for choice in case.plans:
        found, alike = case.factors[choice, 0], case.alike(choice.method)
        wide = widened(found, alike)
        shapes = {tuple(leaf.shape for leaf in jax.tree.leaves(widened(f, alike))) for f in alike}
        assert shapes == {tuple(leaf.shape for leaf in jax.tree.leaves(wide))}
        for leaf, old in zip(jax.tree.leaves(wide), jax.tree.leaves(found), strict=True):
            corner = tuple(slice(n) for n in old.shape)
            np.testing.assert_array_equal(leaf[corner], old)
            assert np.count_nonzero(leaf) == np.count_nonzero(old)
        chain = case.plans[choice].chain
        np.testing.assert_allclose(chain.dense(wide), chain.dense(found), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "optimizer"), [("cp", "sgd"), ("tucker", "adam"), ("tt", "sgd"), ("svd", "adam")]
)
def test_zeros_stay_zero_in_training(plain, method, optimizer):
    choice = Choice("conv", method, LEVELS[-1])
    found, network = plain.factors[choice, 0], plain.network(method)
    dense = without_kernel(plain.params, plain.layer)
    wide = widened(found, plain.alike(method))
    own = train(network, {"dense": dense, "factors": found}, optimizer)
    filled = train(network, {"dense": dense, "factors": wide}, optimizer)
    for a, b, before in zip(
        *map(jax.tree.leaves, (filled, own, {"dense": dense, "factors": found})), strict=True
    ):
        inside = np.zeros(a.shape, bool)
        inside[tuple(slice(n) for n in b.shape)] = True
        assert not np.asarray(a)[~inside].any()
        np.testing.assert_allclose(np.asarray(a)[inside], np.ravel(b), rtol=1e-3, atol=1e-5)
        assert (b != before).any()
    padded = sum(leaf.size for leaf in jax.tree.leaves(wide))
    assert padded > sum(leaf.size for leaf in jax.tree.leaves(found))


def test_without_kernel_leaves_the_rest_and_its_argument(plain):
    rest = without_kernel(plain.params, plain.layer)
    assert rest["conv"] == {"kernel": None, "bias": plain.params["conv"]["bias"]}
    assert set(plain.params["conv"]) == {"kernel", "bias"}
    put_back = replace_kernel(rest, "conv", plain.kernel)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), put_back, dict(plain.params)))


def test_a_kernel_that_is_not_finite_is_refused(plain):
    broken = plain.kernel.at[0, 0, 0, 0].set(jnp.nan)
    for choice, plan in plain.plans.items():
        with pytest.raises(ValueError, match="NaN or Inf"):
            decompose_runs(broken, {choice: plan}, lambda _: 1, plain.settings, plain.key)


def test_equal_networks_share_compiled_programs(plain):
    assert plain.network("cp") == plain.network("cp")
    assert hash(plain.network("cp")) == hash(plain.network("cp"))
    assert plain.network("cp") != plain.network("tt")
