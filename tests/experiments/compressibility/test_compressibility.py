import csv
import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import tdjax
from benchmarks.kills.left import lines_of
from experiments.compressibility.layers import kernels, layer_records, layers_of
from experiments.compressibility.measure import MaskedFit, Pruner, measured, present, tuned
from experiments.compressibility.paper import published_pruning
from experiments.compressibility.report import write_report
from experiments.compressibility.rows import averaged_layers, layer_rows
from experiments.compressibility.run import check_chain
from experiments.compressibility.settings import SCHEMA, Compressibility, Trial, enumerate_trials
from experiments.data_aware.settings import DataAware
from experiments.dry_run import dry_run
from experiments.models import MLP
from experiments.network.calibrate import Calibration
from experiments.network.forward import Variables
from experiments.network.network import configured
from experiments.network.schedule import FitSettings
from experiments.runner import carry_out
from experiments.workdir.fields import read_fields
from experiments.workdir.journal import read_journal

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

pytestmark = pytest.mark.usefixtures("cache")

CONFIG = {
    "experiment": "compressibility",
    "data": {
        "name": "diabetes",
        "validation_share": 0.2,
        "train_size": 120,
        "validation_size": 40,
        "test_size": 60,
    },
    "model": {"name": "mlp", "arguments": {"widths": [8]}},
    "train": {"epochs": 3, "batch_size": 40, "optimizer": "adam", "learning_rate": 0.01},
    "calibration": {"images": [100], "batch_size": 50},
    "test": {"batch_size": 60},
    "finetune": {"epochs": 1},
    "runs": 2,
    "shares": [0.5],
    "qs": [0.5],
    "etas": [0.2],
    "penalties": [0.1],
    "layer_steps": 4,
    "tolerance": 0.05,
    "published": "yang2022/california_housing",
}
DIGITS = {
    **CONFIG,
    "data": {**CONFIG["data"], "name": "digits"},
    "runs": 1,
    "published": None,
    "methods": ["magnitude layer", "abp-m"],
    "finetune": {"epochs": 0},
    "model": {"name": "mlp", "arguments": {"widths": [8]}},
}


