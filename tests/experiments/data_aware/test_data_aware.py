import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.kills.left import lines_of
from experiments.data_aware.report import write_report
from experiments.data_aware.run import Press, plan_networks
from experiments.data_aware.settings import SCHEMA, DataAware, Trial, enumerate_trials
from experiments.dry_run import dry_run
from experiments.network.calibrate import Calibration
from experiments.network.forward import LinenNetwork, Variables
from experiments.network.network import configured
from experiments.network.train_on import moments_for
from experiments.network.training import evaluate
from experiments.runner import carry_out
from experiments.workdir.fields import plain_fields, read_fields
from experiments.workdir.journal import read_journal

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

pytestmark = pytest.mark.usefixtures("cache")

ROOT = Path(__file__).resolve().parents[3]
CONFIG = {
    "experiment": "data_aware",
    "data": {
        "name": "digits",
        "validation_share": 0.25,
        "train_size": 200,
        "validation_size": 50,
        "test_size": 50,
    },
    "model": {"name": "garipovnet", "arguments": {"widths": [4] * 3, "pools": [2, 0]}},
    "train": {"epochs": 2, "batch_size": 40, "learning_rate": 0.05, "boundaries": [1]},
    "methods": ["svd", "cp"],
    "keeps": [0.5],
    "correct_bias": [False, True],
    "calibration": {
        "sources": ["same"],
        "images": [60],
        "subsets": 2,
        "batch_size": 30,
    },
    "solver": {"max_iters": 3},
    "test": {"batch_size": 50, "layer_images": 20},
    "finetune": {"epochs": 1},
}
TRANSFER = {
    **CONFIG,
    "methods": ["svd"],
    "layers": ["conv[2-6]", "linear"],
    "norms": ["covariance"],
    "correct_bias": [False],
    "calibration": {"sources": ["same", "brighter", "digits"], "images": [60], "subsets": 1},
    "test": {"batch_size": 50, "layer_images": 0, "change": "flipped"},
    "finetune": {"epochs": 0},
}


def changed(path, value, base=CONFIG):
    raw = json.loads(json.dumps(base))
    *folders, name = path.split(".")
    place = raw
    for folder in folders:
        place = place.setdefault(folder, {})
    place[name] = value
    return raw


