import itertools
import json
import os
import random
import re
import shutil
import sys
import threading

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_models import MLP, ConvNet, Scanned, Zoo, normal, random_variables

import tdjax
from experiments.network.checkpoints import CheckpointError, save
from tdjax import Layer, Plan, PlannedLayer, Rule
from tdjax.params.digests import check_seal, seal_files, sealed
from tdjax.params.saving import check_params, load_factorised, save_factorised
from tdjax.plan.decide import plan_layer
from tdjax.plan.layers import Storage

IMAGES, TOKENS = normal(0, 2, 8, 8, 3), jnp.zeros((2, 6), jnp.int32)
METHODS = ("svd", "tucker", "cp", "tt")


def arrays_of(shapes):
    """Arrays of these shapes: what is saved need not come from a decomposition."""
    leaves, structure = jax.tree.flatten(shapes)
    arrays = [normal(k, *leaf.shape).astype(leaf.dtype) for k, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, arrays)


def factorised(model, sample, path=".*", **rule):
    """Variables of a factorised model, and its plan."""
    variables = jax.eval_shape(lambda key: model.init(key, *sample), jax.random.key(0))
    plan = tdjax.make_plan(model, variables, [Rule(path=path, **rule)], sample)
    assert plan.factorised
    small = tdjax.factorize(model, plan)
    return arrays_of(jax.eval_shape(lambda key: small.init(key, *sample), jax.random.key(0))), plan


def mlp(scale=1.0, path="dense[01]", rank=2):
    variables, plan = factorised(
        MLP((8, 7, 6)), (normal(1, 2, 9),), path=path, method="svd", rank=rank
    )
    return jax.tree.map(lambda leaf: leaf * scale, variables["params"]), plan


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        # Bit for bit: NaN, -0.0 and subnormal numbers count.
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("method", METHODS)
def test_round_trip_without_model_and_kernels(tmp_path, method):
    model, x = MLP((8, 7, 6)), normal(1, 2, 9)
    variables = random_variables(model, x)
    plan = tdjax.make_plan(model, variables, [Rule(path=".*", method=method, rank=2)], x)
    params = tdjax.factorize_params(variables["params"], plan, key=jax.random.key(0))
    save_factorised(tmp_path / "new" / "net", {"params": params}, plan)
    found, found_plan = load_factorised(str(tmp_path / "new" / "net"))
    assert found_plan == plan
    assert_same(found, {"params": params})
    small = tdjax.factorize(model, found_plan)
    np.testing.assert_array_equal(
        small.apply(found, x), tdjax.factorize(model, plan).apply({"params": params}, x)
    )


def test_every_bit_comes_back(tmp_path):
    params, plan = mlp()
    odd = jnp.array([jnp.nan, jnp.inf, -jnp.inf, -0.0, 1e-42, 1 / 3, 2.0], jnp.float32)
    params["dense1"]["bias"] = odd
    params["dense0"] = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params["dense0"])
    params["dense2"] = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params["dense2"])
    params["more"] = {
        "float8": jnp.arange(4.0).astype(jnp.float8_e4m3fn),
        "count": jnp.array(2**31 - 1),
        "flags": jnp.array([True, False]),
        "empty": {},
    }
    save_factorised(tmp_path, params, plan)
    found, _ = load_factorised(tmp_path)
    assert_same(found, params)
    assert not any(leaf.committed for leaf in jax.tree.leaves(found))