@pytest.fixture(scope="module")
def unbroken(cache, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("compressibility") / "unbroken"
    assert carry_out(CONFIG, workdir) == workdir / "report/index.html"
    return workdir


@pytest.fixture(scope="module")
def network():
    return configured(read_fields(Compressibility, CONFIG))


@pytest.fixture(scope="module")
def pruner(network):
    params = network.start.params
    batches = [batch.images for batch in network.batches(Calibration("same", 100, 0))]
    moments = tdjax.collect_moments(network.module, {"params": params}, batches)
    return Pruner(layers_of(network, network.start, batches), moments)


def lines(workdir):
    return [line for line in lines_of(workdir) if json.loads(line)["kind"] != "epoch"]


def tables(workdir):
    return {file.name: file.read_bytes() for file in (workdir / "report").glob("*.*v")}


def rows_of(workdir, name, **fields):
    """The rows of a table whose fields have these values."""

    def fits(cell, value):
        return cell == value if isinstance(value, str) else cell and float(cell) == value

    with open(workdir / "report" / f"{name}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if all(fits(row[key], value) for key, value in fields.items())]


def test_every_trial_once():
    trials = enumerate_trials(read_fields(Compressibility, CONFIG))
    assert len(set(trials)) == len(trials) == 7 + 1 + 2 + 1
    names = [trial.name for trial in trials]
    assert len(set(names)) == len(names)
    assert "ABP-M, q 0.5, eta 0.2" in names
    assert "magnitude, neuron, share 0.5" in names


def test_records_and_report(unbroken):
    records = list(map(json.loads, lines(unbroken)))
    kinds = [record["kind"] for record in records]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "baseline": 2,
        "layer": 4,
        "pruned": 22,
        "tuned": 22,
    }
    asked = dry_run(CONFIG, unbroken)
    assert re.findall(r"^  (\w+) +(\d+) +(\d+) +0$", asked, re.M) == [
        (kind, f"{kinds.count(kind)}", f"{kinds.count(kind)}")
        for kind in ("baseline", "pruned", "tuned")
    ]
    names = {file.name for file in (unbroken / "report").iterdir()}
    assert names == {
        "measurements.csv",
        "networks.csv",
        "gains.csv",
        "layers.csv",
        "tau.csv",
        "tables.md",
        "curves_pruned.svg",
        "curves_tuned.svg",
        "training_loss.svg",
        "tuning_loss.svg",
        "tuning_validation_loss.svg",
        *(f"layers_0.5_{name}.svg" for name in ("sparsity_index", "pq_index", "effective_share")),
        "index.html",
    }
    text = (unbroken / "report" / "tables.md").read_text()
    # What was published stands beside: ABP-M, q 0.5, eta 0.2.
    line, _ = (line for line in text.splitlines() if line.startswith("| ABP-M, q 0.5, eta 0.2"))
    assert line.endswith("| 3.12 | 68 % | 17 |")


def test_a_row_says_what_was_measured(unbroken):
    records = list(map(json.loads, lines(unbroken)))
    whole = records[0]
    (record,) = (
        r
        for r in records
        if r["kind"] == "pruned" and (r["run"], r["method"], r["share"]) == (0, "abp-l", 0.5)
    )
    trial = {"method": "abp-l", "share": 0.5}
    (row,) = rows_of(unbroken, "measurements", phase="pruned", run=0, **trial)
    assert float(row["rise"]) == record["test"]["loss"] / whole["test"]["loss"] - 1
    assert float(row["ratio"]) == whole["params"] / record["left"]
    assert record["pruned"] == pytest.approx(0.5, abs=0.1)
    assert record["gone"] >= record["pruned"] - 1e-9
    assert record["left"] <= record["size"] <= whole["params"]
    # The gain over magnitude pruning is a difference in pairs.
    own, other = (
        [
            float(r["rise"])
            for r in rows_of(unbroken, "measurements", phase="tuned", method=method, share=0.5)
        ]
        for method in ("sap", "magnitude neuron")
    )
    trial = {"method": "sap", "share": 0.5, "against": "neuron"}
    (gain,) = rows_of(unbroken, "gains", phase="tuned", **trial)
    assert float(gain["rise"]) == pytest.approx(np.mean(np.subtract(other, own)), abs=1e-6)
    # Without fine-tuning, that of ABP-L is over magnitude pruning at the very share it came to.
    trial = {"method": "abp-l", "share": 0.5, "against": "neuron"}
    (gain,) = rows_of(unbroken, "gains", phase="pruned", **trial)
    pairs = [
        (r["rivals"]["neuron"]["loss"] - r["test"]["loss"]) / whole["test"]["loss"]
        for r in records
        for whole in records
        if (r["kind"], r.get("method"), r.get("share")) == ("pruned", "abp-l", 0.5)
        and (whole["kind"], whole.get("run")) == ("baseline", r["run"])
    ]
    assert float(gain["rise"]) == pytest.approx(np.mean(pairs), abs=1e-6)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("kept", [2, 30])
def test_continued_after_lines_were_lost(unbroken, tmp_path, kept):
    workdir = tmp_path / "cut"
    shutil.copytree(unbroken, workdir)
    shutil.rmtree(workdir / "report")
    whole = lines(unbroken)
    half = whole[kept][: len(whole[kept]) // 2]
    (workdir / "metrics.jsonl").write_bytes(b"".join(whole[:kept]) + half)
    carry_out(CONFIG, workdir)
    assert tables(workdir) == tables(unbroken)


def test_an_unfinished_experiment_is_reported(unbroken, tmp_path):
    shutil.copy(unbroken / "config.json", tmp_path)
    write_report(tmp_path)
    assert "none trained yet" in (tmp_path / "report" / "index.html").read_text()
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines(unbroken)[:12]))
    write_report(tmp_path)
    assert len(rows_of(tmp_path, "layers")) == 2
    (tmp_path / "metrics.jsonl").write_bytes(lines(unbroken)[0] + b'{"kind": "pruned"}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: field 'run' is missing"):
        write_report(tmp_path)


def test_classes_have_an_accuracy(tmp_path):
    carry_out(DIGITS, tmp_path / "run")
    found = read_journal(tmp_path / "run" / "metrics.jsonl", SCHEMA)
    whole = found.get("baseline", run=0)["test"]
    rows = rows_of(tmp_path / "run", "measurements")
    assert {row["phase"] for row in rows} == {"pruned"}
    for row in rows:
        # Whole numbers of images.
        right = 60 * float(row["accuracy"])
        assert right == pytest.approx(round(right), abs=1e-3)
    (gain,) = rows_of(tmp_path / "run", "gains", share=0.5, against="layer")
    own, other = (
        float(rows_of(tmp_path / "run", "measurements", method=method, share=0.5)[0]["accuracy"])
        for method in ("abp-m", "magnitude layer")
    )
    assert float(gain["points"]) == pytest.approx(100 * (own - other), abs=1e-4)
    assert 0 <= whole["accuracy"] <= 1
    assert "points of accuracy" in (tmp_path / "run" / "report" / "tables.md").read_text()


@pytest.mark.parametrize(
    "trial", enumerate_trials(read_fields(Compressibility, CONFIG)), ids=lambda t: t.name
)
def test_a_cut_has_the_share_that_was_asked_for(pruner, trial):
    cut = pruner.cut(trial)
    arrays = kernels(cut.params)
    zeros = sum(int((array == 0).sum()) for array in arrays.values())
    weights = sum(array.size for array in arrays.values())
    assert cut.share == pytest.approx(zeros / weights)
    if trial.share is not None:
        loose = 0.1 if trial.method in ("tail", "abp-l") else 0.01
        assert cut.share == pytest.approx(trial.share, abs=loose)
    if trial.method != "abp-l":
        for path, own in kernels(pruner.layers.model.params).items():
            np.testing.assert_array_equal(arrays[path], np.where(arrays[path] != 0, own, 0))


def test_zeros_stay_in_training_and_others_learn(network, pruner):
    cut = pruner.cut(Trial("magnitude layer", None, 0.5))
    _, best = tuned(network, Variables(cut.params, {}), "some")
    for path, before in kernels(cut.params).items():
        after = kernels(best.params)[path]
        np.testing.assert_array_equal(after[before == 0], 0)
        assert (after[before != 0] != before[before != 0]).any()


def test_masked_training_takes_the_steps_of_keep_zeros():
    params = {"layer": {"kernel": jnp.asarray([[1.0, 0.0], [0.0, 2.0]]), "bias": jnp.zeros(2)}}
    mask = present(params)
    np.testing.assert_array_equal(mask["layer"]["kernel"], [[True, False], [False, True]])
    assert mask["layer"]["bias"].all()
    fit = {"epochs": 2, "learning_rate": 0.1, "weight_decay": 0.01, "boundaries": (1,)}
    masked = MaskedFit(**fit).optimiser(1)
    plain = FitSettings(**fit).optimiser(1)
    states = masked.init(params), plain.init(params)
    gradient = jax.tree.map(jnp.ones_like, params)
    for _ in range(3):
        update, first = masked.update(gradient, states[0], params)
        expected, second = plain.update(gradient, states[1], params)
        states = first, second
        jax.tree.map(np.testing.assert_array_equal, update, tdjax.apply_mask(expected, mask))


def plain_layers(params, x):
    """Inputs and outputs of each layer of an MLP, in NumPy."""
    found = {}
    for name in ("hidden1", "output"):
        own = params[name]
        y = x @ np.asarray(own["kernel"], np.float64) + np.asarray(own["bias"])
        found[name] = (x, y)
        x = np.maximum(y, 0)
    return found


def test_records_of_layers_against_numpy(network):
    model = network.start
    settings = network.settings
    images = np.asarray(network.splits.train.images[:30], np.float64)
    layers = layers_of(network, model, [images[:15].astype("f4"), images[15:].astype("f4")])
    whole = measured(network, model)
    test, labels = network.splits.test.images, network.splits.test.labels
    outputs = plain_layers(model.params, test)["output"][1][:, 0]
    assert whole["loss"] == pytest.approx(np.mean((outputs - labels) ** 2), rel=1e-5)
    assert "accuracy" not in whole
    passed = plain_layers(model.params, images)
    records = layer_records(settings, layers, 0, whole)
    assert [record["layer"] for record in records] == list(passed)
    mask = tdjax.adaptive_prune(model.params, 0.5)
    for record in records:
        path, (own,) = record["layer"], record["by_q"]
        kernel = np.asarray(model.params[path]["kernel"], np.float64)
        assert (record["inputs"], record["neurons"]) == kernel.shape
        effective = np.abs(kernel).sum(0) ** -1 * (np.abs(kernel) ** 0.5).sum(0) ** 2
        assert own["effective_number"] == pytest.approx(effective.mean(), rel=1e-4)
        assert own["sparsity_index"] == pytest.approx((1 / effective).mean(), rel=1e-4)
        # The bound against what the pruned neurons really get wrong.
        inputs = passed[path][0]
        limit = np.abs(inputs).max()
        assert layers.bounds[path] == pytest.approx(limit, rel=1e-5)
        lost = np.where(np.asarray(mask[path]["kernel"]), 0, kernel)
        worst = np.abs(inputs @ lost).max(axis=0)
        kept = np.asarray(mask[path]["kernel"]).sum(axis=0)
        scale = np.sqrt(np.mean(passed[path][1] ** 2))
        assert layers.scales[path] == pytest.approx(scale, rel=1e-5)
        bound = limit * 0.25 * (np.abs(kernel) ** 0.5).sum(0) ** 2 / kept
        ratios = (bound / np.where(worst > 0, worst, 1))[worst > 0]
        loose = own["looseness"]
        assert loose["neurons"] == len(ratios)
        if not len(ratios):
            assert loose["bound"] is None
            continue
        np.testing.assert_allclose(
            loose["bound"], [np.median(ratios), ratios.min(), ratios.max()], rtol=1e-3
        )
        assert loose["bound"][1] >= loose["tail"][1] >= 1 - 1e-5
        # How far the layer can go, one share after the other.
        reached = 0.0
        for step in range(1, settings.layer_steps + 1):
            share = step / (settings.layer_steps + 1)
            least = np.sort(np.abs(kernel).ravel())[round(share * kernel.size) - 1]
            cut = {**model.params, path: {**model.params[path]}}
            cut[path]["kernel"] = np.where(np.abs(kernel) > least, kernel, 0)
            outputs = plain_layers(cut, test)["output"][1][:, 0]
            if np.mean((outputs - labels) ** 2) > 1.05 * whole["loss"]:
                break
            reached = share
        assert record["reached"] == pytest.approx(reached)


def test_means_over_layers_weigh_neurons(unbroken):
    rows = layer_rows(read_journal(unbroken / "metrics.jsonl", SCHEMA))
    averaged = averaged_layers(rows)
    (network,) = averaged[averaged["layer"] == ""].to_dict("records")
    assert (network["neurons"], network["weights"]) == (9, 10 * 8 + 8)
    expected = (rows["neurons"] * rows["pq_index"]).sum() / (2 * 9)
    assert network["pq_index"] == pytest.approx(expected)
    assert network["bound_least"] == rows["bound_least"].min() >= 1


def test_published_figures():
    known = published_pruning("yang2022/california_housing")
    assert len(known) == 12
    # A ratio of a is a share of 1 - 1/a, up to biases and rounding.
    for found in known.values():
        assert found.share == pytest.approx(1 - 1 / found.ratio, abs=0.015)
    assert published_pruning(None) == {}
    with pytest.raises(ValueError, match="known are: yang2022/california_housing"):
        published_pruning("another")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("methods", ["best"], "'methods' has 'best': known are magnitude"),
        ("shares", [1.0], r"'shares' has 1\.0: at least 1e-06 and at most 0\.999999"),
        ("qs", [1.0], r"'qs' has 1\.0: at least 0\.01 and at most 0\.99"),
        ("etas", [0.0], r"'etas' has 0\.0: above 0 and at most 1000000"),
        ("penalties", [-1.0], r"'penalties' has -1\.0: above 0 and at most 1000000"),
        ("eta_q", 1.0, r"'eta_q' is 1\.0: at least 0\.01"),
        ("tolerance", 0.0, r"'tolerance' is 0\.0: above 0 and at most 1000000"),
        ("runs", 0, "'runs' is 0: at least 1"),
        ("published", "another", "'published' is 'another': known are yang2022"),
        ("model", {"name": "garipovnet"}, "'model.name' is 'garipovnet': no such thing for"),
        ("train", {**CONFIG["train"], "augment": True}, r"'train\.augment' is True: no such thing"),
        ("test", {"change": "flipped"}, r"'test\.change' is 'flipped': no such thing"),
        ("reestimate", True, "'reestimate' is True: no such thing"),
        ("calibration", {"images": [1000]}, "but source 'same' has 120 images"),
    ],
)
def test_what_is_wrong_is_found_before_any_work(tmp_path, field, value, message):
    with pytest.raises(ValueError, match=message):
        carry_out({**CONFIG, field: value}, tmp_path / "none")
    assert not (tmp_path / "none").exists()


