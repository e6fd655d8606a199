import json
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import pytest
from absl import flags

from benchmarks.kills.left import lines_of
from experiments import command
from experiments.dry_run import dry_run
from experiments.error_study.choices import plan_study
from experiments.error_study.error_names import DATA_ERRORS, ERRORS
from experiments.error_study.protocol import Key, Protocol
from experiments.error_study.records import choice_fields, read_study
from experiments.error_study.report import write_report
from experiments.network import checkpoints
from experiments.network.checkpoints import CheckpointError
from experiments.network.network import configured
from experiments.runner import carry_out
from experiments.workdir import threads
from experiments.workdir.fields import read_fields
from experiments.workdir.threads import Further, in_threads

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

pytestmark = pytest.mark.usefixtures("cache")

ROOT = Path(__file__).resolve().parents[3]
CONFIG = {
    "data": {
        "name": "digits",
        "validation_share": 0.25,
        "train_size": 200,
        "validation_size": 50,
        "test_size": 50,
    },
    "model": {"name": "garipovnet", "arguments": {"widths": [4] * 4, "pools": [2, 0]}},
    "train": {"epochs": 2, "batch_size": 40, "learning_rate": 0.05, "boundaries": [1]},
    "layers": ["conv2", "conv3"],
    "methods": ["cp", "svd"],
    "compressions": [0.3, 0.6],
    "runs": 2,
    "decompose": {"max_iters": 5, "tucker_iters": 2},
    "measure": {"feature_images": 30, "batch_size": 25, "chunk": 3},
    "finetune": {"epochs": 1},
}
SMALLER = {**CONFIG, "layers": ["conv3"], "methods": ["svd"], "runs": 1}
COUNT = 2 * 2 * 2 * 2


