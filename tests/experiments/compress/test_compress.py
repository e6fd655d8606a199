import json
import re
import shutil
from collections import Counter

import jax
import numpy as np
import pytest

import tdjax
from benchmarks.kills.left import lines_of
from experiments.compress.reach import least_share
from experiments.compress.report import write_report
from experiments.compress.settings import Compress, enumerate_trials
from experiments.dry_run import dry_run
from experiments.network.forward import LinenNetwork, Variables
from experiments.network.network import configured
from experiments.network.training import evaluate
from experiments.runner import carry_out
from experiments.workdir.fields import read_fields

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

pytestmark = pytest.mark.usefixtures("cache")

CONFIG = {
    "experiment": "compress",
    "data": {
        "name": "digits",
        "validation_share": 0.25,
        "train_size": 200,
        "validation_size": 50,
        "test_size": 50,
    },
    "model": {"name": "garipovnet", "arguments": {"widths": [8] * 4, "pools": [2, 0]}},
    "train": {"epochs": 2, "batch_size": 40, "learning_rate": 0.05, "boundaries": [1]},
    "budgets": [0.6],
    "strategies": ["uniform", "alds released", "loss"],
    "methods": ["svd"],
    "norms": ["frobenius", "kronecker"],
    "reestimate": True,
    "calibration": {"images": [80], "subsets": 2, "batch_size": 40},
    "solver": {"max_iters": 3},
    "test": {"batch_size": 50},
    "finetune": {"epochs": 1},
    "timed_images": 2,
}


