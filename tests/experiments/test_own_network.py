import json
import os
import re
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments import compress, compressibility, data_aware, error_study
from experiments.data import prepare_arrays
from experiments.error_study.choices import with_paths
from experiments.network.build import build_network
from experiments.network.examples import read_splits
from experiments.network.forward import LinenNetwork
from experiments.network.network import given
from experiments.network.settings import ModelSettings
from experiments.network.weights import load_weights
from experiments.workdir.fields import read_fields
from tdjax.linen import layer_table

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

pytestmark = pytest.mark.usefixtures("cache")

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "own_network.md").read_text("utf-8")
SOURCE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
STUDY = {
    "data": {"name": "mine"},
    "model": {"name": "mine"},
    "train": {"epochs": 1},
    "layers": ["Dense_[1]"],
    "methods": ["svd"],
    "compressions": [0.5],
    "runs": 1,
    "measure": {"feature_images": 40},
    "finetune": {"epochs": 0},
}


class Tokens(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(12)(nn.Embed(7, 8)(x)))
        return nn.Dense(3)(nn.Dense(12)(x).mean(axis=1))


def arrays(dtype=np.float64, shape=(5,)):
    rng = np.random.default_rng(0)
    found = {}
    for part, count in (("train", 60), ("test", 30)):
        found[f"{part}_inputs"] = (7 * rng.random((count, *shape))).astype(dtype)
        found[f"{part}_labels"] = np.arange(count) % 3
    return found


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The page's file, in the current folder, as modules of a configuration are found."""
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("import no_such_thing")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path
    for name in ("mine", "broken"):
        sys.modules.pop(name, None)


def test_the_page_is_carried_out_from_the_command_line(mine, cache):
    assert len([line for line in SOURCE.splitlines() if line]) <= 30
    names = {}
    exec(SOURCE, names)
    model, data = names["Net"](width=4), names["data"]()
    variables = model.init(jax.random.key(1), data["test_inputs"][:1])
    np.savez("mine.npz", **flatten_dict(variables, sep="/"))
    command = [sys.executable, "-m", "experiments.main", "--config=mine.py:compress"]
    command += ["--workdir=run", f"--compilation_cache={cache}", "--config.weights=mine.npz"]
    command += ["--config.strategies=('uniform',)", "--config.norms=('frobenius',)"]
    command += ["--config.model.arguments.width=4", "--config.data.test_size=50"]
    command += ["--config.methods=('svd',)"]
    paths = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env={**os.environ, **paths}, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"report: {Path('run', 'report', 'index.html')}\n", done.stderr
    assert "training" not in done.stderr
    records = [json.loads(line) for line in Path("run", "metrics.jsonl").read_text().splitlines()]
    (whole,) = [record for record in records if record["kind"] == "baseline"]
    sizes = (9 * 4 + 4, 2 * 4, 9 * 4 * 8 + 8, 2 * 8, 8 * 10 + 10)
    assert (whole["params"], whole["epoch"]) == (sum(sizes), 0)
    # The test examples that a seed keeps, judged by the model itself.
    raw = {"name": "mine:data", "test_size": 50}
    settings = read_fields(error_study.Protocol, {**STUDY, "data": raw})
    test = read_splits(settings.network).test
    right = np.mean(model.apply(variables, test.images).argmax(axis=1) == test.labels)
    assert whole["test"]["accuracy"] == pytest.approx(float(right))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("absent:Net", "there is no module 'absent' in "),
        ("mine.deeper:Net", "there is no module 'mine.deeper' in "),
        ("broken:Net", "cannot be imported: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("mine:Ned", "'mine' has no 'Ned'; did you mean 'Net'"),
        ("mine:__name__", "that is no function but 'mine'"),
        (
            "mine:data",
            "it returns a dict; a Linen or NNX module is needed, or a pair of a function",
        ),
    ],
)
def test_a_name_that_leads_to_no_network_is_told(mine, name, problem):
    with pytest.raises(ValueError, match=f"'model.name' is '{name}': .*{problem}") as raised:
        build_network(ModelSettings(name=name), 10)
    assert "\n" not in str(raised.value)


def test_arguments_that_a_function_does_not_take_are_told(mine):
    with pytest.raises(ValueError, match=r"'model' is mine:Net\(depth=3\): TypeError: .*'depth'"):
        build_network(ModelSettings(name="mine:Net", arguments={"depth": 3}), 10)
    for name, arguments, problem in (
        ("mine:data", {"fest": 3}, r"'data' is 'mine:data': TypeError: .*'fest'"),
        ("mine:Net", {}, "'data' is 'mine:Net': a mapping of arrays is needed"),
        ("digits", {"fest": 3}, r"'data.arguments' is {'fest': 3}: 'digits' takes none"),
        ("mine.npz", {}, r"mine.npz: cannot be read \(No such file"),
    ):
        data = {"name": name, "arguments": arguments}
        settings = read_fields(error_study.Protocol, {**STUDY, "data": data})
        with pytest.raises(ValueError, match=problem):
            read_splits(settings.network)


