import dataclasses
import json
import shutil

import jax
import pandas as pd
import pytest

from experiments.error_study.choices import plan_study
from experiments.error_study.protocol import Protocol
from experiments.error_study.records import read_study
from experiments.error_study.tables import measurement_rows
from experiments.network.network import configured, given
from experiments.runner import carry_out
from experiments.workdir.fields import read_fields

pytest.importorskip("sklearn")
pytest.importorskip("jinja2")

CONFIG = {
    "seed": 5,
    "data": {
        "name": "digits",
        "validation_share": 0.25,
        "train_size": 80,
        "validation_size": 40,
        "test_size": 40,
    },
    "model": {"name": "mlp", "arguments": {"widths": [8, 8]}},
    "train": {"epochs": 2, "batch_size": 40},
    "layers": ["hidden1", "hidden2"],
    "methods": ["cp", "svd"],
    "compressions": [0.5],
    "runs": 2,
    "deterministic_runs": 1,
    "decompose": {"max_iters": 5},
    "poor_baseline": True,
    "measure": {"feature_images": 20, "batch_size": 20},
    "finetune": {"epochs": 1},
}
BOTH = {**CONFIG, "networks": 2}


def rows_of(workdir):
    _, settings, measured = read_study(workdir)
    return measurement_rows(settings, measured)


def compilations(call):
    """How many programs a call compiles."""
    counted, active = [], [True]

    def count(name, *_, **__):
        if active and name == "/jax/core/compile/backend_compile_duration":
            counted.append(name)

    jax.monitoring.register_event_duration_secs_listener(count)
    call()
    active.clear()
    return len(counted)


@pytest.fixture(scope="module")
def studies(cache, without_drawing, tmp_path_factory):
    """A study of two networks, and one of each, with how many programs these compiled."""
    folder, counts = tmp_path_factory.mktemp("networks"), {}
    with without_drawing():
        for name, config in {"first": CONFIG, "second": {**CONFIG, "seed": 6}}.items():
            counts[name] = compilations(
                lambda name=name, config=config: carry_out(config, folder / name)
            )
    counts["both"] = compilations(lambda: carry_out(BOTH, folder / "both"))
    return folder, counts


def test_a_study_of_two_networks_is_two_studies_of_one(studies):
    folder, counts = studies
    first, second, both = (rows_of(folder / name) for name in ("first", "second", "both"))
    assert len(both) == 2 * len(first) == 2 * (2 * (2 + 1))
    assert set(first["network"]) == {0}
    expected = pd.concat([first, second.assign(network=1)])
    order = ["layer", "method", "compression", "network", "run"]
    pd.testing.assert_frame_equal(
        both.sort_values(order, ignore_index=True), expected.sort_values(order, ignore_index=True)
    )
    # Of the second network everything is drawn anew.
    assert not (first["weights/relative"] == second["weights/relative"]).any()
    assert counts["first"] > 10
    assert counts["second"] == counts["both"] == 0


@pytest.mark.usefixtures("undrawn")
def test_a_killed_study_of_two_networks_ends_with_the_same_tables(studies, tmp_path):
    whole, killed = studies[0] / "both", tmp_path / "killed"
    # In the midst of the first network's measurements, the second not trained.
    shutil.copytree(whole, killed)
    shutil.rmtree(killed / "report")
    shutil.rmtree(killed / "checkpoints" / "baseline-1")
    lines = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"network": 1' not in line]
    (killed / "metrics.jsonl").write_text("".join(kept[:-5]))
    carry_out(BOTH, killed)
    assert read_study(killed)[2].found == read_study(whole)[2].found
    for table in (whole / "report").glob("*.csv"):
        assert (killed / "report" / table.name).read_bytes() == table.read_bytes()


def test_a_work_directory_of_an_earlier_version_goes_on(studies, tmp_path):
    workdir = tmp_path / "earlier"
    shutil.copytree(studies[0] / "first", workdir)
    raw = json.loads((workdir / "config.json").read_text())
    for name in ("networks", "deterministic_runs"):
        del raw[name]
    del raw["measure"]["drawn"]
    raw["runs"] = 1
    (workdir / "config.json").write_text(json.dumps(raw))
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    records = [record for record in records if record.get("run", 0) == 0]
    for record in records:
        if record["kind"] != "epoch":
            record.pop("network", None)
    before = "".join(json.dumps(record) + "\n" for record in records)
    (workdir / "metrics.jsonl").write_text(before)
    config = {**CONFIG, "runs": 1, "deterministic_runs": None}
    with pytest.raises(ValueError, match=r"fields that differ: measure\.drawn; use another"):
        carry_out(config, workdir)
    carry_out({**config, "measure": {**CONFIG["measure"], "drawn": False}}, workdir)
    assert (workdir / "metrics.jsonl").read_text() == before
    header, *rows = (workdir / "report" / "measurements.csv").read_text().splitlines()
    assert header.startswith("layer,method,compression,run,ranks")
    assert len(rows) == 2 * 2


def test_what_comes_with_its_weights_is_one_network(tmp_path):
    asked = read_fields(Protocol, BOTH)
    network = configured(asked)
    own = given(asked, network.module, network.start.collections, network.splits)
    for problem, settings in ((own, asked), (network, untrained(asked))):
        with pytest.raises(ValueError, match="'networks' is 2: a network that comes with its we"):
            plan_study(problem, settings)
    assert plan_study(own, dataclasses.replace(asked, networks=1)).number == 0


def untrained(asked):
    train = dataclasses.replace(asked.train, epochs=0)
    return dataclasses.replace(asked, train=train)


def test_runs_by_method():
    protocol = read_fields(Protocol, CONFIG)
    assert [protocol.runs_of(method) for method in ("cp", "tucker", "tt", "svd")] == [2, 1, 1, 1]
    assert dataclasses.replace(protocol, deterministic_runs=None).runs_of("svd") == 2
    with pytest.raises(ValueError, match="'deterministic_runs' is 3: at most runs, 2"):
        dataclasses.replace(protocol, deterministic_runs=3)
    with pytest.raises(ValueError, match="'seed' is 4294967295: that of network 2 is above"):
        dataclasses.replace(protocol, networks=2, seed=2**32 - 1)
