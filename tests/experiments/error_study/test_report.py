import csv
import json
import math
import re
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from experiments.error_study.error_names import DATA_ERRORS, ERRORS, error_name
from experiments.error_study.judging import FAILS, HOLDS, UNDECIDED, Margins
from experiments.error_study.paper import published_study
from experiments.error_study.protocol import PHASES
from experiments.error_study.records import read_study
from experiments.error_study.report import write_report
from experiments.error_study.verdicts import judge_findings
from tests.drawn_taus import drawn_tau

LAYERS = ("conv2", "conv3", "conv4", "conv5")
METHODS = ("cp", "tucker", "tt")
COMPRESSIONS = (0.9, 0.75, 0.5, 0.25, 0.1)
COUNT = 10_000
FILES = {
    "measurements.csv",
    "choices.csv",
    "tau_by_compression.csv",
    "tau_errors.csv",
    "tau_layers_methods.csv",
    "tables.md",
    "verdicts.json",
    "tau_by_compression.svg",
    "tau_errors.svg",
    "tau_layers_methods_test.svg",
    "tau_layers_methods_validation.svg",
    "scatter_before.svg",
    "scatter_after.svg",
    "index.html",
}


def study_config(runs=3, finetune_epochs=2, published=None, **changes):
    return {
        "model": {"name": "garipovnet"},
        "data": {"name": "cifar10 <small>"},
        "train": {"epochs": 100},
        "layers": list(LAYERS),
        "methods": list(METHODS),
        "compressions": list(COMPRESSIONS),
        "runs": runs,
        "seed": 0,
        "published": published,
        "finetune": {"epochs": finetune_epochs},
        **changes,
    }


def study_records(config, seed=0):
    """A monotone relation with noise: every error follows the damage, some less closely."""
    rng = np.random.default_rng(seed)
    yield {
        "kind": "baseline",
        "params": 557642,
        "macs": 94_000_000,
        "epoch": 37,
        "train": performance(0.004, 45_000),
        "validation": performance(0.061, 5_000),
        "test": performance(0.069, COUNT),
        "seconds": 12.5,
    }
    noise = dict(zip(ERRORS, (0.3, 0.1, 0.5, 0.4, 0.25, 0.45), strict=True))
    for layer_number, layer in enumerate(config["layers"]):
        for method_number, method in enumerate(config["methods"]):
            for compression in config["compressions"]:
                scale = compression**2
                mean = scale * (1.2 + 0.25 * method_number + 0.12 * layer_number)
                hidden = 0.06 * layer_number
                for run in range(config["runs"]):
                    damage = mean * (1 + 0.02 * rng.normal())
                    key = {"layer": layer, "method": method, "compression": compression, "run": run}
                    yield {
                        "kind": "compressed",
                        **key,
                        "ranks": [28] if method == "cp" else [14, 14],
                        "kept": 1.4 if (method, compression) == ("tt", 0.1) else 1 - compression,
                        "saves": (method, compression) != ("tt", 0.1),
                        "errors": {
                            name: 0.3 * damage * math.exp(noise[name] * rng.normal())
                            for name in ERRORS
                        },
                        **performances(0.07 + 0.2 * damage * (1 - hidden)),
                    }
                    if config["finetune"]["epochs"]:
                        wrong = 0.07 + 0.03 * damage + 0.002 * rng.normal()
                        yield {"kind": "finetuned", **key, "epoch": 1, **performances(wrong)}


def with_data_errors(records, spread=0.0):
    """The same records with errors that follow the performance, and one that defies it."""
    rng = np.random.default_rng(5)
    for record in records:
        if record["kind"] == "compressed":
            errors = record["errors"]
            wrong = 1 - record["test"]["accuracy"]
            # By default in the very order of the images that go wrong.
            own = {name: wrong * math.exp(spread * rng.normal()) for name in DATA_ERRORS}
            record = {**record, "errors": {**errors, **own, "kronecker/absolute": 1 - wrong}}
        yield record


def performance(wrong, count):
    wrong = round(min(max(wrong, 0.0), 1.0) * count)
    return {"accuracy": 1 - wrong / count, "cross_entropy": 4.0 * wrong / count, "count": count}


