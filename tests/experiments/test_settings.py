import copy
import dataclasses
import json
import math
from functools import partial

import numpy as np
import pytest

from experiments.compressibility.settings import Compressibility
from experiments.error_study.protocol import Protocol
from experiments.error_study.records import SCHEMA, read_study
from experiments.network.build import NETWORKS, build_network
from experiments.network.settings import ModelSettings
from experiments.runner import EXPERIMENTS, carry_out, experiment_named
from experiments.usage import meanings
from experiments.workdir.fields import plain_fields, read_fields, type_hints
from experiments.workdir.work import begin

pytest.importorskip("sklearn")
pytest.importorskip("pandas")

DATA = {"name": "digits", "train_size": 200, "validation_size": 50, "test_size": 50}
MODEL = {"name": "mlp", "arguments": {"widths": [8]}}
TRAIN = {"epochs": 2, "batch_size": 40, "boundaries": [1]}
NETWORK = {"data": DATA, "model": MODEL, "train": TRAIN, "calibration": {"images": [80]}}
CONFIGS = {
    "study": {
        **{"data": DATA, "model": MODEL, "train": TRAIN, "layers": ["hidden1"]},
        "measure": {"feature_images": 100},
    },
    "data_aware": NETWORK,
    "compress": NETWORK,
    "compressibility": NETWORK,
}
NAN, INF = math.nan, math.inf
BAD = (
    *(NAN, INF, -INF, -1, 0, -0.5, 1e300, 2**70, 10**400, 10**5000, "", "nope", "\0", "\ud800"),
    *(None, True, [], {}, ["x", "x"], [1, 1], [0.5, 0.5000000001], [0.9999999], [NAN], [0], [-1]),
    *([None], [[]], [10**30], object(), np.ones((9, 2))),
)
# Those of them that a field may be; of names those that only the data set or the network knows.
ACCEPTED = {
    **dict.fromkeys(("seed", "train.epochs", "finetune.epochs", "train.warmup"), (0,)),
    **dict.fromkeys(("train.momentum", "train.weight_decay", "decompose.tol", "solver.tol"), (0,)),
    **dict.fromkeys(("decompose.tucker_iters", "timed_images"), (0,)),
    **dict.fromkeys(("train.patience", "finetune.patience", "finetune.learning_rate"), (None,)),
    **dict.fromkeys(("loss", "metric", "deterministic_runs"), (None,)),
    "checkpoint_steps": (None,),
    **dict.fromkeys(("published", "inputs.mean", "inputs.deviation"), (None,)),
    **dict.fromkeys([f"data.{part}_size" for part in ("train", "validation", "test")], (None,)),
    **dict.fromkeys(("data.folder", "calibration.folder", "weights"), ("nope", None)),
    **dict.fromkeys(("note", "data.name", "model.name"), ("", "nope", "\0")),
    **dict.fromkeys(("train.nesterov", "train.augment", "finetune.repeat"), (True,)),
    **dict.fromkeys(("train.best_by_metric", "measure.drawn"), (True,)),
    **dict.fromkeys(("reestimate", "sequential", "poor_baseline"), (True,)),
    "test.layer_images": (0, None),
    **{"refine.epochs": (0,), "refine.learning_rate": (None,), "refine.augment": (True,)},
    "refine.features": ([],),
    "train.boundaries": ([],),
    **dict.fromkeys(("model.arguments", "data.arguments"), ({},)),
    **dict.fromkeys(("etas", "penalties"), ([0.9999999],)),
}


def leaves(cls, where=()):
    """The paths of all fields that hold no fields."""
    for field in dataclasses.fields(cls):
        hint, path = type_hints(cls)[field.name], (*where, field.name)
        if dataclasses.is_dataclass(hint):
            yield from leaves(hint, path)
        else:
            yield path