@pytest.mark.parametrize("name", ["train", "is_training", "deterministic", "other"])
def test_a_call_is_told_of_training_in_its_own_words(name):
    # A flag that is changed from its default doubles the outputs; another one is left alone.
    names = {"name": name, "default": name == "deterministic", "nn": nn}
    exec(
        "class Flagged(nn.Module):\n"
        f"    def __call__(self, x, {name}=default):\n"
        f"        return x * (1 + ({name} is not default))",
        names,
    )
    network, x = LinenNetwork(names["Flagged"]()), jnp.ones((1, 2))
    trained, _ = network({}, {}, x, jax.random.key(0))
    assert float(trained[0, 0]) == (1 if name == "other" else 2)
    assert float(network({}, {}, x, None)[0][0, 0]) == 1


def test_a_module_that_cannot_be_hashed_is_told():
    splits, module = prepare_arrays(arrays()), nn.Sequential([nn.Dense(3)])
    variables = module.init(jax.random.key(0), splits.test.images)
    settings = read_fields(error_study.Protocol, STUDY)
    with pytest.raises(ValueError, match=r"'model' is mine: .*use tuples in place of lists"):
        given(settings, module, variables, splits)


def test_weights_are_read_from_each_kind_of_file(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    model = nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=True), nn.Dense(3)])
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 5)))
    rng = np.random.default_rng(0)
    expected = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    flat = flatten_dict(expected, sep="/")
    np.savez(tmp_path / "a.npz", **{name: leaf.astype(np.float64) for name, leaf in flat.items()})
    safetensors.save_file(flat, tmp_path / "a.safetensors")
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "orbax", expected)
    # Another name, shape, dtype, and one array more, of each kind of file.
    kernel = "params/layers_2/kernel"
    other = {("layers_2/kernel" if name == kernel else name): leaf for name, leaf in flat.items()}
    for number, (wrong, problem) in enumerate(
        (
            (other, rf"lacks {kernel}; it holds layers_2/kernel in their place; names begin with"),
            ({**flat, kernel: flat[kernel].T.copy()}, rf"{kernel} has shape \(3, 4\); the model"),
            ({**flat, kernel: flat[kernel].astype(np.int32)}, f"{kernel} has dtype int32; exp"),
            ({**flat, "params/more": flat[kernel]}, "the model has no place for, params/more"),
        )
    ):
        files = [tmp_path / f"{number}{kind}" for kind in (".npz", ".safetensors", ".orbax")]
        np.savez(files[0], **wrong)
        safetensors.save_file(wrong, files[1])
        with ocp.StandardCheckpointer() as saver:
            saver.save(files[2], unflatten_dict(wrong, sep="/"))
        for file in files:
            with pytest.raises(ValueError, match=f"{file.name}: .*{problem}"):
                load_weights(file, shapes)
    for name in ("a.npz", "a.safetensors", "orbax"):
        found = load_weights(tmp_path / name, shapes)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    np.savez(tmp_path / "b.npz", **{**flat, kernel: flat[kernel] * np.inf})
    dotted = {name.replace("/", "."): leaf for name, leaf in flat.items()}
    np.savez(tmp_path / "dotted.npz", **dotted)
    for name in ("c.safetensors", "c.msgpack"):
        (tmp_path / name).write_bytes(b"nothing")
    for name, problem in (
        ("b.npz", f"{kernel} holds 12 values that are NaN"),
        ("dotted.npz", "lacks layers_0.bias.* it holds batch_stats.*; names without '/' are"),
        ("c.safetensors", "not a whole safetensors"),
        ("c.msgpack", "not a whole npz .*; weights are .npz, .safetensors, or an Orbax folder"),
        ("", "no Orbax check"),
    ):
        with pytest.raises(ValueError, match=problem):
            load_weights(tmp_path / name, shapes)


