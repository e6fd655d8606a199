import json
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tdjax
from experiments.compress.run import run
from experiments.compress.settings import SCHEMA, Compress, enumerate_trials
from experiments.compressibility.run import run as run_compressibility
from experiments.compressibility.settings import Compressibility
from experiments.data.splits import DataSplits, Examples
from experiments.network.network import given
from experiments.runner import EXPERIMENTS, carry_out, experiment_named, report
from experiments.workdir.claim import InUseError
from experiments.workdir.fields import read_fields
from experiments.workdir.journal import read_journal
from experiments.workdir.work import begin

pytest.importorskip("matplotlib")

pytestmark = pytest.mark.usefixtures("cache")

RAW = {
    "data": {"name": "noise"},
    "model": {"name": "mine"},
    "train": {"epochs": 1, "batch_size": 8},
    "calibration": {"images": [240], "subsets": 1, "batch_size": 120},
    "test": {"batch_size": 10},
}


class Mine(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(24, (3, 3), name="first")(x))
        x = nn.relu(nn.Conv(20, (3, 3), name="second")(x))
        return nn.Dense(3, name="head")(x.mean(axis=(1, 2)))


def examples(count, seed):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, 6, 6, 8)).astype(np.float32)
    return Examples(images, rng.integers(3, size=count).astype(np.int32))


@pytest.fixture(scope="module")
def splits():
    parts = (examples(n, seed) for seed, n in enumerate((240, 20, 30)))
    return DataSplits(*parts, mean=np.zeros(8), std=np.ones(8), num_classes=3)


@pytest.fixture(scope="module")
def variables():
    return Mine().init(jax.random.key(3), np.zeros((1, 6, 6, 8)))


def test_a_network_of_your_own_is_measured_as_it_was_given(splits, variables, tmp_path):
    raw = {**RAW, "strategies": ["uniform"], "solver": {"max_iters": 2}}
    settings = read_fields(Compress, raw)
    network = given(settings, Mine(), variables, splits)
    assert run(network, settings, tmp_path) == tmp_path / "report" / "index.html"
    assert not (tmp_path / "checkpoints").exists()
    journal = read_journal(tmp_path / "metrics.jsonl", SCHEMA)

    def right(model, variables):
        logits = np.asarray(model.apply(variables, jnp.asarray(splits.test.images)))
        return np.mean(logits.argmax(axis=1) == splits.test.labels)

    whole = journal.get("baseline")
    assert whole["test"]["accuracy"] == pytest.approx(right(Mine(), variables))
    assert whole["params"] == 24 * (9 * 8 + 1) + 20 * (9 * 24 + 1) + 3 * (20 + 1)
    assert (whole["epoch"], whole["test"]["count"]) == (0, 30)
    for trial in enumerate_trials(settings):
        small, plan = tdjax.load_factorised(tmp_path / "compressed" / trial.name)
        record = journal.get("network", **trial.fields)
        found = right(tdjax.factorize(Mine(), plan), small)
        assert record["test"]["accuracy"] == pytest.approx(found)
    other = given(settings, Mine(), jax.tree.map(lambda leaf: leaf + 1, variables), splits)
    with pytest.raises(ValueError, match="is not the one that was measured here"):
        run(other, settings, tmp_path)


def test_what_a_given_network_lacks_is_told(splits, variables, tmp_path):
    settings = read_fields(Compress, {**RAW, "reestimate": True})
    with pytest.raises(ValueError, match="'reestimate' is True: mine has no batch statistics"):
        given(settings, Mine(), variables, splits)
    settings = read_fields(Compress, {**RAW, "calibration": {"images": [250]}})
    with pytest.raises(ValueError, match="asks for 250, but source 'same' has 240 images"):
        given(settings, Mine(), variables, splits)
    settings = read_fields(Compressibility, {**RAW, "runs": 2, "methods": ["magnitude layer"]})
    with pytest.raises(ValueError, match="'runs' is 2: a network that was given has one"):
        run_compressibility(given(settings, Mine(), variables, splits), settings, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_its_name(name):
    assert experiment_named(name).name == name


def test_an_unknown_experiment_is_named_with_those_that_are_known(tmp_path):
    known = "known are study, data_aware, compress, compressibility, report"
    with pytest.raises(ValueError, match=f"'experiment' is 'studies': {known}"):
        carry_out({"experiment": "studies"}, tmp_path)


def test_a_report_is_that_of_the_experiment_in_the_folder(tmp_path):
    for name in ("data_aware", "compress", "compressibility"):
        workdir = tmp_path / name
        workdir.mkdir()
        (workdir / "config.json").write_text(json.dumps({"experiment": name, **RAW}))
        page = carry_out({"experiment": "report"}, workdir)
        assert page == workdir / "report" / "index.html"
        assert ("One budget" in page.read_text()) == (name == "compress")
    with pytest.raises(FileNotFoundError):
        report(tmp_path / "nothing")


def test_while_one_process_is_at_work_others_may_only_report(tmp_path):
    settings = read_fields(Compress, RAW)
    whole = {"kind": "baseline", "params": 7, "macs": 9}
    whole["test"] = {"accuracy": 0.5, "cross_entropy": 1.0, "count": 10}
    leftover = tmp_path / "run" / "report" / f".tables.md.{os.getpid()}.partial"
    with begin("compress", settings, SCHEMA, tmp_path / "run") as work:
        journal = work.journal
        with pytest.raises(InUseError, match=f"by process {os.getpid()} on "):
            begin("compress", settings, SCHEMA, tmp_path / "run").__enter__()
        journal.append([whole])
        page = carry_out({"experiment": "report"}, tmp_path / "run")
        assert "50.00 %" in page.read_text()
        leftover.write_text("killed half way")
    with begin("compress", settings, SCHEMA, tmp_path / "run") as work:
        journal = work.journal
        assert not leftover.exists()
        assert journal.get("baseline") == whole
        (about,) = journal.environments
        assert about["jax"] == jax.__version__
        assert about["device"] == jax.devices()[0].device_kind
    assert {file.name for file in (tmp_path / "run").iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "report",
    }