def test_frozen_and_numpy_come_back_as_dicts_of_jax_arrays(tmp_path):
    params, plan = mlp()
    frozen = flax.core.freeze(jax.tree.map(np.asarray, params))
    save_factorised(tmp_path, {"params": frozen}, plan)
    found, _ = load_factorised(tmp_path)
    assert_same(found, {"params": params})
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize(
    ("model", "sample", "rule"),
    [
        (ConvNet(), (IMAGES,), {"method": "cp", "compression": 0.5}),
        (ConvNet(), (IMAGES,), {"method": "tucker", "compression": 0.5}),
        (Zoo(), (TOKENS, False), {"method": "tt", "compression": 0.5}),
        (Scanned(), (normal(1, 2, 8),), {"method": "svd", "rank": 2}),
        (nn.Dense(8), (normal(1, 2, 8),), {"method": "svd", "rank": 2}),
        (nn.Embed(24, 12), (TOKENS,), {"method": "tt", "rank": 2}),
    ],
)
def test_every_kind_of_layer(tmp_path, model, sample, rule):
    variables, plan = factorised(model, sample, **rule)
    for tree in (variables, variables["params"]):
        save_factorised(tmp_path, tree, plan)
        found, found_plan = load_factorised(tmp_path)
        assert found_plan == plan
        assert_same(found, tree)


def test_float64(tmp_path, float64):
    with float64():
        params, plan = mlp()
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) / 3, params)
        save_factorised(tmp_path, params, plan)
        assert_same(load_factorised(tmp_path)[0], params)
    with pytest.raises(CheckpointError, match="is float64: enable jax_enable_x64"):
        load_factorised(tmp_path)


@pytest.mark.parametrize("wrapper", [nn.with_partitioning, nn.with_logical_partitioning])
def test_names_of_axes_come_back(tmp_path, wrapper):
    init = wrapper(nn.initializers.lecun_normal(), (None, ("model", "data")))
    model = nn.Sequential([nn.Dense(8, kernel_init=init), nn.Dense(8)])
    x = normal(0, 2, 9)
    variables = model.init(jax.random.key(0), x)
    plan = tdjax.make_plan(model, variables, [Rule(path="layers_.", method="svd", rank=2)], x)
    params = tdjax.factorize_params(variables["params"], plan)
    assert params["layers_0"]["output"]["kernel"].names == (None, ("model", "data"))
    save_factorised(tmp_path, params, plan)
    # Structures are equal only with the same boxes and names.
    assert_same(load_factorised(tmp_path)[0], params)