def changed(name, path, value):
    raw = copy.deepcopy(CONFIGS[name])
    place = raw
    for folder in path[:-1]:
        place = place.setdefault(folder, {})
    place[path[-1]] = value
    return raw


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_has_a_meaning_for_every_field(name):
    def owners(cls):
        yield cls
        for hint in type_hints(cls).values():
            if dataclasses.is_dataclass(hint):
                yield from owners(hint)

    for cls in owners(experiment_named(name).settings):
        names = {f.name for f in dataclasses.fields(cls)}
        folded = {own for own in names if dataclasses.is_dataclass(type_hints(cls)[own])}
        told = meanings(cls)
        assert names - folded <= told.keys() <= names, cls
        assert not any(text.startswith("see `") for text in told.values()), cls


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_field_refuses_what_it_cannot_be(name):
    settings = experiment_named(name).settings
    assert read_fields(settings, CONFIGS[name])
    for path in leaves(settings):
        accepted, field = [], ".".join(path)
        for value in BAD:
            try:
                read = read_fields(settings, changed(name, path, value))
            except ValueError as error:
                text = str(error)
                assert "\n" not in text, field
                assert len(text) < 700, field
                # Fields that belong together may name each other.
                assert f"config field '{path[0]}" in text or field.startswith("train."), text
            else:
                accepted.append(value)
                # What is taken can be written and read again.
                written = json.loads(json.dumps(plain_fields(read)))
                assert read_fields(settings, written) == read, field
        assert list(map(repr, accepted)) == list(map(repr, ACCEPTED.get(field, ()))), field


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        (
            "study",
            "data.name",
            "digit",
            "'data.name' is 'digit': known are .*did you mean 'digits'",
        ),
        ("study", "data.folder", "nope", "'data.folder' is 'nope': there is no such folder"),
        ("study", "data.train_size", 10**9, "'data' is 'digits': train_size is 1000000000"),
        ("study", "data.test_size", 3, "'data' is 'digits': no example of class"),
        ("study", "model.name", "mpl", "'model.name' is 'mpl': known are .*did you mean 'mlp'"),
        (
            "study",
            "train.batch_size",
            201,
            "'train.batch_size' is 201: 200 training examples are le",
        ),
        ("study", "layers", ["hidden"], "'layers': .* 'hidden'; .*did you mean 'hidden1'"),
        ("study", "decompose.ranks", "resnet18", "'decompose.ranks': the published tables have no"),
        ("study", "measure.feature_images", 201, "'measure.feature_images' is 201"),
        ("data_aware", "layers", ["conv("], "'layers' is .*not a valid regular expression"),
        ("data_aware", "calibration.folder", "x\0", "'calibration.folder' is .*the name of a file"),
        ("data_aware", "calibration.sources", ["mnist"], "'calibration.folder' is None: mnist is"),
        ("data_aware", "calibration.images", [201], "'calibration.images' asks for 201"),
        ("data_aware", "calibration.subsets", 10**9, "'calibration.subsets' is 1000000000: at lea"),
        ("data_aware", "finetune_subsets", 4, "'finetune_subsets' is 4: calibration.subsets is 3"),
        ("compress", "strategies", ["energy"], "'budgets' has 0.5: .* within 0.5% of .* 0.4722 is"),
        ("compress", "strategies", ["uniform"], "'budgets' has 0.5: .*cannot be met within 0.5%"),
        ("compress", "weights", "nope", "'weights' is 'nope': there is no such file"),
        ("compress", "inputs", {"mean": [0, 1], "deviation": [1, 1]}, "'inputs.mean' is .* 1 chan"),
        ("compress", "reestimate", True, "'reestimate' is True: mlp has no batch statistics"),
        ("compressibility", "seed", 2**32 - 2, "'seed' is 4294967294: that of run 3 is above"),
        ("compressibility", "calibration.images", [80, 90], "'calibration.images' is .*one is nee"),
    ],
)
def test_nothing_is_written_before_all_is_checked(tmp_path, name, path, value, message):
    raw = {"experiment": name, **changed(name, path.split("."), value)}
    with pytest.raises(ValueError, match=f"^config field {message}") as caught:
        carry_out(raw, tmp_path / "none")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("mlp", {"width": 8}, "'model.arguments' has 'width': known are widths; did you mean 'wid"),
        ("mlp", {"widths": [8, 0]}, "'model.arguments.widths' has 0: at least 1"),
        ("mlp", {"widths": "88"}, "'model.arguments.widths' must be a sequence"),
        ("mlp", {"classes": 3}, "'model.arguments' has 'classes'"),
        ("mlp", {"name": "x"}, "'model.arguments' has 'name'"),
        ("mlp", {"widths": [10**9, 10**9]}, "'model' is .*: its training needs .* GB of memory"),
        ("garipovnet", {"pools": [2]}, r"'model' is garipovnet\(pools=\(2,\)\) on inputs of"),
        ("garipovnet", {"pools": [8, 8]}, "'model' is garipovnet.* on inputs of shape"),
        ("garipovnet", {"average": 0}, "'model.arguments.average' is 0"),
        ("resnet18", {"small": 1}, "'model.arguments.small' must be of type bool"),
        ("resnet20", {"depth": 14}, "'model.arguments' has 'depth': known are width"),
        ("densenet22", {"dropout": 1.0}, r"'model.arguments.dropout' is 1\.0: at least 0 and bel"),
        ("densenet22", {"dropout": NAN}, "'model.arguments.dropout' is nan"),
        ("googlenet", {"width": 12}, "'model' is googlenet.*known are multiples of 8"),
        ("vgg16", {}, "'model' is vgg16 on inputs of shape .*five max pools need 32x32"),
    ],
)
def test_a_network_that_cannot_be_is_told(tmp_path, model, arguments, message):
    raw = {"experiment": "study", **CONFIGS["study"]}
    raw["model"] = {"name": model, "arguments": arguments}
    with pytest.raises(ValueError, match=f"^config field {message}") as caught:
        carry_out(raw, tmp_path / "none")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "none").exists()