@pytest.fixture(scope="module")
def unbroken(cache, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("study") / "unbroken"
    page = carry_out(CONFIG, workdir)
    assert page == workdir / "report" / "index.html"
    return workdir


def tables(workdir):
    return {file.name: file.read_bytes() for file in (workdir / "report").glob("*.csv")}


def journal(workdir):
    return (workdir / "metrics.jsonl").read_bytes()


def everything(workdir):
    return {f: f.read_bytes() for f in sorted(workdir.rglob("*")) if f.is_file()}


def test_files_and_lines(unbroken):
    assert {found.name for found in unbroken.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "report",
    }
    records = [json.loads(line) for line in journal(unbroken).splitlines()]
    kinds = [record["kind"] for record in records]
    assert kinds[:4] == ["epoch", "environment", "epoch", "baseline"]
    assert (kinds.count("compressed"), kinds.count("finetuned")) == (COUNT, COUNT)
    assert len(kinds) == 4 + 2 * COUNT
    assert (unbroken / "report" / "index.html").exists()
    rows = tables(unbroken)
    assert len(rows["measurements.csv"].splitlines()) == 1 + COUNT
    assert len(rows["choices.csv"].splitlines()) == 1 + COUNT // 2
    assert set(rows) >= {"tau_by_compression.csv", "tau_errors.csv", "tau_layers_methods.csv"}


def same_as(scores, epoch):
    """Whether the scores of what was kept are those that it had after its epoch."""
    found = (epoch["validation_accuracy"], epoch["validation_loss"])
    return found == pytest.approx((scores["accuracy"], scores["cross_entropy"]), rel=1e-5)


def test_the_records_agree_with_each_other(unbroken):
    _, settings, measured = read_study(unbroken)
    baseline = measured.get("baseline", network=0)
    assert baseline["train"]["count"] == 200
    assert baseline["validation"]["count"] == baseline["test"]["count"] == 50
    for key in settings.keys:
        choice = key.choice
        record = measured.get("compressed", **choice_fields(key))
        assert 0 < record["kept"] < 1
        assert record["saves"]
        assert 0 < record["errors"]["weights/relative"] < 1
        right = record["test"]["accuracy"] * 50
        assert round(right) == pytest.approx(right)
        other = measured.get("compressed", **choice_fields(key._replace(run=1 - key.run)))
        same = record["errors"] == other["errors"]
        assert same == (choice.method == "svd")
        tuned = measured.get("finetuned", **choice_fields(key))
        assert tuned["epoch"] == 1
        assert same_as(tuned["validation"], {name: own[0] for name, own in tuned["curve"].items()})
    epochs = measured.of_kind("epoch")
    assert [(own["network"], own["epoch"]) for own in epochs] == [(0, 1), (0, 2)]
    assert [own["learning_rate"] for own in epochs] == pytest.approx([0.05, 0.005])
    assert epochs[1]["train_loss"] < epochs[0]["train_loss"] < 3
    assert same_as(baseline["validation"], epochs[baseline["epoch"] - 1])
    for layer in ("conv2", "conv3"):
        # The more is removed the larger the error of the best approximation.
        low, high = (
            measured.get("compressed", **choice_fields(Key(0, choice, 0)))["errors"][
                "weights/absolute"
            ]
            for choice in settings.choices
            if (choice.layer, choice.method) == (layer, "svd")
        )
        assert low < high


@pytest.mark.usefixtures("undrawn")
def test_again_nothing_is_redone(unbroken):
    before, report = journal(unbroken), tables(unbroken)
    checkpoint = everything(unbroken / "checkpoints")
    written = (unbroken / "metrics.jsonl").stat().st_mtime_ns
    carry_out(CONFIG, unbroken)
    assert journal(unbroken) == before
    assert (unbroken / "metrics.jsonl").stat().st_mtime_ns == written
    assert tables(unbroken) == report
    assert everything(unbroken / "checkpoints") == checkpoint


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("lost", [5, 25])
def test_continued_after_lines_were_lost(unbroken, tmp_path, lost):
    workdir = tmp_path / "cut"
    shutil.copytree(unbroken, workdir)
    shutil.rmtree(workdir / "report")
    lines = journal(unbroken).splitlines(keepends=True)
    half = lines[-lost][: len(lines[-lost]) // 2]
    (workdir / "metrics.jsonl").write_bytes(b"".join(lines[:-lost]) + half)
    carry_out(CONFIG, workdir)
    assert journal(workdir).startswith(b"".join(lines[:-lost]))
    assert sorted(lines_of(workdir)) == sorted(lines_of(unbroken))
    assert tables(workdir) == tables(unbroken)


def test_a_dry_run_says_what_is_left_and_touches_nothing(unbroken, tmp_path, monkeypatch):
    told = dry_run(CONFIG, unbroken)
    assert (
        "  compressed           16         16          0\n  finetuned            16         16"
        in told
    )
    assert "\nlayer: conv2, conv3\nmethod: cp, svd\ncompression: 0.3, 0.6\n" in told
    assert "\nrun: 0 to 1\ntime: nothing is left to do\n" in told
    assert told.endswith("the folder holds this configuration: the same command without it goes on")
    # Half done, at the pace until then.
    workdir = tmp_path / "half"
    shutil.copytree(unbroken, workdir)
    lines = journal(unbroken).splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_bytes(b"".join(lines[:-10]))
    before = everything(workdir)
    monkeypatch.setattr("experiments.dry_run.KNOWN", -1)
    assert re.search(
        r"time: about .* more, at the pace of the .* until now", dry_run(CONFIG, workdir)
    )
    assert everything(workdir) == before
    # Of a new folder, from a few steps.
    told = dry_run(SMALLER, tmp_path / "none", tensorboard=True)
    assert re.search(r"time: about .* an estimate \(5 epochs of 5 steps, [0-9.e+]+ ms each", told)
    assert told.endswith(
        f"{tmp_path}/none: config.json, metrics.jsonl, checkpoints/, report/, tensorboard/"
    )
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="holds another configuration"):
        dry_run({**CONFIG, "seed": 1}, unbroken)
    with pytest.raises(ValueError, match="--dry-run: the report alone measures nothing"):
        dry_run({"experiment": "report"}, unbroken)


def without_data_errors(line):
    """A line as earlier versions wrote it."""
    record = json.loads(line)
    for name in DATA_ERRORS:
        record.get("errors", {}).pop(name, None)
    return json.dumps(record).encode() + b"\n"


@pytest.fixture(scope="module")
def older(unbroken, tmp_path_factory):
    """The same study, measured by a version that knew the six errors alone."""
    workdir = tmp_path_factory.mktemp("study") / "older"
    shutil.copytree(unbroken, workdir)
    shutil.rmtree(workdir / "report")
    lines = journal(unbroken).splitlines()
    (workdir / "metrics.jsonl").write_bytes(b"".join(map(without_data_errors, lines)))
    write_report(workdir)
    return workdir


def test_the_errors_of_the_data_are_in_every_table(unbroken):
    for name in ("measurements.csv", "choices.csv"):
        header = tables(unbroken)[name].decode().splitlines()[0].split(",")
        assert [c for c in header if c in ERRORS + DATA_ERRORS] == [*ERRORS, *DATA_ERRORS]
    rows = tables(unbroken)["tau_errors.csv"].decode().splitlines()[1:]
    assert list(dict.fromkeys(row.split(",")[0] for row in rows)) == [*ERRORS, *DATA_ERRORS]
    assert len(rows) == 10 * 2 * 2


@pytest.mark.usefixtures("undrawn")
def test_a_study_of_an_earlier_version_is_finished_as_it_was_begun(unbroken, older, tmp_path):
    workdir = tmp_path / "continued"
    shutil.copytree(older, workdir)
    shutil.rmtree(workdir / "report")
    lines = journal(older).splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_bytes(b"".join(lines[:-25]))
    with pytest.warns(UserWarning, match=f"{re.escape(str(workdir))} lack .*use another workdir"):
        carry_out(CONFIG, workdir)
    assert sorted(lines_of(workdir)) == sorted(lines_of(older))
    assert tables(workdir) == tables(older)
    page = (workdir / "report" / "index.html").read_text()
    assert f"Not measured: {COUNT} of {COUNT} measurements in this work directory lack" in page
    header = tables(workdir)["measurements.csv"].decode().splitlines()[0]
    assert not any(name in header for name in DATA_ERRORS)
    # The six, and all that rests on them, are those of this version.
    for name in ("tau_by_compression.csv", "tau_layers_methods.csv"):
        assert tables(workdir)[name] == tables(unbroken)[name]
    assert tables(unbroken)["tau_errors.csv"].startswith(tables(workdir)["tau_errors.csv"])
    verdicts = [w / "report" / "verdicts.json" for w in (workdir, unbroken)]
    assert verdicts[0].read_bytes() == verdicts[1].read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_a_finished_study_of_an_earlier_version_is_left_as_it_is(older, tmp_path):
    workdir = tmp_path / "finished"
    shutil.copytree(older, workdir)
    carry_out(CONFIG, workdir)
    assert journal(workdir) == journal(older)
    assert tables(workdir) == tables(older)


@pytest.mark.usefixtures("undrawn")
def test_a_study_that_an_earlier_version_had_only_trained_for_has_all_errors(
    unbroken, older, tmp_path
):
    workdir = tmp_path / "trained"
    shutil.copytree(older, workdir)
    shutil.rmtree(workdir / "report")
    lines = journal(older).splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_bytes(lines[0] + b"".join(lines[2:4]))
    carry_out(CONFIG, workdir)
    assert sorted(lines_of(workdir)) == sorted(lines_of(unbroken))


def launch(cache, config, workdir, *flags):
    command = [sys.executable, "-m", "experiments.main", f"--config={config}"]
    command += [f"--workdir={workdir}", f"--compilation_cache={cache}", *flags]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("config") / "tiny.py"
    file.write_text(
        "from ml_collections import ConfigDict\n\n\n"
        f"def get_config():\n    return ConfigDict({CONFIG!r})\n"
    )
    return file


@pytest.mark.usefixtures("undrawn")
def test_killed_and_continued(unbroken, cache, config_file, tmp_path):
    workdir = tmp_path / "killed"
    process = launch(cache, config_file, workdir)
    # Some time after the first measurements are there.
    least, wait = random.randint(1, COUNT), random.uniform(0, 0.5)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        path = workdir / "metrics.jsonl"
        if path.exists() and path.read_bytes().count(b"\n") >= least:
            time.sleep(wait)
            break
        time.sleep(0.02)
    process.kill()
    process.communicate()
    lines = journal(workdir).count(b"\n")
    assert lines >= 1, "killed before any measurement"
    carry_out(CONFIG, workdir)
    told = f"killed with {lines} lines, at least {least}, after {wait}"
    assert tables(workdir) == tables(unbroken), told


def test_a_wrong_override_ends_with_one_message(cache, config_file, tmp_path):
    process = launch(cache, config_file, tmp_path / "none", "--config.train.epoch=3")
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "epoch" in output
    assert "Traceback" not in output
    assert not (tmp_path / "none").exists()


# By which ml_collections loads the file of a configuration.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_a_value_of_another_type_ends_with_one_message(config_file, capsys, monkeypatch):
    arguments = ["main", f"--config={config_file}", "--workdir=none", "--config.runs=many"]
    # Fields that are set are looked for there.
    monkeypatch.setattr(sys, "argv", arguments)
    try:
        with pytest.raises(SystemExit) as ended:
            command.parse(arguments)
    finally:
        flags.FLAGS.unparse_flags()
    assert ended.value.code
    told = f"{ended.value.code}{''.join(capsys.readouterr())}"
    assert "runs" in told
    assert "Traceback" not in told


def test_another_configuration_is_refused_and_nothing_changed(unbroken):
    before = everything(unbroken)
    other = {**CONFIG, "seed": 1, "finetune": {"epochs": 2}}
    with pytest.raises(ValueError, match=r"fields that differ: finetune\.epochs, seed;"):
        carry_out(other, unbroken)
    assert everything(unbroken) == before


@pytest.mark.usefixtures("undrawn")
def test_without_finetuning(tmp_path):
    config = {**SMALLER, "finetune": {"epochs": 0}}
    carry_out(config, tmp_path / "study")
    kinds = [json.loads(line)["kind"] for line in journal(tmp_path / "study").splitlines()]
    assert kinds == ["epoch", "environment", "epoch", "baseline", "compressed", "compressed"]
    header, *rows = tables(tmp_path / "study")["measurements.csv"].decode().splitlines()
    assert "after" not in header
    assert len(rows) == 2


@pytest.mark.usefixtures("undrawn")
def test_finetuning_that_diverges_leaves_the_compressed_network(tmp_path):
    # No network bears such a learning rate.
    config = {**SMALLER, "finetune": {"epochs": 1, "learning_rate": 1e3}}
    carry_out(config, tmp_path / "study")
    lines = [json.loads(line) for line in journal(tmp_path / "study").splitlines()]
    by_kind = {
        kind: [x for x in lines if x["kind"] == kind] for kind in ("compressed", "finetuned")
    }
    assert len(by_kind["finetuned"]) == len(by_kind["compressed"]) == 2
    for before, after in zip(*by_kind.values(), strict=True):
        assert after["epoch"] == 0
        assert after["test"]["accuracy"] == before["test"]["accuracy"]
        assert after["test"]["cross_entropy"] == pytest.approx(
            before["test"]["cross_entropy"], rel=1e-4
        )


def test_the_first_error_stops_all_works():
    taken = []

    def endless(name):
        while True:
            time.sleep(0.01)
            yield [{"name": name}]

    def failing():
        yield [{"name": "failing"}]
        raise RuntimeError("the layer is broken")

    with pytest.raises(RuntimeError, match="the layer is broken"):
        in_threads([lambda: endless("a"), failing, lambda: endless("b")], taken.append)
    assert [{"name": "failing"}] in taken


@pytest.mark.parametrize("names", ["a", "ab"])
def test_tasks_that_others_find_are_done_too(names):
    taken = []

    def leaf(name):
        yield [{"name": name}]

    def broken():
        raise RuntimeError("found and broken")
        yield

    def branch(name, last):
        yield [{"name": name}]
        yield Further([lambda: leaf(f"{name}0"), lambda: branch(f"{name}1", last=True)][: 2 - last])

    in_threads([lambda name=name: branch(name, last=False) for name in names], taken.append)
    found = sorted(record["name"] for records in taken for record in records)
    assert found == sorted(f"{name}{end}" for name in names for end in ("", "0", "1", "10"))
    with pytest.raises(RuntimeError, match="found and broken"):
        in_threads([lambda: iter([Further([broken])])] * len(names), taken.append)


def test_what_a_task_finds_is_done_before_other_tasks_begin(monkeypatch):
    taken = []

    def leaf(name):
        yield [{"name": name}]

    def branch(name):
        yield [{"name": name}]
        yield Further([lambda: leaf(f"{name}0"), lambda: leaf(f"{name}1")])

    monkeypatch.setattr(threads, "workers", lambda: 1)
    in_threads([lambda: branch("a"), lambda: branch("b")], taken.append)
    found = [record["name"] for records in taken for record in records]
    assert found == ["a", "a0", "a1", "b", "b0", "b1"]


def test_a_checkpoint_of_another_network_is_named(tmp_path, capsys):
    workdir = tmp_path / "study"
    folder = workdir / "checkpoints" / "baseline"
    checkpoints.save(folder, 1, {"kernel": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        carry_out(SMALLER, workdir)
    shutil.move(workdir / "checkpoints", tmp_path / "aside")
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        carry_out({**SMALLER, "train": {**CONFIG["train"], "learning_rate": 1e3}}, workdir)
    assert (
        f"no checkpoint in {folder}: training starts at its first epoch" in capsys.readouterr().err
    )
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
    shutil.move(tmp_path / "aside", workdir / "checkpoints")
    with pytest.raises(CheckpointError, match="belongs to another network"):
        carry_out({**SMALLER, "train": {**CONFIG["train"], "learning_rate": 1e3}}, workdir)
    assert "no checkpoint" not in capsys.readouterr().err
    assert not (workdir / "metrics.jsonl").exists()


def test_a_damaged_journal_is_named_and_left(unbroken, tmp_path):
    workdir = tmp_path / "damaged"
    shutil.copytree(unbroken, workdir)
    lines = journal(unbroken).splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_bytes(b"".join([*lines[:3], b"{damaged}\n", *lines[4:]]))
    before = everything(workdir)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 4"):
        carry_out(CONFIG, workdir)
    assert everything(workdir) == before


def planned(raw):
    protocol = read_fields(Protocol, raw)
    return plan_study(configured(protocol), protocol)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ["conv7"]}, "the model has no layer 'conv7'"),
        ({"model": {"name": "vgg"}}, "'vgg': known are mlp, garipovnet, resnet18, resnet20, "),
        (
            {"model": {"name": "garipovnet", "arguments": {"depth": 3}}},
            r"'model\.arguments'.*depth",
        ),
        (
            {"model": {"name": "resnet20", "arguments": {"depth": 56}}},
            r"'model\.arguments'.*depth",
        ),
        ({"measure": {"feature_images": 201}}, "is 201, but there are 200 training examples"),
        ({"train": {"epochs": 1, "batch_size": 201}}, "less than one batch of 201"),
        ({"data": {"name": "digits", "train_size": 5000}}, "train_size is 5000"),
    ],
)
def test_what_is_wrong_is_found_before_any_work(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        planned({**CONFIG, **changes})
    with pytest.raises(ValueError, match=message):
        carry_out({**CONFIG, **changes}, tmp_path / "study")
    assert not (tmp_path / "study").exists()
