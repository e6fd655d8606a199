import dataclasses
import json

import pytest

from experiments.error_study.protocol import Protocol
from experiments.workdir.fields import plain_fields, read_fields

LEAST = {
    "data": {"name": "digits"},
    "model": {"name": "garipovnet"},
    "train": {"epochs": 3},
    "layers": ["conv2"],
}


def changed(path, value):
    """The least configuration with one field set."""
    raw = json.loads(json.dumps(LEAST))
    *folders, name = path.split(".")
    place = raw
    for folder in folders:
        place = place.setdefault(folder, {})
    place[name] = value
    return raw


def test_defaults_are_those_of_the_paper():
    protocol = read_fields(Protocol, LEAST)
    assert protocol.methods == ("cp", "tucker", "tt")
    assert protocol.compressions == (0.1, 0.25, 0.5, 0.75, 0.9)
    assert protocol.runs == 5
    assert protocol.decompose.cp_init == "random"
    assert protocol.layers == ("conv2",)


def test_round_trip_through_json():
    raw = changed("model.arguments", {"widths": [4, 4], "average": 2})
    raw["train"] |= {"boundaries": [1, 2], "patience": 4, "learning_rate": 1}
    raw["finetune"] = {"learning_rate": None, "epochs": 2}
    protocol = read_fields(Protocol, raw)
    assert protocol.model.arguments == {"widths": (4, 4), "average": 2}
    assert protocol.train.boundaries == (1, 2)
    assert protocol.train.learning_rate == 1.0
    assert type(protocol.train.learning_rate) is float
    written = json.loads(json.dumps(plain_fields(protocol)))
    assert read_fields(Protocol, written) == protocol
    assert plain_fields(read_fields(Protocol, written)) == plain_fields(protocol)
    assert written["measure"] == {
        "feature_images": 1000,
        "drawn": True,
        "batch_size": 500,
        "chunk": 25,
    }


def test_a_protocol_is_hashable():
    assert hash(read_fields(Protocol, LEAST)) == hash(read_fields(Protocol, LEAST))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("layer", ["conv2"], "unknown config field 'layer'; known are experiment, seed, data"),
        ("train.epoch", 3, r"unknown config field 'train\.epoch'; known are epochs"),
        ("measure.chunks", 3, r"'measure\.chunks'"),
        ("seed", "0", "'seed' must be of type int, got '0'"),
        ("seed", 0.0, "'seed' must be of type int"),
        ("runs", True, "'runs' must be of type int, got True"),
        ("layers", "conv2", "'layers' must be a sequence, got 'conv2'"),
        ("layers", [3], "'layers' must be of type str, got 3"),
        ("compressions", ["half"], "'compressions' must be of type float"),
        ("train", 3, "'train' must hold fields, got 3"),
        ("train.patience", 1.5, r"'train\.patience' must be of type int"),
        ("train.learning_rate", "fast", r"'train\.learning_rate' must be of type float"),
        ("train.augment", 1, r"'train\.augment' must be of type bool"),
        ("train.learning_rate", -1.0, r"config field 'train\.learning_rate' is -1\.0: above 0"),
        ("train.optimizer", "lion", r"'train\.optimizer' is 'lion': known are sgd, adam"),
        ("data.folder", 7, r"'data\.folder' must be of type str"),
        ("model.arguments", 7, r"'model\.arguments' must be a mapping, got 7"),
        ("runs", 0, "'runs' is 0: at least 1"),
        ("checkpoint_every", 0, "'checkpoint_every' is 0: at least 1"),
        ("layers", [], "'layers' must list at least one, and none twice"),
        ("methods", ["cp", "cp"], "'methods' must list at least one, and none twice"),
        ("compressions", [], "'compressions' must list at least one"),
        ("compressions", [0.5, 1.0], r"'compressions' has 1\.0: at least 1e-06 and at most 0\.9"),
        ("decompose.cp_init", "hosvd", r"'decompose\.cp_init' is 'hosvd': known are random, norm"),
        ("decompose.max_iters", 0, r"'decompose\.max_iters' is 0: at least 1"),
        ("decompose.tucker_iters", -1, r"'decompose\.tucker_iters' is -1: at least 0"),
        ("measure.feature_images", 0, r"'measure\.feature_images' is 0: at least 1"),
        ("measure.batch_size", 0, r"'measure\.batch_size' is 0: at least 1"),
        ("measure.chunk", 0, r"'measure\.chunk' is 0: at least 1"),
        ("finetune.epochs", -1, r"'finetune\.epochs' is -1: at least 0"),
        ("finetune.patience", 0, r"'finetune\.patience' is 0: at least 1"),
        ("finetune.learning_rate", 0.0, r"'finetune\.learning_rate' is 0\.0: above 0"),
    ],
)
def test_a_wrong_field_is_named(path, value, message):
    with pytest.raises(ValueError, match=message):
        read_fields(Protocol, changed(path, value))


@pytest.mark.parametrize("name", LEAST)
def test_a_missing_field_is_named(name):
    raw = {key: value for key, value in LEAST.items() if key != name}
    with pytest.raises(ValueError, match=f"missing config fields: {name}"):
        read_fields(Protocol, raw)


def test_a_missing_inner_field_is_named():
    with pytest.raises(ValueError, match=r"missing config fields: train\.epochs"):
        read_fields(Protocol, {**LEAST, "train": {"batch_size": 4}})


def test_finetuning_goes_on_where_the_schedule_ended():
    raw = changed("train.boundaries", [1, 2])
    raw["train"] |= {"learning_rate": 0.4, "factor": 0.5, "patience": 9, "weight_decay": 0.1}
    raw["finetune"] = {"epochs": 7}
    fit = read_fields(Protocol, raw).network.finetune_fit
    assert fit.learning_rate == pytest.approx(0.1)
    assert (fit.epochs, fit.boundaries, fit.patience, fit.weight_decay) == (7, (), None, 0.1)
    assert fit.last_learning_rate == fit.learning_rate
    raw["finetune"] |= {"learning_rate": 0.3, "patience": 2}
    fit = read_fields(Protocol, raw).network.finetune_fit
    assert (fit.learning_rate, fit.patience) == (0.3, 2)


def test_finetuning_repeats_the_schedule():
    raw = changed("train.boundaries", [2, 3])
    raw["train"] |= {"learning_rate": 0.4, "factor": 0.5, "patience": 9, "warmup": 1}
    raw["finetune"] = {"epochs": 7, "repeat": True}
    protocol = read_fields(Protocol, raw)
    fit = protocol.network.finetune_fit
    assert fit == dataclasses.replace(protocol.train, epochs=7, patience=None)
    raw["finetune"]["repeat"] = False
    fit = read_fields(Protocol, raw).network.finetune_fit
    assert (fit.learning_rate, fit.boundaries, fit.warmup) == (pytest.approx(0.2), (), 0)