@pytest.fixture(scope="module")
def unbroken(cache, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("aware") / "unbroken"
    assert carry_out(CONFIG, workdir) == workdir / "report/index.html"
    return workdir


@pytest.fixture(scope="module")
def transfer(cache, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("aware") / "transfer"
    carry_out(TRANSFER, workdir)
    return workdir


@pytest.fixture(scope="module")
def press(cache):
    settings = read_fields(DataAware, CONFIG)
    network = configured(settings)
    return Press(network, settings, network.start, plan_networks(network, settings), None)


def tables(workdir):
    names = ("*.csv", "*.md", "*.html")
    found = [file for name in names for file in (workdir / "report").glob(name)]
    # The page but for its figures, which are not drawn again, and for when it was measured.
    left_out = rb'<svg[^>]*/>|<svg.*?</svg>|<section id="(training|provenance)">.*?</section>'
    return {file.name: re.sub(left_out, b"", file.read_bytes(), flags=re.DOTALL) for file in found}


def lines(workdir):
    return [line for line in lines_of(workdir) if json.loads(line)["kind"] != "epoch"]


def test_every_trial_once_and_what_sees_no_data_not_again():
    trials = enumerate_trials(read_fields(DataAware, CONFIG))
    every = [trial for found in trials.values() for trial in found]
    assert len(every) == len(set(every))
    blind = [trial for trial in every if trial.calibration.source == ""]
    assert {(t.method, t.calibration.subset) for t in blind} == {("svd", 0), ("cp", 0), ("cp", 1)}
    assert all(t.norm == "frobenius" and not t.correct_bias for t in blind)
    # Two subsets, two methods; two norms without and three with correction.
    assert len(every) - len(blind) == 2 * 2 * (2 + 3)
    assert all(t.calibration == calibration for calibration in trials for t in trials[calibration])


def test_records_report_and_figures(unbroken, press):
    records = [json.loads(line) for line in lines(unbroken)]
    kinds = [record["kind"] for record in records]
    found = re.findall(r"^  (\w+) +([\d,]+) +([\d,]+) +0$", dry_run(CONFIG, unbroken), re.M)
    counts = Counter(kinds)
    assert sorted(found) == sorted((kind, f"{n:,}", f"{n:,}") for kind, n in counts.items())
    assert kinds[0] == "baseline"
    trials = [
        trial
        for found in enumerate_trials(read_fields(DataAware, CONFIG)).values()
        for trial in found
    ]
    assert kinds.count("network") == len(trials)
    # Fine-tuning of the first subset: without data one of each method, with data five.
    assert kinds.count("tuned") == 2 + 2 * 5
    layers = [len(press.plans[trial.method, trial.keep].factorised) for trial in trials]
    assert kinds.count("layer") == sum(layers) > len(trials)
    assert all(r["test"]["count"] == (20 if r["kind"] == "layer" else 50) for r in records)
    found = {file.name for file in (unbroken / "report").iterdir()}
    assert found == {
        "measurements.csv",
        "networks.csv",
        "layers.csv",
        "gains.csv",
        "tables.md",
        "index.html",
        *(f"{what}_{of}.svg" for what in ("training", "tuning") for of in ("loss", "metric")),
        *(
            f"accuracy_{cost}_{method}_{phase}.svg"
            for cost in ("params", "macs")
            for method in ("svd", "cp")
            for phase in ("before", "after")
        ),
    }
    page = (unbroken / "report" / "index.html").read_text()
    assert "Transfer" not in page
    assert 'id="layers"' in page
    assert "covariance over frobenius" in page
    assert {f.name for f in (unbroken / "moments").iterdir()} == {
        "same-60-0.npz",
        "same-60-1.npz",
    }
    for size in records[0]["sizes"]:
        assert 0 < size["params"] < records[0]["params"]
        assert 0 < size["macs"] < records[0]["macs"]


def test_a_network_is_measured_as_its_factors_say(unbroken, press):
    # The whole way again, without the experiment's own parts: a factorised model on the test set.
    import tdjax
    from experiments.network.baseline import train_baseline

    network = press.network
    journal = read_journal(unbroken / "metrics.jsonl", SCHEMA)
    fit = train_baseline(network, unbroken / "checkpoints" / "baseline", journal)
    model = jax.tree.map(lambda leaf: leaf[0], fit.best)
    plan = press.plans["svd", 0.5]
    moments = tdjax.load_moments(unbroken / "moments" / "same-60-1.npz")
    params = tdjax.factorize_params(
        model.params, plan, moments=moments, norm="kronecker", correct_bias=True
    )
    small = tdjax.factorize(network.module, plan)
    one = jax.tree.map(lambda leaf: leaf[None], Variables(params, model.state))
    scores = evaluate(one, LinenNetwork(small), network.splits.test)
    (record,) = (
        r
        for r in map(json.loads, lines(unbroken))
        if r["kind"] == "network"
        and (r["method"], r["norm"], r["correct_bias"]) == ("svd", "kronecker", True)
        and (r["source"], r["subset"]) == ("same", 1)
    )
    assert record["test"]["accuracy"] == pytest.approx(scores.accuracy[0])
    assert record["test"]["cross_entropy"] == pytest.approx(scores.cross_entropy[0], rel=1e-4)


@pytest.mark.usefixtures("undrawn")
def test_continued_after_lines_were_lost(unbroken, tmp_path):
    workdir, kept = tmp_path / "cut", 8
    shutil.copytree(unbroken, workdir)
    shutil.rmtree(workdir / "report")
    whole = lines(unbroken)
    half = whole[kept][: len(whole[kept]) // 2]
    (workdir / "metrics.jsonl").write_bytes(b"".join(whole[:kept]) + half)
    # Those of the first subset are read, those of the second collected anew.
    (workdir / "moments" / "same-60-1.npz").unlink()
    carry_out(CONFIG, workdir)
    assert sorted(lines(workdir)) == sorted(whole)
    assert tables(workdir) == tables(unbroken)


@pytest.mark.usefixtures("undrawn")
def test_again_nothing_is_redone_and_the_order_of_lines_does_not_matter(unbroken, tmp_path):
    workdir = tmp_path / "again"
    shutil.copytree(unbroken, workdir)
    first, *rest = lines(workdir)
    (workdir / "metrics.jsonl").write_bytes(b"".join([first, *reversed(rest)]))
    carry_out(CONFIG, workdir)
    # But put in order again.
    assert lines(workdir) == lines(unbroken)
    assert tables(workdir) == tables(unbroken)


@pytest.mark.usefixtures("undrawn")
def test_killed_and_continued(transfer, cache, tmp_path):
    config = tmp_path / "tiny.py"
    config.write_text(
        "from ml_collections import ConfigDict\n\n\n"
        f"def get_config():\n    return ConfigDict({TRANSFER!r})\n"
    )
    workdir = tmp_path / "killed"
    command = [sys.executable, "-m", "experiments.main", f"--config={config}"]
    command += [f"--workdir={workdir}", f"--compilation_cache={cache}"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if (workdir / "metrics.jsonl").exists() and len(lines(workdir)) > 2:
            break
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert len(lines(workdir)) >= 1
    carry_out(TRANSFER, workdir)
    # The page shows the configuration, whose fields a ConfigDict puts in another order.
    expected, found = tables(transfer), tables(workdir)
    del expected["index.html"], found["index.html"]
    assert found == expected


def test_an_unfinished_experiment_is_reported(unbroken, tmp_path):
    workdir = tmp_path / "part"
    workdir.mkdir()
    shutil.copy(unbroken / "config.json", workdir)
    write_report(workdir)
    assert "not trained yet" in (workdir / "report" / "index.html").read_text()
    (workdir / "metrics.jsonl").write_bytes(b"".join(lines(unbroken)[:3]))
    write_report(workdir)
    assert len((workdir / "report" / "measurements.csv").read_text().splitlines()) == 3
    (workdir / "metrics.jsonl").write_bytes(lines(unbroken)[0] + b'{"kind": "network"}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: field 'method' is missing"):
        write_report(workdir)


def test_one_start_and_one_decomposition_for_all_that_see_no_data(press, tmp_path):
    plain = Trial(Calibration(), "cp", 0.5, "frobenius", False)
    made = press.compressed(plain, None, [])
    first, dense = made.factors, made.dense.params
    assert press.compressed(plain, None, []).factors is first
    calibration = Calibration("same", 60, 0)
    network, batches = press.network, press.network.batches(calibration)
    moments = moments_for(network, network.start, batches, calibration, tmp_path, gradients=True)
    made = press.compressed(Trial(calibration, "cp", 0.5, "frobenius", True), moments, batches)
    corrected, shifted = made.factors, made.dense.params
    assert corrected["conv2"].keys() == first["conv2"].keys()
    np.testing.assert_array_equal(dense["conv2"]["kernel"], shifted["conv2"]["kernel"])
    # The mean output is kept: W^T m + b of the layer before and after.
    before, after = network.start.params["conv2"], shifted["conv2"]
    mean = np.asarray(moments["conv2"].mean[0])

    def output(own):
        return mean @ np.asarray(own["kernel"]).reshape(len(mean), -1) + np.asarray(own["bias"])

    np.testing.assert_allclose(output(after), output(before), atol=1e-5)
    assert not np.allclose(output(dense["conv2"]), output(before), atol=1e-5)


def test_transfer_without_tuning_and_layers(unbroken, transfer):
    baseline, *records = map(json.loads, lines(transfer))
    assert {r["kind"] for r in records} == {"network"}
    assert sorted(r["source"] for r in records) == ["brighter", "digits", "same"]
    # The same network as without the change of the test images.
    assert baseline["params"] == json.loads(lines(unbroken)[0])["params"]
    assert baseline["test"] != json.loads(lines(unbroken)[0])["test"]
    assert 'id="layers"' not in (transfer / "report" / "index.html").read_text()
    text = (transfer / "report" / "tables.md").read_text()
    header = "| method | kept | norm, examples | moments from same | moments from brighter |"
    assert header in text
    losses = {r["test"]["cross_entropy"] for r in records}
    assert len(losses) == 3


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("norms", ["euclid"], "'norms' has 'euclid': known are frobenius, covariance, kronecker"),
        ("methods", ["svd", "svd"], "'methods' must list at least one, and none twice"),
        ("methods", ["pca"], "'methods' has 'pca': known are"),
        ("keeps", [1.0], r"'keeps' has 1\.0: at least 1e-06 and at most 0\.999999"),
        ("keeps", [], "'keeps' must list at least one"),
        ("calibration.sources", ["svhn"], "'calibration.sources' has 'svhn'"),
        ("layers", ["conv9"], "'conv9'.*matches no layer"),
        ("calibration.images", [0], "'calibration.images' has 0: at least 1"),
        ("calibration.images", [201], "asks for 201, but source 'same' has 200 images"),
        ("calibration.subsets", 0, "'calibration.subsets' is 0"),
        (
            "calibration.labels",
            "guessed",
            "'calibration.labels' is 'guessed': known are",
        ),
        ("calibration.temperature", 0.0, r"'calibration.temperature' is 0\.0: at least 0\.001"),
        ("calibration.brightness", 1.5, r"'calibration.brightness' is 1\.5: at least"),
        ("calibration.image", [10], "unknown config field 'calibration.image'"),
        ("test.change", "upside", "'test.change' is 'upside': known are same, flipped"),
        ("test.layer_images", 51, "'test.layer_images' is 51, but there are 50 test examples"),
        ("inputs", {"mean": [0.5]}, "'inputs.deviation' is None: give mean and deviation"),
        ("inputs", {"mean": [0.5] * 3, "deviation": [0.2] * 3}, "1 channels is needed"),
        (
            "inputs",
            {"mean": [0.5], "deviation": [0.0]},
            "'inputs.deviation' has 0.0: at least",
        ),
        ("weights", "nowhere.npz", "'weights' is 'nowhere.npz': there is no such file"),
        ("finetune", {"epochs": -1}, "'finetune.epochs' is -1: at least 0"),
        ("finetune_subsets", 0, "'finetune_subsets' is 0"),
        ("correct_bias", [1], "'correct_bias' must be of type bool"),
        ("train.batch_size", 201, "less than one batch of 201"),
        ("model.name", "vgg", "'vgg': known are"),
    ],
)
def test_what_is_wrong_is_found_before_any_work(tmp_path, path, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        carry_out(changed(path, value), tmp_path / "none")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "none").exists()


def test_settings_are_plain_and_come_back():
    settings = read_fields(DataAware, CONFIG)
    plain = plain_fields(settings)
    assert read_fields(DataAware, json.loads(json.dumps(plain))) == settings
    assert settings.finetune_fit.learning_rate == pytest.approx(0.005)


def measured_again(raw, workdir):
    """The records of an experiment, whose last ones are the same when made alone."""
    carry_out(raw, workdir)
    whole = lines(workdir)
    (workdir / "metrics.jsonl").write_bytes(b"".join(whole[:-1]))
    carry_out(raw, workdir)
    assert lines(workdir) == whole
    return [json.loads(line) for line in whole[1:]]


@pytest.mark.usefixtures("undrawn")
def test_layer_after_layer(tmp_path):
    norms = ["covariance", "sequential covariance", "sequential kronecker"]
    raw = {**CONFIG, "methods": ["svd"], "norms": norms, "correct_bias": [False]}
    raw |= {"calibration": TRANSFER["calibration"] | {"sources": ["same"]}}
    raw |= {"finetune": {"epochs": 0}}
    records = measured_again(raw, tmp_path)
    losses = {r["norm"]: r["test"]["cross_entropy"] for r in records if r["kind"] == "network"}
    assert list(losses) == norms
    assert len(set(losses.values())) == 3
    # One after the other, layers cannot be tried alone.
    assert {r["norm"] for r in records if r["kind"] == "layer"} == {"covariance"}
    text = (tmp_path / "report" / "tables.md").read_text()
    assert "sequential covariance over covariance" in text


@pytest.mark.usefixtures("undrawn")
def test_batch_statistics_estimated_anew(tmp_path):
    raw = {
        **TRANSFER,
        "norms": ["frobenius", "covariance"],
        "calibration": {"images": [60], "subsets": 1, "batch_size": 30},
        "reestimate": True,
    }
    records = measured_again(raw, tmp_path)
    losses = {(r["kind"], r["norm"]): r["test"]["cross_entropy"] for r in records}
    assert {kind for kind, _ in losses} == {"network", "reestimated"}
    assert len(set(losses.values())) == 4
    text = (tmp_path / "report" / "tables.md").read_text()
    assert "Whole network, without fine-tuning, batch statistics re-estimated" in text