def test_data_of_any_kind_is_taken_as_it_is(tmp_path, monkeypatch):
    for dtype, shape, kept in (
        (np.float64, (5,), np.float32),
        (jnp.bfloat16, (4, 4, 2), np.float32),
        (np.uint8, (6,), np.int32),
    ):
        own = arrays(dtype, shape)
        np.savez(tmp_path / "own.npz", **{k: v for k, v in own.items() if v.dtype != jnp.bfloat16})
        splits = prepare_arrays(own, validation_share=0.2)
        assert splits.num_classes == 3
        assert splits.train.images.dtype == splits.test.images.dtype == kept
        np.testing.assert_array_equal(splits.test.images, own["test_inputs"].astype(kept))
        sets = np.concatenate([splits.train.images, splits.validation.images])
        assert len(splits.validation.images) == 12
        every = own["train_inputs"].astype(kept)
        np.testing.assert_array_equal(np.sort(sets, axis=None), np.sort(every, axis=None))
    monkeypatch.chdir(tmp_path)
    settings = read_fields(error_study.Protocol, {**STUDY, "data": {"name": "own.npz"}})
    assert read_splits(settings.network).test.images.dtype == np.int32


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("test_labels", None, "there is no 'test_labels'"),
        ("train_inputs", "NaN", "train_inputs hold 300 values that are NaN"),
        ("train_inputs", "text", "train_inputs have dtype <U3; floats or integers are needed"),
        ("test_inputs", "narrow", r"train_inputs have shape \(5,\), test_inputs \(4,\)"),
        ("test_inputs", "whole", "train_inputs have dtype float32, test_inputs int32"),
        ("train_labels", "fractions", "train_labels are float32 .*; classes are needed"),
        ("train_labels", "short", r"train_labels are int32 \(59,\).* of shape \(60,\)"),
        ("test_labels", "gap", "no example of class 3 in the train split"),
    ],
)
def test_data_that_is_none_is_told(name, change, problem):
    changed = {
        "NaN": lambda a: a * np.nan,
        "text": lambda a: np.full(a.shape, "one"),
        "narrow": lambda a: a[:, 1:],
        "whole": lambda a: a.astype(int),
        "fractions": lambda a: a / 2,
        "short": lambda a: a[1:],
        "gap": lambda a: a + 1,
    }
    own = arrays()
    own[name] = changed[change](own[name]) if change else None
    with pytest.raises(ValueError, match=problem):
        prepare_arrays({key: value for key, value in own.items() if value is not None})


@pytest.mark.usefixtures("undrawn")
def test_a_network_at_chance_stops_the_study_until_it_is_told_to_go_on(tmp_path):
    splits = prepare_arrays(arrays(np.int32))
    variables = Tokens().init(jax.random.key(0), splits.test.images)
    settings = read_fields(error_study.Protocol, STUDY)
    network = given(settings, Tokens(), variables, splits)
    with pytest.raises(ValueError, match=r"on 30 test examples.* 33.33% .*no better than chance"):
        error_study.run(network, settings, tmp_path / "run")
    on = read_fields(error_study.Protocol, {**STUDY, "poor_baseline": True})
    page = error_study.run(network, on, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    kinds = [json.loads(line) for line in lines]
    measured = [record["layer"] for record in kinds if record["kind"] == "compressed"]
    assert (sorted(measured), page.exists()) == (["Dense_1"], True)


def test_layers_are_named_by_patterns_too():
    sample = jnp.zeros((1, 5), jnp.int32)
    table = layer_table(Tokens(), Tokens().init(jax.random.key(0), sample), sample)

    def paths(*layers):
        return with_paths(read_fields(error_study.Protocol, {**STUDY, "layers": layers}), table)

    assert paths("Dense_2", ".*").layers == ("Dense_2", "Dense_0", "Dense_1")
    with pytest.raises(ValueError, match=r"'layers' has 'Dense_\(': no pattern"):
        paths("Dense_(")


def test_what_embeddings_are_not_taken_for_is_told_before_any_work(tmp_path):
    splits = prepare_arrays(arrays(np.int32))
    variables = Tokens().init(jax.random.key(0), splits.test.images)
    raw = {key: STUDY[key] for key in ("data", "model", "train")}
    raw["calibration"] = {"images": [40], "subsets": 1}
    for package, settings, problem in (
        (compress, compress.Compress, "'norms' has 'kronecker', .*embedding 'Embed_0'"),
        (data_aware, data_aware.DataAware, r"leave it out: '\(\?!Embed_0\$\)"),
        (compressibility, compressibility.Compressibility, "'Embed_0' has no kernel to prune"),
    ):
        more = {"runs": 1} if package is compressibility else {}
        asked = read_fields(settings, {**raw, **more})
        with pytest.raises(ValueError, match=problem):
            package.run(given(asked, Tokens(), variables, splits), asked, tmp_path / "none")
    assert not (tmp_path / "none").exists()