def test_all_arguments_of_all_networks_have_ranges():
    refused = (-1, NAN, "x", [0], [-1], {})
    for name, make in NETWORKS.items():
        cls = make.func if isinstance(make, partial) else make
        known = {field.name for field in dataclasses.fields(cls)} - {"classes", "parent", "name"}
        for argument in known:
            for value in refused:
                if (argument, value) == ("pools", [0]):
                    continue
                with pytest.raises(ValueError, match="config field '"):
                    build_network(ModelSettings(name=name, arguments={argument: value}), 10)


def test_shares_that_are_one_in_the_journal_are_refused():
    def levels(*compressions):
        return read_fields(Protocol, {**CONFIGS["study"], "compressions": compressions}).levels

    assert levels(0.999999, 1e-6, 1 / 3) == (0.999999, 1e-6, 0.333333)
    with pytest.raises(ValueError, match=r"'compressions' must list .*none twice"):
        levels(0.1, 1 - 0.9)
    with pytest.raises(ValueError, match="two of them are equal to six decimals"):
        levels(0.0123456, 0.0123459)
    with pytest.raises(ValueError, match=r"'compressions' has 0\.9999999: .*at most 0\.999999"):
        levels(0.5, 0.9999999)


def test_every_run_may_have_the_last_seed():
    raw = {**CONFIGS["compressibility"], "seed": 2**32 - 2, "runs": 2}
    settings = read_fields(Compressibility, raw)
    assert dataclasses.replace(settings, seed=settings.seed + 1).seed == 2**32 - 1


def test_a_study_may_be_set_beside_other_published_values(tmp_path):
    def started(**changes):
        settings = read_fields(Protocol, {**CONFIGS["study"], **changes})
        with begin("study", settings, SCHEMA, tmp_path / "study"):
            return read_study(tmp_path / "study")[1]

    assert started().published is None
    assert started(published="resnet18/cifar10").published == "resnet18/cifar10"
    with pytest.raises(ValueError, match=r"fields that differ: seed; use another workdir"):
        started(seed=1, published=None)
    assert started(published="garipovnet/cifar10").published == "garipovnet/cifar10"