def performances(wrong):
    return {"validation": performance(wrong, 5_000), "test": performance(wrong * 1.03, COUNT)}


def write_study(workdir, config, records):
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return workdir


def read_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class WellFormed(HTMLParser):
    """Every tag closed in order; collects ids, images, links and text."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.files, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids += [attributes["id"]] if "id" in attributes else []
        links = [attributes[name] for name in ("src", "href") if name in attributes]
        # Others are of a figure's own parts.
        self.files += [link for link in links if not link.startswith("#")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = study_config(published="garipovnet/cifar10")
    workdir = write_study(
        tmp_path_factory.mktemp("studies") / "finished", config, study_records(config)
    )
    page = write_report(workdir, resamples=200)
    assert page == workdir / "report" / "index.html"
    return workdir


def test_the_report_has_all_its_files_and_nothing_else(finished):
    assert {path.name for path in (finished / "report").iterdir()} == FILES
    for path in (finished / "report").glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_the_page_is_well_formed_and_shows_what_it_should(finished):
    html = (finished / "report" / "index.html").read_text()
    page = WellFormed(html)
    text = " ".join(" ".join(page.text).split())
    sections = ["findings", "figures", "tables", "unsaving", "provenance"]
    assert [name for name in page.ids if name in sections] == sections
    assert [name for name in page.ids if name.startswith("finding-")] == [
        f"finding-{n}" for n in range(1, 5)
    ]
    assert set(page.files) <= FILES
    assert {name for name in FILES if name.endswith(".svg")} <= set(page.files)
    assert "93.10 %" in text
    assert "0.276" in text
    assert "180 of 180 measured before and after fine-tuning" in text
    assert "cifar10 <small>" in text
    assert "140.0 %" in text
    assert "http" not in html


def test_measurements_read_back_as_recorded(finished):
    _, _, measured = read_study(finished)
    rows = read_rows(finished / "report" / "measurements.csv")
    assert len(rows) == len(measured.of_kind("compressed")) == 4 * 3 * 5 * 3
    assert len({tuple(row.values()) for row in rows}) == len(rows)
    for row in rows:
        key = {"layer": row["layer"], "method": row["method"], "run": int(row["run"])}
        key |= {"compression": float(row["compression"]), "network": 0}
        before, after = (measured.get(kind, **key) for kind in ("compressed", "finetuned"))
        assert {name: float(row[name]) for name in ERRORS} == before["errors"]
        assert tuple(map(int, row["ranks"].split())) == before["ranks"]
        assert row["saves"] == str(before["saves"]).lower()
        assert float(row["test/before/accuracy"]) == before["test"]["accuracy"]
        cross_entropy = after["validation"]["cross_entropy"]
        assert float(row["validation/after/cross_entropy"]) == cross_entropy
        log_error = math.log1p(-after["test"]["accuracy"])
        assert float(row["test/after/log_error"]) == pytest.approx(log_error)
    assert not any("second" in name for name in rows[0])


def test_choices_are_means_over_their_runs(finished):
    measured = read_rows(finished / "report" / "measurements.csv")
    choices = read_rows(finished / "report" / "choices.csv")
    assert len(choices) == 4 * 3 * 5
    for choice in choices[::7]:
        key = ("layer", "method", "compression")
        runs = [row for row in measured if all(row[name] == choice[name] for name in key)]
        assert len(runs) == int(choice["runs"]) == 3
        for name in ("weights/relative", "features/scaled", "test/before/log_error"):
            mean = np.mean([float(row[name]) for row in runs])
            assert float(choice[name]) == pytest.approx(mean)


def test_tau_tables_agree_in_every_form(finished):
    report = finished / "report"
    rows = read_rows(report / "tau_errors.csv")
    assert len(rows) == 6 * 4
    assert len(read_rows(report / "tau_by_compression.csv")) == 5 * 4
    assert len(read_rows(report / "tau_layers_methods.csv")) == 3 * 4
    row = next(
        r
        for r in rows
        if (r["error"], r["subset"], r["phase"]) == ("weights/relative", "test", "after")
    )
    shown = "{} ± {} [{}, {}]".format(
        *(f"{float(row[name]):.2f}" for name in ("mean", "std", "lower", "upper"))
    )
    assert f"{shown} (published 0.69 ± 0.01)" in (report / "tables.md").read_text()
    verdicts = json.loads((report / "verdicts.json").read_text())
    evidence = next(
        e
        for e in verdicts[1]["evidence"]
        if (e["label"], e["phase"]) == ("Relative Weights", "after")
    )
    assert f"{evidence['mean']:.6f}" == row["mean"]
    assert evidence["published_mean"] == 0.692


def test_the_order_of_records_does_not_show(finished, tmp_path):
    config = study_config(published="garipovnet/cifar10")
    records = list(study_records(config))
    np.random.default_rng(1).shuffle(records)
    for record in records:
        record["seconds"] = 99.0
    workdir = write_study(tmp_path, config, records)
    write_report(workdir, resamples=200)
    for name in FILES:
        ours, theirs = workdir / "report" / name, finished / "report" / name
        assert ours.read_bytes() == theirs.read_bytes(), name


@pytest.fixture(scope="module")
def with_data(tmp_path_factory):
    config = study_config(published="garipovnet/cifar10")
    folder = tmp_path_factory.mktemp("studies") / "with_data"
    workdir = write_study(folder, config, with_data_errors(study_records(config)))
    write_report(workdir, resamples=200)
    return workdir / "report"


def section_of(html, name):
    found = re.search(rf'<section id="{name}">(.*?)</section>', html, re.DOTALL)
    return " ".join(" ".join(WellFormed(found[1]).text).split())


def test_errors_of_the_data_stand_beside_the_six_and_change_nothing(finished, with_data):
    assert {path.name for path in with_data.iterdir()} == FILES | {"tau_data_errors.svg"}
    for name in FILES - {"measurements.csv", "choices.csv", "tau_errors.csv"}:
        if name not in ("tables.md", "index.html"):
            assert (with_data / name).read_bytes() == (finished / "report" / name).read_bytes()
    rows = read_rows(with_data / "tau_errors.csv")
    assert rows[: 6 * 4] == read_rows(finished / "report" / "tau_errors.csv")
    assert list(dict.fromkeys(row["error"] for row in rows)) == [*ERRORS, *DATA_ERRORS]
    assert {row["published_mean"] for row in rows if row["error"] in DATA_ERRORS} == {""}
    for page in ("findings", "tables", "figures"):
        mine, theirs = (
            section_of((folder / "index.html").read_text(), page)
            for folder in (with_data, finished / "report")
        )
        assert mine == theirs
    for row in read_rows(with_data / "measurements.csv"):
        wrong = 1 - float(row["test/before/accuracy"])
        assert float(row["covariance/relative"]) == pytest.approx(wrong)


def test_the_section_says_whether_errors_of_the_data_predict_better(with_data):
    text = section_of((with_data / "index.html").read_text(), "data-errors")
    rows = {
        (row["error"], row["subset"], row["phase"]): float(row["mean"])
        for row in read_rows(with_data / "tau_errors.csv")
    }
    perfect = rows["covariance/absolute", "test", "before"]
    # Short of 1 by what ties cost.
    assert 0.98 < perfect <= 1
    assert rows["kronecker/absolute", "test", "before"] == -perfect
    best = max(ERRORS, key=lambda error: rows[error, "test", "before"])
    six = rows[best, "test", "before"]
    assert (
        f"Before fine-tuning, on the test set: Absolute Covariance has the highest tau of these, "
        f"{perfect:.2f}; of the six, {error_name(best)} has, {six:.2f}. It predicts better: "
        f"difference {perfect - six:.2f} ± "
    ) in text
    markdown = (with_data / "tables.md").read_text()
    lines = [line.split(" | ") for line in markdown.splitlines() if "Absolute Kronecker" in line]
    assert len(lines) == 2
    assert lines[1][1].startswith(f"\N{MINUS SIGN}{perfect + six:.2f} ± ")


@pytest.mark.usefixtures("undrawn")
def test_a_worse_and_an_equal_error_are_told_too(tmp_path):
    config = study_config(finetune_epochs=0)
    for spread, verdict in ((3.0, "It predicts worse"), (0.1, "The two are not distinguishable")):
        records = with_data_errors(study_records(config), spread)
        workdir = write_study(tmp_path / verdict, config, records)
        html = write_report(workdir, resamples=200).read_text()
        assert verdict in section_of(html, "data-errors")


def test_a_report_without_errors_of_the_data_says_so(finished, tmp_path):
    text = section_of((finished / "report" / "index.html").read_text(), "data-errors")
    assert "Not measured: 180 of 180 measurements in this work directory lack" in text
    assert all(error_name(error) in text for error in DATA_ERRORS)
    # Lines of two versions: the errors that only some have order nothing.
    config = study_config(published="garipovnet/cifar10")
    old = list(study_records(config))
    mixed = [*old[:101], *list(with_data_errors(old))[101:]]
    workdir = write_study(tmp_path / "mixed", config, mixed)
    html = write_report(workdir, resamples=200).read_text()
    assert "Not measured: 50 of 180 measurements" in section_of(html, "data-errors")
    for name in FILES - {"index.html"}:
        theirs = finished / "report" / name
        assert (workdir / "report" / name).read_bytes() == theirs.read_bytes(), name
    workdir = write_study(tmp_path / "begun", config, old[:1])
    html = write_report(workdir, resamples=20).read_text()
    assert "No choice is measured yet." in section_of(html, "data-errors")


def test_a_line_with_only_some_errors_of_the_data_is_refused(tmp_path):
    config = study_config()
    records = list(with_data_errors(study_records(config)))[:2]
    for value, message in (
        (None, "line 2: field 'kronecker/relative' is missing"),
        (-1.0, r"line 2: error 'kronecker/relative' is -1\.0"),
    ):
        errors = dict(records[1]["errors"])
        del errors["kronecker/relative"]
        if value is not None:
            errors["kronecker/relative"] = value
        path = write_study(tmp_path, config, [records[0], {**records[1], "errors": errors}])
        with pytest.raises(ValueError, match=message):
            read_study(path)


def test_an_unfinished_study_says_how_far_it_is(tmp_path):
    config = study_config()
    records = list(study_records(config))
    unfinished = records[: 1 + 4 * 5 * 3 * 2 + 3]
    workdir = write_study(tmp_path, config, unfinished)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(records[len(unfinished)])[:40])
    text = write_report(workdir, resamples=50).read_text()
    assert "62 of 180 measured before fine-tuning, 61 of 180 measured after" in text
    assert "20 before and 20 after fine-tuning" in text
    assert "Provisional" in text
    choices = read_rows(workdir / "report" / "tau_errors.csv")[0]["choices"]
    assert choices == "12"


@pytest.mark.parametrize("recorded", [0, 1, 2])
def test_a_study_that_has_hardly_begun_is_reported_too(tmp_path, recorded):
    config = study_config()
    workdir = write_study(tmp_path, config, list(study_records(config))[:recorded])
    WellFormed(write_report(workdir, resamples=50).read_text())
    assert {path.name for path in (workdir / "report").iterdir()} == FILES
    verdicts = json.loads((workdir / "report" / "verdicts.json").read_text())
    assert [finding["verdict"] for finding in verdicts] == [UNDECIDED] * 4


def test_without_fine_tuning_there_is_no_after(tmp_path):
    config = study_config(finetune_epochs=0)
    workdir = write_study(tmp_path, config, study_records(config))
    text = write_report(workdir, resamples=50).read_text()
    assert "180 of 180 measured without fine-tuning" in text
    for path in (workdir / "report").glob("*.csv"):
        assert "after" not in path.read_text()
    verdicts = json.loads((workdir / "report" / "verdicts.json").read_text())
    assert all(e["phase"] == "before" for finding in verdicts for e in finding["evidence"])


def test_a_single_run_has_no_standard_deviation(tmp_path):
    config = study_config(runs=1, finetune_epochs=0)
    workdir = write_study(tmp_path, config, study_records(config))
    write_report(workdir, resamples=50)
    assert {row["std"] for row in read_rows(workdir / "report" / "tau_errors.csv")} == {""}
    assert "NaN" not in (workdir / "report" / "verdicts.json").read_text()
    assert not re.search(r"\bnan\b", (workdir / "report" / "index.html").read_text())


def test_perfect_accuracy_is_half_an_image_wrong(tmp_path):
    config = study_config(finetune_epochs=0)
    records = list(study_records(config))
    records[1]["test"] = performance(0.0, COUNT)
    workdir = write_study(tmp_path, config, records)
    write_report(workdir, resamples=50)
    first = read_rows(workdir / "report" / "measurements.csv")[0]
    assert float(first["test/before/log_error"]) == pytest.approx(math.log(0.5 / COUNT))


def records_of_networks(config):
    """As `study_records`, of several networks; Tucker and TT in fewer runs."""
    for network in range(config["networks"]):
        for record in study_records(config, seed=network):
            few = record["kind"] != "baseline" and record["method"] != "cp"
            if not few or record["run"] < config["deterministic_runs"]:
                yield {**record, "network": network}


def test_several_networks_are_told_from_one(finished, tmp_path):
    assert "intervals and verdicts speak of that network alone" in section_of(
        (finished / "report" / "index.html").read_text(), "findings"
    )
    config = study_config(finetune_epochs=0, networks=3, deterministic_runs=2)
    records = list(records_of_networks(config))
    workdir = write_study(tmp_path / "whole", config, records)
    html = write_report(workdir, resamples=50).read_text()
    assert "60 choices in 3 runs on each of 3 networks, 420 of 420 measured" in html
    assert "speak of other networks of this kind" in section_of(html, "findings")
    report = workdir / "report"
    by_network = read_rows(report / "tau_by_network.csv")
    # Six errors, five levels and three scopes.
    assert len(by_network) == 3 * 2 * (6 + 5 + 3)
    own = [r for r in by_network if (r["value"], r["subset"]) == ("weights/relative", "test")]
    means = [float(row["mean"]) for row in own]
    whole = read_rows(report / "tau_errors.csv")
    row = next(r for r in whole if (r["error"], r["subset"]) == ("weights/relative", "test"))
    assert (row["networks"], row["runs"], row["choices"]) == ("3", "3", "36")
    assert float(row["mean"]) == pytest.approx(np.mean(means), abs=2e-6)
    assert float(row["std"]) == pytest.approx(np.std(means, ddof=1), abs=2e-6)
    markdown = (report / "tables.md").read_text()
    line = " | ".join(f"{float(one['mean']):.2f} ± {float(one['std']):.2f}" for one in own)
    assert f"| Relative Weights | {line} |" in markdown
    # The third network has begun.
    begun = write_study(tmp_path / "begun", config, records[:-100])
    text = write_report(begun, resamples=50).read_text()
    assert "until there is one the furthest alone: 2 before fine-tuning" in text
    assert {row["network"] for row in read_rows(begun / "report" / "tau_by_network.csv")} == {
        "0",
        "1",
    }


def broken(records, **changes):
    return [records[0], {**records[1], **changes}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "finished"}, "line 2: kind 'finished' is unknown"),
        ({"ranks": None}, "line 2: field 'ranks' is None, not of type list"),
        ({"run": True}, "line 2: field 'run' is True"),
        ({"compression": 1.5}, r"line 2: compression 1.5 is not a number in \[0, 1\)"),
        ({"errors": dict.fromkeys(ERRORS, math.nan)}, "line 2: error 'weights/absolute' is nan"),
        ({"errors": {}}, "line 2: field 'weights/absolute' is missing"),
        (
            {"test": {"accuracy": 1.1, "cross_entropy": 0.1, "count": 10}},
            "line 2: 'test' has accuracy",
        ),
        ({"layer": "conv9"}, "conv9, cp, compression 0.9, run 0.* is not in config.json"),
        ({"run": 3}, "conv2, cp, compression 0.9, run 3.* is not in config.json"),
    ],
)
def test_a_record_that_cannot_be_understood_is_named(tmp_path, changes, message):
    config = study_config()
    records = broken(list(study_records(config)), **changes)
    with pytest.raises(ValueError, match=message):
        write_report(write_study(tmp_path, config, records))
    assert not (tmp_path / "report").exists()


def test_a_corrupt_line_is_named_but_an_unterminated_last_one_ignored(tmp_path):
    config = study_config()
    records = list(study_records(config))[:4]
    path = write_study(tmp_path, config, records) / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "compr\xc3')
    assert len(read_study(tmp_path)[2].of_kind("compressed")) == 2
    path.write_bytes(whole + b'{"kind": "compr\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 5: "):
        read_study(tmp_path)
    path.write_bytes(whole + b"[]\n")
    with pytest.raises(ValueError, match="line 5: a record must be a JSON object"):
        read_study(tmp_path)


def test_a_second_record_of_the_same_thing_is_refused(tmp_path):
    config = study_config()
    records = list(study_records(config))[:3]
    for again, named in ((0, "the baseline"), (1, "conv2, cp"), (2, "conv2, cp")):
        # Another number of the same thing; equal records count once.
        other = {**records[again], "epoch": 99, "kept": 0.5}
        write_study(tmp_path, config, [*records, records[again]])
        assert len(read_study(tmp_path)[2].found) == 3
        write_study(tmp_path, config, [*records, other])
        with pytest.raises(ValueError, match=f"line 4: .*{named}.* is recorded a second time"):
            read_study(tmp_path)
    write_study(tmp_path, config, [records[0], records[2]])
    with pytest.raises(ValueError, match="fine-tuned but never compressed"):
        read_study(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": []}, "config.json: config field 'layers' must list at least one"),
        ({"methods": ["cp", "cp"]}, "none twice"),
        ({"compressions": [1.5]}, "'compressions' has 1.5: at least 1e-06 and at most 0.999999"),
        ({"runs": 0}, "'runs' is 0: at least 1"),
        ({"model": "net"}, "'model' must hold fields, got 'net'"),
    ],
)
def test_a_configuration_that_cannot_be_understood_is_named(tmp_path, changes, message):
    write_study(tmp_path, study_config(**changes), [])
    with pytest.raises(ValueError, match=message):
        read_study(tmp_path)


def test_unknown_published_values_are_named_with_the_known_ones():
    with pytest.raises(ValueError, match="known are: garipovnet/cifar10"):
        published_study("vgg/cifar10")


# Taus of one phase in which all four findings hold.
HOLDING = {
    "levels": {0.9: 0.8, 0.75: 0.7, 0.5: 0.5, 0.25: 0.3, 0.1: 0.1},
    "errors": dict(zip(ERRORS, (0.4, 0.7, 0.5, 0.3, 0.6, 0.5), strict=True)),
    "scopes": {"layers": 0.4, "methods": 0.65, "all": 0.7},
}


def estimate(mean, width, choices=45, seed=0):
    resampled = mean + np.random.default_rng(seed).uniform(-width, width, 400)
    per_run = [[mean - 0.01, mean, mean + 0.01]]
    return drawn_tau(per_run, width / math.sqrt(3), resampled, choices, seed)


def tables_of(phases, width=0.02, choices=45):
    """Tables with the given means and independent resamples within `width` of them."""
    taus = {}
    for phase, means in phases.items():
        for name, kind in (("levels", "compression"), ("errors", "error"), ("scopes", "scope")):
            for place, (value, mean) in enumerate(means[name].items()):
                seed = place + 100 * len(name)
                taus[kind, "test", phase, value] = estimate(mean, width, choices, seed)
    return taus


def verdicts_of(changes, width=0.02, choices=45, after=True):
    """The verdicts where `changes` are made to what holds, before and after fine-tuning alike."""
    means = {name: table | changes.get(name, {}) for name, table in HOLDING.items()}
    phases = {"before": means, "after": means} if after else {"before": means}
    tables = tables_of(phases, width, choices)
    findings = judge_findings(tables, published_study(None), PHASES)
    return [finding.verdict for finding in findings]


@pytest.mark.parametrize(
    ("number", "changes", "width", "verdict"),
    [
        (1, {}, 0.02, HOLDS),
        (1, {"errors": {"weights/relative": 0.01}}, 0.02, UNDECIDED),
        (1, {"errors": {"weights/relative": -0.2}}, 0.02, FAILS),
        (1, {"levels": {0.9: 0.65}}, 0.02, HOLDS),
        (1, {"levels": {0.9: 0.2, 0.75: 0.4}}, 0.02, FAILS),
        (1, {"levels": {0.9: 0.2, 0.75: 0.4}}, 0.6, UNDECIDED),
        (2, {}, 0.02, HOLDS),
        (2, {"errors": {"features/relative": 0.69}}, 0.02, HOLDS),
        (2, {"errors": {"features/relative": 0.71}}, 0.02, UNDECIDED),
        (2, {"errors": {"weights/scaled": 0.8}}, 0.02, FAILS),
        (3, {}, 0.02, HOLDS),
        (3, {"errors": {"weights/scaled": 0.8, "features/relative": 0.75}}, 0.02, HOLDS),
        (3, {"errors": {"features/scaled": 0.71}}, 0.02, UNDECIDED),
        (3, {"errors": {"features/scaled": 0.8}}, 0.02, FAILS),
        (4, {}, 0.02, HOLDS),
        (4, {"scopes": {"layers": 0.71}}, 0.02, UNDECIDED),
        (4, {"scopes": {"layers": 0.8}}, 0.02, FAILS),
        (4, {"scopes": {"methods": 0.5}}, 0.02, FAILS),
        (4, {"scopes": {"methods": 0.58}}, 0.02, UNDECIDED),
        (4, {"scopes": {"methods": 0.65}}, 0.2, UNDECIDED),
        (4, {"scopes": {"methods": 0.75}}, 0.02, HOLDS),
        # What is true of the means alone is no finding.
        (1, {}, 0.8, UNDECIDED),
        (2, {}, 0.2, UNDECIDED),
        (3, {}, 0.3, UNDECIDED),
        (4, {}, 0.3, UNDECIDED),
        # Nothing relates to performance: there is nothing to compare.
        (2, {"errors": dict.fromkeys(ERRORS, 0.0)}, 0.01, UNDECIDED),
        (3, {"errors": dict.fromkeys(ERRORS, 0.0)}, 0.01, UNDECIDED),
        (4, {"scopes": {"layers": -0.3, "methods": 0.0, "all": 0.0}}, 0.01, UNDECIDED),
    ],
)
def test_verdicts_follow_their_rules(number, changes, width, verdict):
    assert verdicts_of(changes, width)[number - 1] == verdict


def test_a_finding_needs_every_phase_and_enough_choices():
    assert verdicts_of({}) == [HOLDS] * 4
    assert verdicts_of({}, after=False) == [UNDECIDED] * 3 + [HOLDS]
    assert verdicts_of({}, choices=5) == [UNDECIDED] * 4


def test_margins_decide_and_stand_in_the_rules():
    tables = tables_of({"before": HOLDING})
    strict = judge_findings(tables, published_study(None), ["before"], Margins(near=0.051))
    assert [finding.verdict for finding in strict] == [HOLDS] * 3 + [UNDECIDED]
    assert "lie within 0.051 of 0" in strict[3].rule
    loose = judge_findings(tables, published_study(None), ["before"])
    assert "is less than 0.04, for all five" in loose[1].rule


@pytest.mark.parametrize(
    "name", ["resnet18/cifar10", "garipovnet/cifar10", "garipovnet/fashion_mnist"]
)
def test_the_rules_find_the_published_findings_in_the_published_values(name):
    paper = published_study(name)
    phases = {
        phase: {
            "levels": {c: paper.tau("compression", "test", phase, c).mean for c in COMPRESSIONS},
            "errors": {error: paper.tau("error", "test", phase, error).mean for error in ERRORS},
            "scopes": {s: paper.tau("scope", "test", phase, s).mean for s in HOLDING["scopes"]},
        }
        for phase in ("before", "after")
    }
    findings = judge_findings(tables_of(phases), paper, PHASES)
    assert [finding.verdict for finding in findings] == [HOLDS] * 4
    for finding in findings:
        for evidence in finding.evidence:
            assert evidence["mean"] == pytest.approx(evidence["published_mean"], abs=1e-9)


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    config = study_config(finetune_epochs=0)
    workdir = write_study(tmp_path, config, list(study_records(config))[:1])
    with pytest.raises(ImportError, match=r"tdjax\[experiments\]"):
        write_report(workdir, resamples=20)