def test_what_lies_where_like_lies_must_be_in_it(tmp_path):
    model, x = MLP((8, 7, 6)), normal(1, 2, 9)
    variables = random_variables(model, x)
    plan = tdjax.make_plan(model, variables, [Rule(path="dense0", method="svd", rank=2)], x)
    factors = tdjax.factorize_params(variables, plan)
    save_factorised(tmp_path / "params", factors["params"], plan)
    save_factorised(tmp_path / "all", factors, plan)
    # Parameters and variables stand for each other.
    for like in (variables, variables["params"], factors, factors["params"]):
        assert_same(tdjax.load_factorised(tmp_path / "all", like=like)[0], factors)
        assert_same(tdjax.load_factorised(tmp_path / "params", like=like)[0], factors["params"])
    without = {name: own for name, own in variables["params"].items() if name != "dense1"}
    wider = random_variables(MLP((8, 5, 6)), x)
    other = random_variables(MLP((5, 7, 6)), x)
    for like, message in (
        ({"params": without}, r"like has no 'params/dense1/.*', which was saved"),
        (wider, r"'params/dense1/.*' was saved with shape \(.*7.*, but that of like is \(.*5"),
        (other, r"layer 'dense0' of like has a kernel of shape \(9, 5\).* made for \(9, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            tdjax.load_factorised(tmp_path / "all", like=like)
    with pytest.raises(TypeError, match=r"like is a str.*: pass an NNX model, or variables"):
        tdjax.load_factorised(tmp_path / "all", like="params")


# ---------------------------------------------------------------- written whole or not at all


def test_the_newest_replaces(tmp_path):
    for scale in (1.0, 2.0, 3.0):
        params, plan = mlp(scale)
        save_factorised(tmp_path, params, plan)
        assert_same(load_factorised(tmp_path)[0], params)
    assert [found.name for found in tmp_path.iterdir()] == ["2"]


class Snapshots:
    """A copy of a folder at every moment at which the program touches a file."""

    WATCHED = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")

    def __init__(self, folder, copies):
        self.folder, self.copies, self.on = folder, copies, False
        self.busy, self.numbers = threading.Lock(), itertools.count()
        self.seen = {}
        sys.addaudithook(self.hook)

    def hook(self, event, args):
        if not self.on or event not in self.WATCHED:
            return
        # Held while copying, which touches files too, and by one thread at a time.
        if self.busy.acquire(blocking=False):
            try:
                self.take()
            finally:
                self.busy.release()

    def take(self):
        state = []
        for found in sorted(self.folder.rglob("*")):
            try:
                state.append((str(found.relative_to(self.folder)), found.stat().st_size))
            except FileNotFoundError:
                return
        if tuple(state) in self.seen:
            return
        copy = self.copies / str(next(self.numbers))
        try:
            shutil.copytree(self.folder, copy)
        except (FileNotFoundError, shutil.Error):
            return
        self.seen[tuple(state)] = copy


def test_a_kill_leaves_the_old_or_the_new(tmp_path):
    folder = tmp_path / "net"
    (old, old_plan), (new, new_plan) = mlp(), mlp(2.0, path="dense1", rank=3)
    save_factorised(folder, old, old_plan)
    snapshots = Snapshots(folder, tmp_path / "copies")
    snapshots.on = True
    try:
        save_factorised(folder, new, new_plan)
    finally:
        snapshots.on = False
    snapshots.take()
    left = {}
    for copy in snapshots.seen.values():
        params, plan = load_factorised(copy)
        left[copy] = plan
        assert_same(params, old if plan == old_plan else new)
    # Both were seen, also a new one that was not complete, and the old one half removed.
    assert set(left.values()) == {old_plan, new_plan}
    assert len(left) > 5
    names = {frozenset(found.name for found in copy.iterdir()) for copy in left}
    assert frozenset({"0"}) in names
    assert frozenset({"0", "1"}) in names
    assert frozenset({"1"}) in names
    assert any("orbax-checkpoint-tmp" in name for state in names for name in state)
    # What a kill left is not in the way of the next save.
    copies = list(left)
    for copy in copies[:: max(1, len(copies) // 6)]:
        save_factorised(copy, old, old_plan)
        assert_same(load_factorised(copy)[0], old)


def test_a_kill_of_the_first_save_leaves_nothing(tmp_path):
    params, plan = mlp()
    partial = tmp_path / "0.orbax-checkpoint-tmp"
    (partial / "params").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=f"{tmp_path}: no factorised network was saved"):
        load_factorised(tmp_path)
    save_factorised(tmp_path, params, plan)
    assert_same(load_factorised(tmp_path)[0], params)


# ---------------------------------------------------------------- refused


def test_missing_folder(tmp_path):
    params, plan = mlp()
    with pytest.raises(CheckpointError, match=f"{tmp_path / 'no'}: there is no such folder"):
        load_factorised(tmp_path / "no")
    assert not (tmp_path / "no").exists()
    with pytest.raises(CheckpointError, match=f"{tmp_path}: no factorised network was saved here"):
        load_factorised(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="no such folder"):
        load_factorised(tmp_path / "file")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        save_factorised(tmp_path / "file", params, plan)


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    params, plan = mlp()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    save(tmp_path / "training", 7, params)
    for name, kept in (("mine", "notes.txt"), ("training", "7")):
        with pytest.raises(ValueError, match=f"{tmp_path / name} holds something else"):
            save_factorised(tmp_path / name, params, plan)
        assert [found.name for found in (tmp_path / name).iterdir()] == [kept]
    with pytest.raises(
        CheckpointError, match=f"{tmp_path / 'training' / '7'}: this is no readable"
    ):
        load_factorised(tmp_path / "training")


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def garble(file):
    file.write_bytes(bytes(byte ^ 0x5A for byte in file.read_bytes()))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [cut, garble, os.remove])
def test_damage_is_refused(tmp_path, damage):
    # One array: beside one that fails, Orbax leaves the reading of others to warn on its own.
    layer = Layer("dense", "dense", (3, 2))
    params, plan = {"dense": {"kernel": normal(0, 3, 2)}}, Plan((PlannedLayer(layer),))
    save_factorised(tmp_path / "whole", params, plan)
    whole = [file for file in (tmp_path / "whole" / "0").rglob("*") if file.is_file()]
    groups = {
        "plan": [file for file in whole if file.parent.name == "plan"],
        "shapes": [file for file in whole if file.name == "_METADATA"],
        "arrays": [file for file in whole if file.parent.name == "d" or "ocdbt" in file.name],
    }
    for name, files in groups.items():
        assert files
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        for file in files:
            damage(tmp_path / name / file.relative_to(tmp_path / "whole"))
        with pytest.raises(CheckpointError) as caught:
            load_factorised(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "if it is damaged, save it anew" in str(caught.value)
    assert_same(load_factorised(tmp_path / "whole")[0], params)


def edit(folder, change):
    """Edit what is beside the arrays, with digests of what it is then."""
    file = folder / "0" / "plan" / "metadata"
    about = check_seal(json.loads(file.read_text()))
    change(about)
    file.write_text(json.dumps(sealed(about)))
    seal_files(folder / "0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about.update(plan={"rules": []}), "not a plan"),
        (lambda about: about["plan"].update(version=99), "not a plan.*version 99"),
        (lambda about: about.pop("plan"), "plan"),
        (lambda about: about.update(version=3), "version 3, this library reads 2"),
        (lambda about: about["arrays"].popitem(), "array .* was not saved"),
        (lambda about: about.update(boxes=[{"path": ["no", "x"]}]), "no parameters at 'no'"),
        (
            lambda about: about["plan"]["layers"][0].update(ranks=[3]),
            r"layer 'dense0': expected factor input of shape \(9, 3\), found \(9, 2\)",
        ),
        (
            lambda about: about["plan"]["layers"][1]["layer"].update(path="other"),
            "layer 'other' is missing; layer 'dense1/input' is not in the plan",
        ),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(tmp_path, change, message):
    save_factorised(tmp_path, *mlp())
    edit(tmp_path, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_factorised(tmp_path)
    assert str(tmp_path / "0") in str(caught.value)


def swapped(folder, one, two):
    """Two networks, the second one's arrays in the first one's place."""
    save_factorised(folder / "one", *one)
    save_factorised(folder / "two", *two)
    shutil.rmtree(folder / "one" / "0" / "params")
    shutil.copytree(folder / "two" / "0" / "params", folder / "one" / "0" / "params")


def test_parameters_of_another_network_are_refused(tmp_path):
    swapped(tmp_path, mlp(), mlp(path="dense[02]"))
    with pytest.raises(CheckpointError, match=r"one/0/params/.* (is missing|digest differs)"):
        load_factorised(tmp_path / "one")
    seal_files(tmp_path / "one" / "0")
    expected = (
        r"one/0: .*layer 'dense1' is factorised in the plan \(svd\), found a dense kernel of shape "
        r"\(8, 7\); .*layer 'dense2' is dense in the plan: expected kernel \(7, 6\), found "
        r"factors input, output"
    )
    with pytest.raises(CheckpointError, match=expected):
        load_factorised(tmp_path / "one")


def test_other_arrays_of_the_same_shapes_are_refused(tmp_path):
    swapped(tmp_path, mlp(), mlp(2.0))
    # As a kill leaves it, between the arrays and the digests of their files.
    (tmp_path / "one" / "0" / "digests.json").unlink()
    with pytest.raises(CheckpointError, match=r"one/0: .*array \['dense0'\].* its digest differs"):
        load_factorised(tmp_path / "one")


def flipped(content, rng):
    place, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
    return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def test_a_flipped_bit_is_named(tmp_path):
    rng = random.Random(0)
    params, plan = mlp()
    save_factorised(tmp_path, params, plan)
    # Empty files have no bits.
    files = [file for file in (tmp_path / "0").rglob("*") if file.is_file() and file.stat().st_size]
    assert len(files) > 5
    for file in files:
        content = file.read_bytes()
        for _ in range(3):
            file.write_bytes(flipped(content, rng))
            with pytest.raises(CheckpointError, match=re.escape(str(file))) as caught:
                load_factorised(tmp_path)
            assert "\n" not in str(caught.value)
        file.write_bytes(content)
    assert_same(load_factorised(tmp_path)[0], params)


def test_an_edited_plan_beside_intact_factors_is_refused(tmp_path):
    save_factorised(tmp_path, *mlp())
    file = tmp_path / "0" / "plan" / "metadata"
    about = json.loads(file.read_text())
    about["plan"]["layers"][0]["layer"]["positions"] = 7
    file.write_text(json.dumps(about))
    for remove in (False, True):
        if remove:
            (tmp_path / "0" / "digests.json").unlink()
        with pytest.raises(CheckpointError, match=f"{tmp_path}/0/plan.* its digest differs"):
            load_factorised(tmp_path)


def test_what_an_earlier_version_saved_is_read_with_a_warning(tmp_path):
    params, plan = mlp()
    save_factorised(tmp_path, params, plan)
    file = tmp_path / "0" / "plan" / "metadata"
    about = json.loads(file.read_text())
    old = {name: about[name] for name in ("plan", "boxes")} | {"version": 1}
    file.write_text(json.dumps(old))
    (tmp_path / "0" / "digests.json").unlink()
    with pytest.warns(UserWarning, match=f"{tmp_path}/0 was saved without digests.* save it anew"):
        found, found_plan = load_factorised(tmp_path)
    assert found_plan == plan
    assert_same(found, params)
    # What has a digest does not pass for older.
    for more in ({"version": 1, "arrays": {}}, {"version": 1.0}, {"version": 2}):
        file.write_text(json.dumps({**old, **more}))
        with pytest.raises(CheckpointError, match=r"version 1|digest is missing"):
            load_factorised(tmp_path)


def test_a_pipe_in_a_checkpoint_is_refused(tmp_path):
    save_factorised(tmp_path, *mlp())
    os.mkfifo(tmp_path / "0" / "params" / "pipe")
    with pytest.raises(CheckpointError, match="params/pipe is neither a file nor a folder"):
        load_factorised(tmp_path)


def test_nothing_is_written_where_something_is_wrong(tmp_path):
    params, plan = mlp()
    for wrong, message in (
        ({**params, "dense1": {}}, "layer 'dense1': expected factor input of shape"),
        ({**params, "more": [jnp.ones(2)]}, "more: list cannot be saved"),
        ({**params, "more": {"x": 1.0}}, "more/x: float cannot be saved"),
        ({**params, "more": {"x": jax.random.key(0)}}, "more/x: .* cannot be saved"),
        ({**params, "more": {3: jnp.ones(2)}}, "more: the key 3 is not a string"),
    ):
        with pytest.raises(ValueError, match=message):
            save_factorised(tmp_path / "net", wrong, plan)
        assert not (tmp_path / "net").exists()


# ---------------------------------------------------------------- check_params


def expect(params, plan, *messages):
    with pytest.raises(ValueError, match="the parameters are not those of the plan: ") as caught:
        check_params(params, plan)
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_what_initialisation_makes_is_accepted(method):
    for model, sample in (
        (ConvNet(), (IMAGES,)),
        (Zoo(), (TOKENS, False)),
        (Scanned(), (normal(1, 2, 8),)),
    ):
        variables, plan = factorised(model, sample, method=method, compression=0.3)
        check_params(variables, plan)
        check_params(variables["params"], plan)
        dense = jax.eval_shape(
            lambda p, plan=plan: tdjax.reconstruct_params(p, plan), variables["params"]
        )
        expect(dense, plan, f"layer {plan.factorised[0].layer.path!r} is factorised in the plan")


def test_every_difference_is_named():
    params, plan = mlp()
    changed = {**params, "dense0": dict(params["dense0"])}
    changed["dense0"]["output"] = {"kernel": normal(0, 2, 5)}
    expect(
        changed,
        plan,
        "layer 'dense0': expected factor output of shape (2, 8), found (2, 5)",
    )
    changed["dense0"]["output"] = {}
    expect(changed, plan, "expected factor output of shape (2, 8), found factors: input")
    changed["dense0"] = {**params["dense0"], "core": {"kernel": normal(0, 2, 2)}}
    expect(changed, plan, "layer 'dense0': no factor core expected, found one of shape (2, 2)")
    changed["dense0"] = {**params["dense0"], "kernel": normal(0, 9, 8)}
    expect(changed, plan, "layer 'dense0' is factorised in the plan (svd), found a dense kernel")
    changed["dense0"] = jnp.ones(3)
    expect(changed, plan, "layer 'dense0' is missing")
    del changed["dense0"]
    expect(changed, plan, "layer 'dense0' is missing")
    expect({"params": changed}, plan, "layer 'dense0' is missing")
    extra = {**params, "dense9": {"kernel": normal(0, 2, 3)}}
    expect(extra, plan, "layer 'dense9' is not in the plan")
    extra["dense9"] = {"input": {"kernel": normal(0, 2, 3)}}
    expect(extra, plan, "layer 'dense9/input' is not in the plan")
    # A dense layer of the plan.
    expect(
        {**params, "dense2": {"kernel": normal(0, 7, 5)}},
        plan,
        "layer 'dense2': expected kernel of shape (7, 6), found (7, 5)",
    )
    expect(
        {**params, "dense2": {"bias": normal(0, 6)}},
        plan,
        "layer 'dense2' is dense in the plan: expected kernel (7, 6), found bias",
    )
    # Small parameters are not the plan's.
    check_params({**params, "norm": {"scale": normal(0, 6)}}, plan)


def test_the_first_of_many_differences():
    layers = [plan_layer(Layer(f"l{k}", "dense", (8, 8)), Rule(path=".*", method="svd", rank=2))
              for k in range(9)]  # fmt: skip
    expect({}, Plan(tuple(layers)), "layer 'l4' is missing; and 4 more")


@pytest.mark.parametrize(("stack", "shape"), [(0, (3, 8, 2)), (1, (8, 3, 2)), (2, (8, 2, 3))])
def test_the_axis_of_a_stack(stack, shape):
    stored = Storage("kernel", (8, 8), (0, 1), stack=stack, copies=3)
    layer = Layer("stack/dense", "dense", (8, 8), stored=stored)
    plan = Plan((plan_layer(layer, Rule(path=".*", method="svd", rank=2)),))
    dense = {"stack": {"dense": {"kernel": normal(0, *stored.whole_shape)}}}
    params = tdjax.factorize_params(dense, plan)
    check_params(params, plan)
    assert params["stack"]["dense"]["input"]["kernel"].shape == shape
    for wrong in set(itertools.permutations(shape)) - {shape}:
        own = {**params["stack"]["dense"], "input": {"kernel": normal(0, *wrong)}}
        message = f"layer 'stack/dense': expected factor input of shape {shape}, found {wrong}"
        expect({"stack": {"dense": own}}, plan, message)


def test_layers_that_no_method_takes():
    variables, plan = factorised(Zoo(), (TOKENS, False), path="head", method="svd", rank=1)
    masked = next(e for e in plan.layers if e.layer.path == "masked")
    assert masked.layer.obstacle
    params = variables["params"]
    wrong = {**params, "masked": {"kernel": normal(0, 3, 8, 7)}}
    expect(wrong, plan, f"layer 'masked' has no array of shape {masked.layer.kernel_shape}")


def test_a_layer_named_params():
    plan = Plan(
        (plan_layer(Layer("params", "dense", (8, 8)), Rule(path=".*", method="svd", rank=2)),)
    )
    params = tdjax.factorize_params({"params": {"kernel": normal(0, 8, 8)}}, plan)
    check_params(params, plan)
    with pytest.raises(ValueError, match=re.escape("layer 'params' is missing")):
        check_params(params["params"], plan)