@pytest.fixture(scope="module")
def unbroken(cache, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("compress") / "unbroken"
    assert carry_out(CONFIG, workdir) == workdir / "report/index.html"
    return workdir


def lines(workdir):
    return [line for line in lines_of(workdir) if json.loads(line)["kind"] != "epoch"]


def tables(workdir):
    return {
        name: (workdir / "report" / f"{name}.csv").read_bytes()
        for name in ("measurements", "networks", "layers")
    }


def test_every_trial_once():
    trials = enumerate_trials(read_fields(Compress, CONFIG))
    assert len(set(trials)) == len(trials)
    blind = [trial.strategy for trial in trials if not trial.calibration.images]
    assert blind == ["uniform", "alds released"]
    assert len(trials) - len(blind) == 3 * 2
    assert len({trial.name for trial in trials}) == len(trials)


def test_records_and_report(unbroken):
    first, *records = map(json.loads, lines(unbroken))
    kinds = [record["kind"] for record in records]
    found = re.findall(r"^  (\w+) +([\d,]+) +([\d,]+) +0$", dry_run(CONFIG, unbroken), re.M)
    counts = Counter([first["kind"], *kinds])
    assert sorted(found) == sorted((kind, f"{n:,}", f"{n:,}") for kind, n in counts.items())
    assert first["kind"] == "baseline"
    assert {kind: kinds.count(kind) for kind in kinds} == dict.fromkeys(
        ("network", "reestimated", "tuned", "timed"), 8
    )
    for record in records:
        if record["kind"] == "network":
            plan = tdjax.Plan.from_json(record["plan"])
            assert 0.595 <= plan.size / first["params"] <= 0.6
    names = {file.name for file in (unbroken / "report").iterdir()}
    costs = ("params", "macs", "time")
    phases = ("network", "reestimated", "tuned")
    assert names == {
        "measurements.csv",
        "networks.csv",
        "layers.csv",
        "times.csv",
        "tables.md",
        "index.html",
        *(f"{what}_{of}.svg" for what in ("training", "tuning") for of in ("loss", "metric")),
        *(f"accuracy_{cost}_{phase}.svg" for cost in costs for phase in phases),
    }
    text = (unbroken / "report" / "tables.md").read_text()
    assert "| alds released, kronecker |" in text
    assert "Speed of inference" in text
    assert "relative error in the operator norm" in text


def test_a_checkpoint_is_the_network_that_was_measured(unbroken):
    network = configured(read_fields(Compress, CONFIG))
    for trial in enumerate_trials(read_fields(Compress, CONFIG))[-2:]:
        variables, plan = tdjax.load_factorised(unbroken / "compressed" / trial.name)
        params = variables.pop("params")
        one = jax.tree.map(lambda leaf: np.asarray(leaf)[None], Variables(params, variables))
        small = LinenNetwork(tdjax.factorize(network.module, plan))
        scores = evaluate(one, small, network.splits.test)
        (record,) = (
            found
            for found in map(json.loads, lines(unbroken))
            if found["kind"] == "tuned"
            and all(found[name] == value for name, value in trial.fields.items())
        )
        assert record["test"]["cross_entropy"] == pytest.approx(scores.cross_entropy[0], rel=1e-4)


def written(folder):
    """The files of a folder, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("kept", [8, 32])
def test_continued_after_lines_were_lost(unbroken, tmp_path, kept):
    workdir = tmp_path / "cut"
    shutil.copytree(unbroken, workdir)
    shutil.rmtree(workdir / "report")
    whole = lines(unbroken)
    half = whole[kept][: len(whole[kept]) // 2]
    (workdir / "metrics.jsonl").write_bytes(b"".join(whole[:kept]) + half)
    if kept == len(whole) - 1:
        # All is measured but the last times, whose network is made again.
        shutil.rmtree(workdir / "compressed")
    moments = written(workdir / "moments")
    carry_out(CONFIG, workdir)
    assert tables(workdir) == tables(unbroken)
    assert len(lines(workdir)) == len(whole)
    # What another process made is read.
    assert len(moments) == 2
    assert written(workdir / "moments") == moments


@pytest.mark.usefixtures("undrawn")
def test_rounds_of_compression_and_training(tmp_path):
    raw = {**CONFIG, "rounds": 2, "strategies": ["loss"], "norms": ["kronecker"], "timed_images": 0}
    raw |= {"reestimate": False, "sequential": True}
    raw["calibration"] = {**CONFIG["calibration"], "subsets": 1}
    carry_out(raw, tmp_path / "run")
    first, network, tuned = map(json.loads, lines(tmp_path / "run"))
    plan = tdjax.Plan.from_json(network["plan"])
    assert 0.595 <= plan.size / first["params"] <= 0.6
    assert tuned["kind"] == "tuned"


def test_an_unfinished_experiment_is_reported(unbroken, tmp_path):
    shutil.copy(unbroken / "config.json", tmp_path)
    write_report(tmp_path)
    assert "not trained yet" in (tmp_path / "report" / "index.html").read_text()
    (tmp_path / "metrics.jsonl").write_bytes(lines(unbroken)[0] + b'{"kind": "network"}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: field 'strategy' is missing"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("budgets", [1.0], r"'budgets' has 1\.0: at least 1e-06 and at most 0\.999999"),
        ("budgets", [0.001], r"budget 0\.0316228 of the params is out of reach"),
        ("timed_images", 51, "'timed_images' is 51, but there are 50 test examples"),
        ("cost", "time", "'cost' is 'time': known are params, macs"),
        ("strategies", ["best"], "'strategies' has 'best': known are uniform"),
        ("norms", ["frobenius"], "'norms' is .*: strategy 'loss' needs one that sees data"),
        ("finetune", {"epochs": 0}, "'rounds' is 2: more than one needs finetune.epochs"),
        ("budget", 0.5, "unknown config field 'budget'"),
    ],
)
def test_what_is_wrong_is_found_before_any_work(tmp_path, field, value, message):
    with pytest.raises(ValueError, match=message):
        carry_out({**CONFIG, "rounds": 2, field: value}, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def allocate(network, cost, strategy, methods, budget):
    model, variables = network.module, network.start.collections
    options = {"cost": cost, "strategy": strategy, "methods": methods}
    return tdjax.allocate(model, variables, network.sample, budget=budget, **options)


@pytest.mark.parametrize(
    ("strategy", "cost"),
    [("energy", "macs"), ("alds", "params"), ("alds+", "params"), ("loss", "params")],
)
def test_budgets_out_of_reach_are_told_before_the_training(tmp_path, strategy, cost):
    raw = {**CONFIG, "strategies": [strategy], "cost": cost, "methods": ["svd", "tucker"]}
    network = configured(read_fields(Compress, raw))
    methods = ["svd"] if strategy.startswith("alds") else raw["methods"]
    least = least_share(network.dense, cost, methods, strategy=strategy)
    # The same network at its smallest, by the library's own search.
    if strategy != "loss":
        with pytest.raises(ValueError, match="out of reach") as caught:
            allocate(network, cost, strategy, methods, 1e-3)
        assert f"reaches {least:.4g} to 1" in str(caught.value)
    raw["budgets"] = [0.6, round(least - 1e-3, 4)]
    with pytest.raises(
        ValueError, match=f"'budgets' has .*: strategy '{re.escape(strategy)}' reaches"
    ):
        carry_out(raw, tmp_path / "none")
    assert not (tmp_path / "none").exists()