class Shortcut(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(4, name="first")(x)
        return nn.Dense(1, name="last")(x + nn.relu(nn.Dense(4, name="middle")(x)))


def test_only_chains_are_refitted_backwards(network):
    check_chain(network)
    module, sample = Shortcut(), network.sample
    variables = module.init(jax.random.key(0), sample)
    plan = tdjax.make_plan(module, variables, (), sample)
    start = Variables(variables["params"], {})
    other = dataclasses.replace(network, module=module, start=start, dense=plan)
    with pytest.raises(ValueError, match=r"'methods': 'abp-l' needs layers that follow.* 'first'"):
        check_chain(other)


def test_magnitude_pruning_of_all_weights(pruner):
    for scope in ("neuron", "layer", "global"):
        assert pruner.magnitude(1.0, scope).share == 1


def test_other_experiments_refuse_tables():
    raw = {name: CONFIG[name] for name in ("data", "model", "train", "calibration")}
    with pytest.raises(ValueError, match="'diabetes', a table, which only the experiment"):
        configured(read_fields(DataAware, raw))


def test_an_mlp_is_a_chain_whose_dead_neurons_go():
    model, x = MLP(3, (6, 5)), jnp.ones((2, 4, 2))
    variables = model.init(jax.random.key(0), x)
    kernel = variables["params"]["output"]["kernel"].at[1].set(0)
    params = {**variables["params"]}
    params["output"] = {**params["output"], "kernel": kernel}
    found = tdjax.remove_dead(model, {"params": params}, x)
    assert found.kept["hidden2"].tolist() == [0, 2, 3, 4]
    shapes = jax.tree.map(jnp.shape, found.variables["params"])
    assert shapes["hidden1"]["kernel"] == (8, 6)
    assert shapes["output"]["kernel"] == (4, 3)
